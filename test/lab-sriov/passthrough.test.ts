import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { type Socket, connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Fd, O_RDWR } from '@coracle/sys'
import { run, toolCommand } from '../../src/debian/index.js'
import { readOwner } from '../../src/isolation/liveness.js'
import {
  HostPci,
  checkUnclaimed,
  claimDevices,
  createFunctions,
  getPort,
  physicalFunction,
  physicalFunctions,
  releaseDevices,
} from '../../src/sriov/index.js'
import { guestKernel } from '../../src/kernel/index.js'
import { Machine } from '../../src/vmm/machine.js'
import { Host, collect, leftovers } from '../e2e/host.js'
import { Said, busyboxInitramfs, saidBy } from '../lab/guest.js'

/*
 * A container drives a virtual function of a real driver's making: in the lab's machine with an adapter and an IOMMU.
 * Never on a host as it is, whose adapters have other work.
 */

const OURS = '10.9.0.1'
const THEIRS = '10.9.0.2'
/** As a network derives it from the address: whoever has that next is found by those who remember it. */
const MAC = '02:42:0a:09:00:02'
const PORT = 7
const BYTES = 1 << 18
const FIRST = 'igbvf'

const WORKLOAD = [
  'uname -r',
  'ip -o link show eth0',
  'readlink /sys/class/net/eth0/device/driver',
  // The link comes up a moment after its interface.
  `n=0; until ping -c 1 -W 10 ${OURS}; do n=$((n + 1)); [ $n -lt 30 ] || exit 9; done`,
  'echo ready',
  `nc -l -p ${PORT} -e cat`,
].join(' && ')

