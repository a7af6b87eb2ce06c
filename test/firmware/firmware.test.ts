import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { run, sysroot, toolCommand } from '../../src/debian/index.js'
import { interpreter, neededLibraries } from '../../src/firmware/elf.js'
import { buildAgent, buildInitramfs, createWritableLayer, firmware } from '../../src/firmware/index.js'
import { paths } from '../../src/paths.js'

const MIB = 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'coracle-firmware-'))
t.teardown(() => {
  rmSync(folder, { recursive: true, force: true })
})

async function tool(
  name: string,
  ...words: string[]
): Promise<{ status: number; stdout: string; stderr: string }> {
  const { argv, env } = await toolCommand(name)
  return run([...argv, ...words], { env: { ...process.env, ...env } })
}

/** What is in an archive of the kernel's (Documentation/driver-api/early-userspace/buffer-format.rst). */
function unpack(bytes: Buffer): Map<string, Buffer> {
  const files = new Map<string, Buffer>()
  for (let at = 0; ;) {
    if (bytes.toString('latin1', at, at + 6) !== '070701') throw new Error(`no member at ${at}`)
    const field = (index: number): number =>
      parseInt(bytes.toString('latin1', at + 6 + index * 8, at + 14 + index * 8), 16)
    const [length, nameLength] = [field(6), field(11)]
    const name = bytes.toString('latin1', at + 110, at + 110 + nameLength - 1)
    if (name === 'TRAILER!!!') return files
    const start = (at + 110 + nameLength + 3) & ~3
    files.set(name, bytes.subarray(start, start + length))
    at = (start + length + 3) & ~3
  }
}

t.test('the initramfs holds the agent and modules in an order that loads', async (t) => {
  const { initramfs } = await firmware()
  const files = unpack(readFileSync(initramfs))
  t.equal(interpreter(files.get('init')!), undefined, 'the agent is static')
  const lists = ['modules/hello', 'modules/workload'].map((path) =>
    files.get(path)!.toString().trim().split('\n'),
  )
  const order = lists.flat().map((line) => line.split(' ')[0]!.slice(1))
  for (const path of order) t.ok(files.has(path), path)
  const before = (first: string, second: string): boolean =>
    order.indexOf(`modules/${first}.ko`) < order.indexOf(`modules/${second}.ko`)
  t.ok(before('virtio_ring', 'virtio_pci') && before('vsock', 'vmw_vsock_virtio_transport'))
  t.ok(before('libnvdimm', 'nd_pmem'))
  t.notMatch(lists[0]!.join(), /erofs|overlay|nvdimm/, 'nothing before the hello that can wait')
})

t.test('a kernel with less built in gets the rest as modules', async (t) => {
  const names = [
    ...['virtio_pci', 'virtio_mmio', 'vmw_vsock_virtio_transport', 'virtio_pmem', 'nd_pmem', 'virtio_blk'],
    ...['libcrc32c', 'erofs', 'overlay', 'virtio_rng', 'virtio_net', 'ext4', 'crc32c_generic', 'igbvf'],
    ...['virtiofs', 'virtio_balloon'],
  ]
  const modules = t.testdir({
    'modules.builtin': '',
    'modules.dep': names.map((name) => `${name}.ko:${name === 'erofs' ? ' libcrc32c.ko' : ''}\n`).join(''),
    ...Object.fromEntries(names.map((name) => [`${name}.ko`, name])),
  })
  const before = process.env['CORACLE_CACHE']
  t.teardown(() => {
    if (before === undefined) delete process.env['CORACLE_CACHE']
    else process.env['CORACLE_CACHE'] = before
  })
  const agent = await buildAgent()
  process.env['CORACLE_CACHE'] = folder
  const initramfs = await buildInitramfs({ kernel: { release: 'x', modules }, agent, drivers: ['igbvf'] })
  const order = unpack(readFileSync(initramfs)).get('modules/workload')!.toString().trim().split('\n')
  const at = (name: string): number => order.indexOf(`/modules/${name}.ko`)
  t.ok(at('ext4') >= 0)
  // It asks for the checksum by its algorithm's name as it starts, so no list of needs has it.
  t.ok(at('crc32c_generic') >= 0 && at('crc32c_generic') < at('libcrc32c'))
  t.equal(at('igbvf'), order.length - 1, 'drivers of devices come last')
})

t.test('the same inputs make the same initramfs', async (t) => {
  const { kernel, initramfs } = await firmware()
  const agent = await buildAgent()
  const before = process.env['CORACLE_CACHE']
  t.teardown(() => {
    if (before === undefined) delete process.env['CORACLE_CACHE']
    else process.env['CORACLE_CACHE'] = before
  })
  process.env['CORACLE_CACHE'] = folder
  const again = await buildInitramfs({ kernel, agent })
  t.not(again, initramfs)
  t.ok(readFileSync(again).equals(readFileSync(initramfs)))
})

t.test('a machine without a C compiler is told what to install', async (t) => {
  const before = process.env['CORACLE_CACHE']
  t.teardown(() => {
    delete process.env['CC']
    if (before === undefined) delete process.env['CORACLE_CACHE']
    else process.env['CORACLE_CACHE'] = before
  })
  process.env['CORACLE_CACHE'] = join(folder, 'empty')
  process.env['CC'] = '/nonexistent/cc'
  await t.rejects(buildAgent(), { code: 'HOST_TOOL', message: /apt-get install gcc libc6-dev/ })
  t.notOk(statSync(join(paths.cache, 'firmware/agent'), { throwIfNoEntry: false }))
})

t.test('the tools image is whole, aligned, and has each library that crun needs', async (t) => {
  const { tools } = await firmware()
  t.equal(tools.size % (2 * MIB), 0)
  t.equal((await tool('fsck.erofs', tools.path)).status, 0)
  const crun = readFileSync((await sysroot('tools')).file('crun'))
  t.equal(interpreter(crun), '/lib64/ld-linux-x86-64.so.2')
  for (const name of neededLibraries(crun)) {
    const { status } = await tool('dump.erofs', `--path=/usr/lib/x86_64-linux-gnu/${name}`, tools.path)
    t.equal(status, 0, name)
  }
})

t.test('a writable layer is an empty ext4 file system that costs little', async (t) => {
  for (const size of [16 * MIB, 100 * MIB + 1, 10 * 1024 * MIB]) {
    const path = join(folder, `layer-${size}`)
    await createWritableLayer(path, size)
    t.equal(statSync(path).size, size - (size % 4096))
    t.ok(statSync(path).blocks * 512 < MIB, `${statSync(path).blocks} blocks of 512 bytes`)
    const { status, stdout } = await tool('e2fsck', '-fn', path)
    t.equal(status, 0, stdout)
    t.match((await tool('dumpe2fs', '-h', path)).stdout, /has_journal/)
  }
})

t.test('a writable layer never replaces a file, and has a least size', async (t) => {
  const path = join(folder, 'there')
  writeFileSync(path, 'mine')
  await t.rejects(createWritableLayer(path, 64 * MIB), { code: 'EEXIST' })
  t.equal(readFileSync(path, 'utf8'), 'mine')
  for (const size of [0, -1, MIB, NaN])
    await t.rejects(createWritableLayer(join(folder, 'small'), size), { code: 'INVALID_ARGUMENT' })
})
