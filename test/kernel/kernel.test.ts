import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run, toolCommand } from '../../src/debian/index.js'
import { Cpio, guestKernel, modulePaths, parseBzImage, parseElf, vmlinuxOf } from '../../src/kernel/index.js'

t.test("Debian's cloud kernel", async (t) => {
  const kernel = await guestKernel('cloud')
  t.match(kernel.release, /^\d+\.\d+\.\d+-.*cloud-amd64$/)
  const header = parseBzImage(readFileSync(kernel.bzImage), kernel.bzImage)
  t.ok(header.version.startsWith(kernel.release), header.version)
  const elf = parseElf(readFileSync(kernel.vmlinux), kernel.vmlinux)
  t.equal(elf.entry, 0x1000000n)
  t.ok(elf.pvhEntry, 'it has a PVH entry')
  t.match(readFileSync(kernel.config, 'utf8'), /^CONFIG_VIRTIO_PCI=/m)
  t.strictSame(await guestKernel('cloud'), kernel)

  const order = modulePaths(kernel.modules, ['virtio-pci', 'erofs', 'vmw_vsock_virtio_transport', 'ext4'])
  t.ok(order.every((path) => existsSync(path)))
  const at = (name: string): number => order.findIndex((path) => path.endsWith(`/${name}.ko`))
  t.ok(
    at('virtio') >= 0 && at('virtio') < at('virtio_pci') && at('virtio_ring') < at('virtio_pci'),
    order.join(),
  )
  t.ok(at('vsock') < at('vmw_vsock_virtio_transport'))
  t.throws(() => modulePaths(kernel.modules, ['frob']), { code: 'KERNEL_INVALID', message: /no module frob/ })

  const path = join(t.testdir({}), 'kernel')
  writeFileSync(path, readFileSync(kernel.vmlinux))
  t.equal(await vmlinuxOf(path), path, 'an ELF image is used as it is')
})

t.test('every compression that kernels are built with', async (t) => {
  const { vmlinux, bzImage } = await guestKernel('cloud')
  const image = readFileSync(bzImage)
  const { payload } = parseBzImage(image, bzImage)
  // Real contents, cut to what compresses in a moment.
  const elf = readFileSync(vmlinux).subarray(0, 1 << 20)
  const { unpackPayload } = await import('../../src/kernel/index.js')
  const size = Buffer.alloc(4)
  size.writeUInt32LE(elf.length)
  for (const [program, ...options] of [
    ['lz4', '-l', '-c'],
    ['zstd', '-c'],
    ['xz', '-c', '--check=crc32', '--x86', '--lzma2=dict=32MiB'],
    ['xz', '-c', '--format=lzma'],
  ] as const) {
    const { argv, env } = await toolCommand(program)
    const { stdout } = spawnSync(argv[0]!, [...argv.slice(1), ...options], {
      input: elf,
      env: { ...process.env, ...env },
      maxBuffer: 1 << 24,
    })
    const packed = Buffer.concat([image.subarray(0, payload.offset), stdout, size])
    packed.writeUInt32LE(stdout.length + 4, 0x24c)
    const header = parseBzImage(packed, program)
    t.ok((await unpackPayload(packed, header, program)).equals(elf), `${program} ${options.join(' ')}`)
    packed.writeUInt32LE(elf.length - 1, packed.length - 4)
    await t.rejects(unpackPayload(packed, header, program), { code: 'KERNEL_INVALID' }, 'more than it says')
    const cut = Buffer.concat([packed.subarray(0, packed.length - stdout.length / 2), size])
    cut.writeUInt32LE(cut.length - payload.offset, 0x24c)
    await t.rejects(
      unpackPayload(cut, parseBzImage(cut, program), program),
      { code: 'KERNEL_INVALID' },
      'cut',
    )
  }
})

t.test('a file that is no kernel', async (t) => {
  const folder = t.testdir({ text: 'no kernel', script: '#!/bin/sh\n'.repeat(200) })
  for (const name of ['text', 'script', 'missing'])
    await t.rejects(vmlinuxOf(join(folder, name)), { code: 'KERNEL_INVALID', message: new RegExp(name) })
  await t.rejects(
    vmlinuxOf(process.execPath).then(() => Promise.reject(new Error('an ELF program'))),
    Error,
  )
})

t.test('a cpio archive that others can read', async (t) => {
  const archive = new Cpio()
    .file('etc/deep/hello', Buffer.from('hi\n'), 0o600)
    .symlink('bin', 'usr/bin')
    .characterDevice('dev/null', 1, 3)
    .directory('etc')
    .finish()
  const folder = t.testdir({ 'a.cpio': archive })
  const { argv } = await toolCommand('busybox')
  const { stdout } = await run([...argv, 'cpio', '-tv', '-F', join(folder, 'a.cpio')])
  t.match(stdout, /drwxr-xr-x .* etc\n/)
  t.match(stdout, /-rw------- .* 3 .* etc\/deep\/hello\n/)
  t.match(stdout, /lrwxrwxrwx .* bin -> usr\/bin\n/)
  t.match(stdout, /crw------- .* dev\/null\n/)
  t.equal(stdout.match(/ etc\n/g)?.length, 1, 'a folder is there once')
})
