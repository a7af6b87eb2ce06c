import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Fd, O_RDWR, socketPair } from '@coracle/sys'
import { type GuestKernel, guestKernel } from '../../src/kernel/index.js'
import type { DeviceSpec } from '../../src/vmm/device-thread/device-spec.js'
import { Machine, type MachineConfig } from '../../src/vmm/machine.js'
import { MIB } from '../../src/vmm/memory/layout.js'
import { Snapshot, snapshotFiles } from '../../src/vmm/snapshot/snapshot.js'
import { Said, busyboxInitramfs, saidBy } from './guest.js'

/*
 * Debian's kernel in our machine, with busybox in place of the agent. What init says is on the console, one
 * `key=value` a line.
 */
const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_rng', 'virtio_pmem', 'nd_pmem', 'virtio_console']
const SECTOR = 512
/** Who attacks by hostile-driver.c: other accesses with another seed. */
const ATTACK = { seed: 1, rounds: 200 }
/** A guest that has taken its devices apart may sit there for ever; ms from what it could live through on. */
const PATIENCE = 60_000

const INIT = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "failed=$module"; done
case $(cat /proc/cmdline) in
*then=panic*) exit 3;;
*then=reset*) reboot -f;;
*then=halt*) halt -f;;
*then=attack*)
  for how in quiet loud; do
    /hostile-driver $how ${ATTACK.seed} ${ATTACK.rounds}
    echo "$how=$?"
  done
  poweroff -f;;
*then=console*)
  exec 3<>/dev/hvc0
  stty raw -echo <&3
  seq 1 2000 >&3
  read -r line <&3
  until [ "$(stty size <&3)" = '30 100' ]; do sleep 0.1; done
  echo "heard=$line"
  printf 'size %s' "$(stty size <&3)" >&3
  poweroff -f;;
*then=fork*)
  echo "before=$(dmesg | grep -c 'virtual machine fork')"
  until dmesg | grep -q 'virtual machine fork'; do sleep 0.2; done
  echo "fork=$(dmesg | grep 'virtual machine fork')"
  poweroff -f;;
