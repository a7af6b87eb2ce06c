import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { CLONE_NEWNET, createTap, unshare } from '@coracle/sys'
import { run, sysroot, toolCommand } from '../../src/debian/index.js'
import { Cpio, guestKernel, modulePaths } from '../../src/kernel/index.js'

/*
 * Somebody else's VMM on our devices: QEMU, emulating, boots Debian's kernel with our vhost-user-blk as its root disk,
 * writes to it, takes random bytes from our vhost-user-rng, and reaches the host through our vhost-user-net.
 */
const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_rng', 'virtio_net']
const TAP = 'serve0'
const MAC = '02:00:00:00:09:02'
const MEMORY = 256
const SERVE = fileURLToPath(new URL('../../src/vmm/serve.js', import.meta.url))

/** In the initramfs: modules, then the disk's own init. */
const FIRST = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t devtmpfs d /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "failed=$module"; done
mkdir /root; mount -t ext4 /dev/vda /root && exec switch_root /root /sbin/init
reboot -f
`
/** On the disk. */
const SECOND = `#!/bin/sh
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
echo "root=$(awk '$2 == "/" { print $1 }' /proc/mounts) $(cat /sys/block/vda/serial)"
echo "sum=$(md5sum < /data | cut -c1-32)"
dd if=/data of=/copy bs=64k 2>/dev/null; sync; echo 3 > /proc/sys/vm/drop_caches
echo "copy=$(md5sum < /copy | cut -c1-32)"
echo "random=$(head -c 8 /dev/hwrng | od -An -tx1 | tr -d ' ')"
ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
echo "mac=$(cat /sys/class/net/eth0/address)"
ping -c 3 -w 60 -s 1400 10.9.0.1 > /dev/null && echo "ping=$?"
echo from-the-guest > /answer
umount /proc /sys; mount -o remount,ro /; reboot -f
`

const folder = mkdtempSync(join(tmpdir(), 'coracle-serve-'))
t.setTimeout(300_000)
t.teardown(() => rmSync(folder, { recursive: true }))

/** Starts a device and waits until it listens. */
async function serve(...words: string[]): Promise<ChildProcess> {
  const child = spawn(process.execPath, [SERVE, ...words], { stdio: ['ignore', 'ignore', 'pipe'] })
  const [line] = (await once(createInterface({ input: child.stderr! }), 'line')) as [string]
  if (!line.includes(' is at ')) throw new Error(line)
  return child
}

async function end(child: ChildProcess): Promise<unknown> {
  child.kill('SIGTERM')
  return (await once(child, 'exit'))[0]
}

async function initramfs(busybox: string, modules: string): Promise<string> {
  const cpio = new Cpio()
  for (const path of ['proc', 'sys', 'dev']) cpio.directory(path)
  cpio.characterDevice('dev/console', 5, 1)
  cpio.file('bin/busybox', readFileSync(busybox), 0o755).symlink('bin/sh', 'busybox')
  const paths = modulePaths(modules, MODULES)
  for (const path of paths) cpio.file(`modules/${basename(path)}`, readFileSync(path))
  cpio.file('modules/order', Buffer.from(paths.map((path) => basename(path)).join('\n')))
  cpio.file('init', Buffer.from(FIRST), 0o755)
  const path = join(folder, 'initramfs')
  writeFileSync(path, cpio.finish())
  return path
}

async function rootDisk(busybox: string): Promise<string> {
  const tree = join(folder, 'tree')
  for (const name of ['bin', 'sbin', 'proc', 'sys', 'dev']) mkdirSync(join(tree, name), { recursive: true })
  copyFileSync(busybox, join(tree, 'bin/busybox'))
  const words = 'sh mount umount awk cat md5sum cut dd sync head od tr reboot ip ping'.split(' ')
  for (const word of words) symlinkSync('busybox', join(tree, 'bin', word))
  writeFileSync(join(tree, 'sbin/init'), SECOND)
  chmodSync(join(tree, 'sbin/init'), 0o755)
  writeFileSync(join(tree, 'data'), Buffer.alloc(3 << 20, 'some bytes to read; '))
  const disk = join(folder, 'disk')
  const { argv, env } = await toolCommand('mkfs.ext4')
  await run([...argv, '-q', '-F', '-d', tree, disk, '96M'], { env: { ...process.env, ...env } })
  return disk
}

void t.test("QEMU's guest boots from our disk", async (t) => {
  const busybox = (await sysroot('tools')).file('busybox')
  const kernel = await guestKernel('cloud')
  const disk = await rootDisk(busybox)
  const sockets = { blk: join(folder, 'blk'), rng: join(folder, 'rng'), net: join(folder, 'net') }
  const blk = await serve('blk', '--socket', sockets.blk, '--file', disk, '--serial', 'root')
  const rng = await serve('rng', '--socket', sockets.rng)
  const { argv, env } = await toolCommand('qemu-system-x86_64')
  const image = await initramfs(busybox, kernel.modules)
  // From here on nothing is fetched: what is started now has a network of its own, which ends with it.
  unshare(CLONE_NEWNET)
  createTap(TAP)
  await run([busybox, 'ip', 'addr', 'add', '10.9.0.1/24', 'dev', TAP])
  await run([busybox, 'ip', 'link', 'set', TAP, 'up'])
  const net = await serve('net', '--socket', sockets.net, '--tap', TAP, '--mac', MAC)
  const words = [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-monitor', 'none'],
    ...['-M', 'q35,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram', '-bios', 'qboot.rom'],
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-m', `${MEMORY}M`],
    ...['-object', `memory-backend-memfd,id=ram,size=${MEMORY}M,share=on`],
    ...['-kernel', kernel.bzImage, '-initrd', image],
    ...['-append', 'console=ttyS0 quiet panic=-1 reboot=t 8250.nr_uarts=1', '-serial', 'stdio'],
    ...['-chardev', `socket,id=blk,path=${sockets.blk}`, '-device', 'vhost-user-blk-pci,chardev=blk'],
    ...['-chardev', `socket,id=rng,path=${sockets.rng}`, '-device', 'vhost-user-rng-pci,chardev=rng'],
    ...['-chardev', `socket,id=net,path=${sockets.net}`, '-netdev', 'vhost-user,id=net,chardev=net'],
    // With MSI-X this QEMU 7.2 crashes as soon as a vhost-user network starts; 10 does not.
    ...['-device', `virtio-net-pci,netdev=net,mac=${MAC},vectors=0`],
  ]
  const qemu = spawn(argv[0]!, [...argv.slice(1), ...words], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => qemu.kill('SIGKILL'))
  let console = ''
  for (const stream of [qemu.stdout, qemu.stderr]) stream.on('data', (bytes) => (console += String(bytes)))
  const [status] = (await once(qemu, 'close')) as [number | null]
  t.equal(status, 0, console)
  const said = Object.fromEntries(
    [...console.matchAll(/^(\w+)=(.*?)\r?$/gm)].map((match) => [match[1], match[2]]),
  )
  t.equal(said['failed'], undefined)
  t.match(said, { root: '/dev/vda root', random: /^[0-9a-f]{16}$/, sum: /^[0-9a-f]{32}$/ }, console)
  t.equal(said['copy'], said['sum'], 'what it wrote it reads again')
  t.match(said, { mac: MAC, ping: '0' }, console)
  for (const child of [blk, rng, net]) t.equal(await end(child), 0)
  t.same(Object.values(sockets).filter(existsSync), [], 'no socket is left')
  const { argv: debugfs, env: more } = await toolCommand('debugfs')
  const answer = await run([...debugfs, '-R', 'cat /answer', disk], { env: { ...process.env, ...more } })
  t.match(answer.stdout, 'from-the-guest', 'and it is in the file')
})

void t.test('what cannot be served', async (t) => {
  await t.rejects(serve('blk', '--socket', join(folder, 's'), '--file', join(folder, 'none')), /ENOENT/)
  await t.rejects(serve('blk', '--socket', join(folder, 'no/s'), '--file', join(folder, 'disk')), /ENOENT/)
})