/** A guest that looks for an adapter until it has one, lets go of it, and looks again once the host has taken it. */
const PLUGGED = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "failed=$module"; done
echo "up=1"
until [ -e /sys/class/net/eth0 ]; do echo 1 > /sys/bus/pci/rescan; done
echo "driver=$(basename $(readlink /sys/class/net/eth0/device/driver))"
echo 1 > $(readlink -f /sys/class/net/eth0/device)/remove
echo "gone=$([ -e /sys/class/net/eth0 ] || echo yes)"
until [ "$(dd if=/dev/vda bs=512 skip=4 count=1 iflag=direct 2>/dev/null | head -c 4)" = gone ]; do sleep 0.2; done
echo 1 > /sys/bus/pci/rescan
echo "after=$([ -e /sys/class/net/eth0 ] || echo none)"
poweroff -f
`

const pci = new HostPci()

async function modprobe(name: string): Promise<void> {
  const { argv, env } = await toolCommand('modprobe')
  const { status, stderr } = await run([...argv, name], { env: { ...process.env, ...env } })
  if (status !== 0) throw new Error(`modprobe ${name}: ${stderr}`)
}

/** A connection to the container, which says that it is ready a moment before it listens. */
async function reach(tries = 100): Promise<Socket> {
  const socket = connect(PORT, THEIRS)
  try {
    await once(socket, 'connect')
    return socket
  } catch (error) {
    if (tries === 0) throw error
    await sleep(100)
    return reach(tries - 1)
  }
}

/** Sends bytes to the container, which sends them back. @returns both sums */
async function echo(): Promise<[sent: string, back: string]> {
  const socket = await reach()
  const payload = randomBytes(BYTES)
  socket.end(payload)
  const back = createHash('sha256')
  for await (const part of socket) back.update(part as Buffer)
  return [createHash('sha256').update(payload).digest('hex'), back.digest('hex')]
}

/** The run folders of the containers that have devices. */
const owners = (folder: string): string[] =>
  readdirSync(folder)
    .filter((name) => name.endsWith('.json'))
    .map((name) => (JSON.parse(readFileSync(join(folder, name), 'utf8')) as { owner: string }).owner)

/** Whether the process has a device of VFIO's open. */
function drives(pid: number): boolean {
  try {
    const links = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))
    return links.some((link) => link.includes('vfio-device'))
  } catch {
    return false
  }
}

const skip = process.env['CORACLE_LAB'] !== 'emulated' && 'this is not the lab: npm run lab -- --sriov'

t.test('a container drives a virtual function', { timeout: 1_100_000, skip }, async (t) => {
  const host = await Host.create()
  t.teardown(() => host.remove())
  process.env['CORACLE_RUN'] = host.run
  const [adapter] = physicalFunctions()
  const name = adapter!.interface!
  createFunctions(adapter!, 2)
  const [first] = physicalFunction(name).functions
  const { address } = first!
  const driver = (): string | undefined => pci.find(address).driver
  const device = `sriov=${name},mac=${MAC},ip=${THEIRS}/24`
  t.equal(driver(), FIRST, 'the host has it at first')
  execFileSync('ip', ['address', 'add', `${OURS}/24`, 'dev', name])

  await t.test('by its own driver, with the address and the wire that it was given', async (t) => {
    const container = host.spawn(
      'run',
      '--network',
      'none',
      '--device',
      device,
      'busybox',
      'sh',
      '-c',
      WORKLOAD,
    )
    container.stdin!.end()
    const ended = collect(container)
    const ready = new Promise<void>((resolve) => {
      let seen = ''
      container.stdout!.on('data', (part: Buffer) => {
        if ((seen += part.toString()).includes('ready\n')) resolve()
      })
    })
    // Where it ends before that, its output says why.
    if ((await Promise.race([ready, ended])) === undefined) {
      t.equal(driver(), 'vfio-pci')
      t.match(
        getPort(pci.interfaceIndex(name), first!.index),
        { mac: MAC },
        'the adapter holds it to its address',
      )

      const other = t.testdir()
      await t.rejects(claimDevices(other, [{ kind: 'pci', address }]), { code: 'DEVICE_IN_USE' })
      t.throws(() => checkUnclaimed(physicalFunction(name).functions), { code: 'DEVICE_IN_USE' })
      const [sent, back] = await echo()
      t.equal(back, sent, 'what the host sends over the adapter comes back')
    }
    const { status, stdout, stderr } = await ended
    t.equal(status, 0, stderr)
    const [release, link, theirs] = stdout.toString().split('\n')
    t.notMatch(release, /cloud/, 'the kernel that has its driver')
    t.match(link, `link/ether ${MAC}`)
    t.match(theirs, new RegExp(`/drivers/${FIRST}$`))
    t.match(stdout.toString(), /1 packets received/)
    t.equal(driver(), FIRST, 'the host has it again')
    t.not(getPort(pci.interfaceIndex(name), first!.index).mac, MAC, 'which chooses an address again')
  })

  await t.test('a network of virtual functions: a process container and a microVM on it', async (t) => {
    const ok = async (...words: string[]): Promise<string> => {
      const { status, stdout, stderr } = await host.coracle(words)
      if (status !== 0) throw new Error(`coracle ${words.join(' ')}: ${status} ${stderr}`)
      return stdout.toString()
    }
    // Under which name depends on who came back first.
    const isBack = (): boolean => pci.find(address).interface !== undefined && owners(folder).length === 0
    const folder = join(host.run, 'devices')
    const create = ['network', 'create', '-d', 'sriov', '--subnet', '10.9.0.0/24', '-o']
    t.match(await host.coracle([...create, 'parent=lo', 'slow']), { status: 125, stderr: /sriov ls/ })
    await ok(...create, `parent=${name}`, 'fast')
    const answering = 'while true; do nc -l -p 7 -e cat; done'
    await ok(
      'run',
      '-d',
      '--name',
      'plain',
      '--isolation',
      'process',
      '--network',
      'fast',
      'busybox',
      'sh',
      '-c',
      answering,
    )
    t.equal(pci.find(address).interface, undefined, 'it is in the container')
    t.match(await ok('exec', 'plain', 'readlink', '/sys/class/net/eth0/device/driver'), `/drivers/${FIRST}\n`)
    const { Networks } = JSON.parse(await ok('inspect', '-f', '{{json .NetworkSettings}}', 'plain')) as {
      Networks: object
    }
    t.match(Networks, { fast: { IPAddress: THEIRS, MacAddress: MAC, Gateway: OURS } })
    t.match(await ok('exec', 'plain', 'ip', 'link', 'show', 'eth0'), `link/ether ${MAC}`)
    const [sent, back] = await echo()
    t.equal(back, sent, 'what the host sends over the adapter comes back')
    const script = [
      'ip -o link show eth0',
      `n=0; until ping -c 1 -W 10 ${OURS}; do n=$((n + 1)); [ $n -lt 30 ] || exit 9; done`,
      `ping -c 1 -W 10 ${THEIRS}`,
    ].join(' && ')
    const guest = await host.coracle(['run', '--network', 'fast', 'busybox', 'sh', '-c', script])
    t.match(
      { ...guest, stdout: guest.stdout.toString() },
      { status: 0, stdout: /link\/ether 02:42:0a:09:00:03[^]*from 10.9.0.1[^]*from 10.9.0.2/ },
    )
    t.equal(owners(folder).length, 1, 'the microVM gave its own back')
    const [owner] = owners(folder)
    process.kill(readOwner(join(owner!, 'lock'))!.pid, 'SIGKILL')
    // Nobody looks but the networks' keeper.
    for (const end = Date.now() + 60_000; !isBack() && Date.now() < end;) await sleep(100)
    t.ok(isBack(), 'the host has it again')
    t.same(owners(folder), [])
    t.not(getPort(pci.interfaceIndex(name), first!.index).mac, MAC)
    await ok('rm', '-f', 'plain')
    await ok('network', 'rm', 'fast')
  })

  await t.test('a group that the host uses is not given away', async (t) => {
    // Functions of the chipset: its disks, and one that is no bridge and has no driver.
    await modprobe('ahci')
    const isBridge = (one: string): boolean =>
      readFileSync(join(pci.folder(one), 'class'), 'utf8').startsWith('0x06')
    const shared = pci
      .addresses()
      .filter((one) => pci.find(one).driver === undefined && !isBridge(one))
      .find((one) => pci.groupOf(pci.find(one)).some(({ driver: its }) => its === 'ahci'))
    await t.rejects(claimDevices(t.testdir(), [{ kind: 'pci', address: shared! }]), {
      code: 'DEVICE_UNUSABLE',
      message: /shares its IOMMU group with .*\(ahci\)/,
    })
    t.equal(pci.find(shared!).driver, undefined)
  })

  await t.test('it is plugged into a machine that runs, and taken out of it', async (t) => {
    const folder = t.testdir({ owner: {}, signal: Buffer.alloc(1 << 20) })
    const owner = join(folder, 'owner')
    const [taken] = await claimDevices(owner, [{ kind: 'pci', address }])
    const kernel = await guestKernel('generic')
    const said = new Said()
    {
      await using machine = await Machine.create({
        kernel: kernel.vmlinux,
        initramfs: await busyboxInitramfs(kernel, folder, ['virtio_pci', 'virtio_blk', FIRST], PLUGGED),
        memory: 256 << 20,
        cpus: 1,
        devices: [{ kind: 'blk', name: 'signal', path: join(folder, 'signal') }],
        onConsole: said.heard,
      })
      said.of(machine)
      machine.start()
      await said.until('up')
      const plugged = await machine.plug({ kind: 'vfio', address, group: `/dev/vfio/${taken!.group}` })
      await said.until('gone')
      await machine.unplug(plugged)
      using signal = Fd.open(join(folder, 'signal'), O_RDWR)
      signal.pwrite(Buffer.from('gone'), 4 * 512)
      t.same(await machine.exited, { reason: 'poweroff' }, machine.console)
      t.match(saidBy(machine), { driver: FIRST, gone: 'yes', after: 'none' })
    }
    t.equal(driver(), 'vfio-pci')
    t.strictSame(await releaseDevices(owner), [])
    t.equal(driver(), FIRST)
  })

  await t.test('it is given back when all that had it are killed', async (t) => {
    const container = host.spawn('run', '--network', 'none', '--device', device, 'busybox', 'sleep', '1000')
    const ended = collect(container)
    const folder = join(host.run, 'devices')
    let monitor = 0
    while (!drives(monitor)) {
      if (container.exitCode !== null) return t.fail((await ended).stderr)
      await sleep(50)
      const [owner] = owners(folder)
      monitor = (owner !== undefined && readOwner(join(owner, 'lock'))?.pid) || 0
    }
    container.kill('SIGKILL')
    process.kill(monitor, 'SIGKILL')
    await ended
    const ls = await host.coracle(['sriov', 'ls', '--json'])
    t.match(JSON.parse(ls.stdout.toString()), [
      { Interface: name, Functions: [{ Address: address, Driver: FIRST, Container: '' }, {}] },
    ])
    t.strictSame(owners(folder), [])
    t.not(getPort(pci.interfaceIndex(name), first!.index).mac, MAC, 'which chooses an address again')
    const deleted = await host.coracle(['sriov', 'delete', name])
    t.equal(deleted.status, 0, deleted.stderr)
    t.strictSame(physicalFunction(name).functions, [])
    t.strictSame(leftovers(host.run), [])
  })
})