*then=plug*)
  look() { echo 1 > /sys/bus/pci/rescan; }
  drop() {
    device=$(readlink -f /sys/block/$1)
    slot=\${device#*pci0000:00/}
    echo 1 > /sys/bus/pci/devices/\${slot%%/*}/remove
  }
  echo "plug=1"
  until [ -b /dev/vdb ] && [ -b /dev/pmem0p1 ]; do look; done
  echo "plugged=$(head -c 5 /dev/vdb) $(head -c 5 /dev/pmem0p1) $(cat /sys/block/vdb/serial)"
  drop vdb; drop pmem0
  echo "unplug=$([ -e /dev/vdb ] || [ -e /dev/pmem0 ] || echo gone)"
  # A look before the host has taken them away would find them once more, and wait for ever on what they do not answer.
  until [ "$(dd if=/dev/vda bs=${SECTOR} skip=4 count=1 iflag=direct 2>/dev/null | head -c 4)" = gone ]; do sleep 0.2; done
  until [ -b /dev/vdb ]; do look; done
  echo "again=$(head -c 5 /dev/vdb)"
  drop vdb
  poweroff -f;;
*then=count*)
  i=0
  while :; do
    i=$((i + 1))
    printf '%06d' $i | dd of=/dev/vda bs=${SECTOR} seek=$((i % 64)) conv=sync,fsync 2>/dev/null
    echo "tick=$i $(head -c 8 /dev/hwrng | od -An -tx1 | tr -d ' ') $(head -c 5 /dev/pmem0p1)"
  done;;
esac
echo "cpus=$(grep -c ^processor /proc/cpuinfo)"
echo "cores=$(grep -m1 'cpu cores' /proc/cpuinfo | tr -dc 0-9)"
echo "clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "memory=$(grep MemTotal /proc/meminfo | tr -dc 0-9)"
echo "random=$(head -c 8 /dev/hwrng | od -An -tx1 | tr -d ' ')"
echo "disk=$(head -c 5 /dev/vda) $(cat /sys/block/vda/size) $(cat /sys/block/vda/serial)"
echo "wrote=$(printf 'from the guest' | dd of=/dev/vda bs=${SECTOR} seek=2 conv=sync,fsync 2>&1 | tr '\\n' ' ')"
echo "pmem=$(head -c 5 /dev/pmem0p1) $(head -c 6 /dev/pmem0p2)"
dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null && echo "read=all"
echo "msi=$(grep -c 'PCI-MSI.*virtio' /proc/interrupts)"
poweroff -f
`

const folder = mkdtempSync(join(tmpdir(), 'coracle-machine-'))
t.setTimeout(1_100_000)
t.teardown(() => rmSync(folder, { recursive: true }))

function hostileDriver(): Buffer {
  const source = fileURLToPath(new URL('../../../test/lab/hostile-driver.c', import.meta.url))
  const binary = join(folder, 'hostile-driver')
  execFileSync(process.env['CC'] ?? 'cc', ['-O1', '-static', '-o', binary, source])
  return readFileSync(binary)
}

const initramfs = (kernel: GuestKernel): Promise<string> =>
  busyboxInitramfs(kernel, folder, MODULES, INIT, [['hostile-driver', hostileDriver()]])

const kernel = await guestKernel('cloud')
const base: MachineConfig = {
  kernel: kernel.vmlinux,
  initramfs: await initramfs(kernel),
  memory: 256 * MIB,
  cpus: 1,
  devices: [],
}

function blob(name: string, content: string, size: number): string {
  const path = join(folder, name)
  const bytes = Buffer.alloc(size)
  bytes.write(content)
  writeFileSync(path, bytes)
  return path
}

void t.test('Linux comes up with four processors, 5 GiB around the PCI hole and every device', async (t) => {
  const disk = blob('disk', 'begin', 4 * MIB)
  const devices: DeviceSpec[] = [
    {
      kind: 'pmem',
      name: 'blobs',
      blobs: [
        { name: 'one', path: blob('one', 'first', 2 * MIB) },
        { name: 'two', path: blob('two', 'second', MIB) },
      ],
    },
    { kind: 'blk', name: 'disk', path: disk },
    { kind: 'rng' },
    { kind: 'vsock', cid: 3 },
  ]
  const log: string[] = []
  await using machine = await Machine.create({
    ...base,
    memory: 5120 * MIB,
    cpus: 4,
    devices,
    onLog: (line) => log.push(line),
  })
  machine.start()
  t.same(await machine.exited, { reason: 'poweroff' }, machine.console)
  const said = Object.fromEntries(
    [...machine.console.matchAll(/^(\w+)=(.*?)\r?$/gm)].map(([, key, value]) => [key, value] as const),
  )
  t.match(said, {
    cpus: '4',
    cores: '4',
    clock: 'kvm-clock',
    random: /^[0-9a-f]{16}$/,
    disk: `begin ${(4 * MIB) / SECTOR} disk`,
    pmem: 'first second',
    read: 'all',
    // Each device's configuration vector and queues: pmem, blk, rng, and no driver for vsock.
    msi: '6',
  })
  t.ok(Number(said['memory']) * 1024 > 4900 * MIB, `${said['memory']} KiB`)
  t.equal(said['failed'], undefined)
  t.same(log, [])
  t.equal(readFileSync(disk).toString('latin1', 2 * SECTOR, 2 * SECTOR + 14), 'from the guest')
  const { exits, accesses } = machine.statistics
  const console = accesses['serial']!
  const others = Object.values(exits).reduce((sum, count) => sum + count, 0) - console
  t.ok(others < 1000, `${others} exits beside the console's`)
})

void t.test('a panic, a reset and a halt are told apart', async (t) => {
  const ends = { panic: /Attempted to kill init/, reset: undefined, halt: undefined }
  for (const [reason, detail] of Object.entries(ends)) {
    await using machine = await Machine.create({ ...base, append: `then=${reason}` })
    machine.start()
    t.match(await machine.exited, detail ? { reason, detail } : { reason }, machine.console)
  }
})

void t.test('a console beside the serial port is written, read and resized', async (t) => {
  const [wire, other] = socketPair()
  const peer = new Socket({ fd: other.release() })
  t.teardown(() => peer.destroy())
  const path = `/proc/self/fd/${wire.number}`
  const hvc: DeviceSpec = { kind: 'console', name: 'hvc', path, size: { columns: 80, rows: 25 } }
  const log: string[] = []
  await using machine = await Machine.create({
    ...base,
    append: 'then=console',
    devices: [hvc],
    onLog: (line) => log.push(line),
  })
  wire.close()
  const lines = Array.from({ length: 2000 }, (_, i) => `${i + 1}\n`).join('')
  let said = ''
  const all = new Promise<void>((resolve) =>
    peer.setEncoding('latin1').on('data', (text: string) => {
      said += text
      if (said.length >= lines.length) resolve()
    }),
  )
  const ended = once(peer, 'end')
  machine.start()
  await Promise.race([all, machine.exited])
  t.equal(said, lines)
  await machine.control(machine.devices[0]!, { columns: 100, rows: 30 })
  peer.write('to the guest\n')
  t.same(await machine.exited, { reason: 'poweroff' }, machine.console)
  t.match(machine.console, /^heard=to the guest\r?$/m)
  await machine.close()
  await ended
  t.equal(said.slice(lines.length), 'size 30 100')
  t.same(log, [])
})

void t.test('what a guest has let go of itself is taken away, and others take its place', async (t) => {
  const disk = blob('disk of one that lets go', '', MIB)
  const log: string[] = []
  const said = new Said()
  await using machine = await Machine.create({
    ...base,
    append: 'then=plug',
    cpus: 2,
    devices: [{ kind: 'blk', name: 'disk', path: disk }],
    onLog: (line) => log.push(line),
    onConsole: said.heard,
  })
  said.of(machine)
  machine.start()
  await said.until('plug')
  const more = await machine.plug({ kind: 'blk', name: 'more', path: blob('more', 'extra', MIB) })
  const images = [{ name: 'three', path: blob('three', 'third', 3 * MIB) }]
  const later = await machine.plug({ kind: 'pmem', name: 'later', blobs: images })
  t.same([more.slot, later.slot], [2, 3])
  await said.until('unplug')
  await machine.unplug(more)
  await machine.unplug(later)
  const again = await machine.plug({ kind: 'blk', name: 'again', path: blob('again', 'anew ', MIB) })
  t.equal(again.slot, 2)
  using file = Fd.open(disk, O_RDWR)
  file.pwrite(Buffer.from('gone'), 4 * SECTOR)
  t.same(await machine.exited, { reason: 'poweroff' }, machine.console)
  t.match(saidBy(machine), { plugged: 'extra third more', unplug: 'gone', again: 'anew ' })
  t.same(log, [])
})

void t.test('a kernel with a driver for it knows that it goes on as a copy', async (t) => {
  const generic = await guestKernel('generic')
  const saved = join(folder, 'saved generic')
  const said = new Said()
  {
    await using machine = await Machine.create({
      ...base,
      kernel: generic.vmlinux,
      initramfs: await initramfs(generic),
      append: 'then=fork',
      onConsole: said.heard,
    })
    said.of(machine)
    machine.start()
    await said.until('before')
    await machine.snapshot(saved)
    t.strictSame(saidBy(machine), { before: '0' })
  }
  using snapshot = Snapshot.open(snapshotFiles(saved))
  await using clone = await Machine.restore({ snapshot, devices: [] })
  clone.start()
  t.same(await clone.exited, { reason: 'poweroff' }, clone.console)
  t.match(saidBy(clone), { fork: /crng reseeded due to virtual machine fork/ })
})

/** What a guest that counts has said. */
class Ticks {
  readonly said: { count: number; random: string; pmem: string }[] = []
  #text = ''
  #waiting: (() => void) | undefined
  readonly take = (bytes: Uint8Array): void => {
    const lines = (this.#text + Buffer.from(bytes).toString('latin1')).split('\n')
    this.#text = lines.pop()!
    for (const line of lines) {
      const match = /^tick=(\d+) (\w+) (\w+)/.exec(line)
      if (match) this.said.push({ count: Number(match[1]), random: match[2]!, pmem: match[3]! })
    }
    this.#waiting?.()
  }
  async until(length: number): Promise<void> {
    while (this.said.length < length) await new Promise<void>((resolve) => (this.#waiting = resolve))
  }
}

void t.test('Linux with two processors goes on from a snapshot, on all of its devices', async (t) => {
  const disk = blob('first disk', '', 4 * MIB)
  const devices = (path: string): DeviceSpec[] => [
    { kind: 'pmem', name: 'blobs', blobs: [{ name: 'one', path: blob('dax', 'first', 2 * MIB) }] },
    { kind: 'blk', name: 'disk', path },
    { kind: 'rng' },
  ]
  const saved = join(folder, 'saved')
  const copy = join(folder, 'second disk')
  const [first, second] = [new Ticks(), new Ticks()]
  {
    const more = { append: 'then=count', cpus: 2, devices: devices(disk), onConsole: first.take }
    await using machine = await Machine.create({ ...base, ...more })
    machine.start()
    await first.until(2)
    await machine.snapshot(saved, { alongside: () => copyFileSync(disk, copy) })
    await first.until(first.said.length + 3)
  }
  using snapshot = Snapshot.open(snapshotFiles(saved))
  await using clone = await Machine.restore({ snapshot, devices: devices(copy), onConsole: second.take })
  clone.start()
  await second.until(3)
  await clone.stop()
  for (const { said } of [first, second]) {
    said.forEach(({ count, pmem }, i) => {
      t.equal(count, said[0]!.count + i, 'no tick is lost or comes twice')
      t.equal(pmem, 'first')
    })
  }
  t.ok(
    second.said[0]!.count > 2 && second.said[0]!.count <= first.said.at(-1)!.count,
    `it went on at ${second.said[0]!.count}`,
  )
  // The kernel has drawn some bytes ahead, which are in its memory and so in both.
  const last = second.said.at(-1)!.random
  t.notOk(
    first.said.some(({ random }) => random === last),
    'the device gives each its own random numbers',
  )
  const { count } = second.said.at(-1)!
  const at = (count % 64) * SECTOR
  t.equal(readFileSync(copy).toString('latin1', at, at + 6), String(count).padStart(6, '0'))
})

void t.test("a guest's root that turns on its devices costs no more than its own machine", async (t) => {
  const devices = (name: string): DeviceSpec[] => [
    { kind: 'pmem', name: 'blobs', blobs: [{ name: 'one', path: blob(`${name} dax`, 'first', 2 * MIB) }] },
    { kind: 'blk', name: 'disk', path: blob(`${name} disk`, '', 4 * MIB) },
    { kind: 'rng' },
    { kind: 'vsock', cid: 3 },
    { kind: 'net', name: 'eth0', mac: '02:00:00:00:00:09', tap: undefined },
    { kind: 'balloon' },
  ]
  const ticks = new Ticks()
  await using neighbour = await Machine.create({
    ...base,
    append: 'then=count',
    devices: devices('neighbour'),
    onConsole: ticks.take,
  })
  const log: string[] = []
  let survived = (): void => undefined
  const quiet = new Promise<void>((resolve) => (survived = resolve))
  await using machine = await Machine.create({
    ...base,
    append: 'then=attack',
    devices: devices('hostile'),
    onLog: (line) => log.push(line),
    onConsole: () => {
      if (machine.console.includes('quiet=')) survived()
    },
  })
  neighbour.start()
  machine.start()
  await Promise.race([quiet, machine.exited])
  t.match(machine.console, /^quiet=0\r?$/m)
  t.notMatch(machine.console, /^not bound/m, "each device is the kernel's driver's again")
  t.ok(log.length > 0, `${log.length} lines of the devices: ${log[0]}`)
  await ticks.until(2)
  const before = ticks.said.length
  const late = setTimeout(() => void machine.stop(), PATIENCE)
  const exit = await machine.exited
  clearTimeout(late)
  t.ok(
    exit.reason !== 'internal-error' || exit.detail!.startsWith('KVM internal error'),
    JSON.stringify(exit),
  )
  await ticks.until(Math.max(before, ticks.said.length) + 2)
  const counts = ticks.said.map(({ count }) => count)
  t.strictSame(
    counts,
    [...counts.keys()].map((i) => i + 1),
    'the neighbour loses no tick',
  )
})
