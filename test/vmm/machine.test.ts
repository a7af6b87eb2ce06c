import { readFileSync, readdirSync } from 'node:fs'
import t from 'tap'
import type { DeviceSpec } from '../../src/vmm/device-thread/device-spec.js'
import { POWER_PORT, RESET_PORT, RESET_VALUE } from '../../src/vmm/devices/power.js'
import { Machine, type MachineConfig } from '../../src/vmm/machine.js'
import { ECAM, MIB, PCI_WINDOW } from '../../src/vmm/memory/layout.js'
import { noKvm } from '../kvm/guest.js'
import { code, kernelImage, scratch } from './kernels.js'

const skip = noKvm()
const POWER_OFF = code.out(POWER_PORT, 0x34)
const RESET = code.out(RESET_PORT, RESET_VALUE)

type Config = Partial<MachineConfig>
const config = (kernel: string, more: Config = {}): MachineConfig => ({
  kernel,
  memory: 64 * MIB,
  cpus: 1,
  devices: [],
  ...more,
})

const image = (...parts: readonly (readonly number[])[]): Buffer => kernelImage(Uint8Array.from(parts.flat()))

t.test('each way to end has its name', { skip }, async (t) => {
  const file = scratch(t)
  const ends: Record<string, [Buffer, unknown]> = {
    poweroff: [image(POWER_OFF), { reason: 'poweroff' }],
    reset: [image(RESET), { reason: 'reset' }],
    'reset by the keyboard controller': [image(code.out(0x64, 0xfe)), { reason: 'reset' }],
    panic: [
      image(code.print('Kernel panic - not syncing: test\n'), RESET),
      { reason: 'panic', detail: 'Kernel panic - not syncing: test' },
    ],
    halt: [image(code.print('reboot: System halted\n'), code.halt), { reason: 'halt' }],
    'triple fault': [image(code.crash), { reason: 'triple-fault' }],
  }
  for (const [name, [kernel, wanted]] of Object.entries(ends)) {
    await using machine = await Machine.create(config(file('kernel', kernel)))
    machine.start()
    t.match(await machine.exited, wanted, name)
  }
})

t.test('the console is kept, told, and counted', { skip }, async (t) => {
  const file = scratch(t)
  const told: string[] = []
  const kernel = file('kernel', image(code.print('one\ntwo\nwithout an end'), POWER_OFF))
  await using machine = await Machine.create(
    config(kernel, { onConsole: (bytes) => told.push(Buffer.from(bytes).toString()) }),
  )
  machine.start()
  await machine.exited
  t.equal(machine.console, 'one\ntwo\nwithout an end')
  t.equal(told.join(''), machine.console)
  const { consoleBytes, accesses, exits } = machine.statistics
  t.equal(consoleBytes, 22)
  t.match(accesses, { serial: 22, power: 1, 'pci-config': 0, 'ignored-memory': 0 })
  t.ok(exits['io']! >= 2)
})

t.test('a guest reads PCI without an exit, and writes with one', { skip }, async (t) => {
  const file = scratch(t)
  const device = ECAM + 8 * 4096
  const kernel = image(
    [...code.load32(ECAM), ...code.sendEax],
    [...code.load32(device), ...code.sendEax],
    code.store32(device + 4, 6),
    [...code.load32(PCI_WINDOW + 0x10), ...code.sendEax],
    [...code.load32(0xd000_0000), ...code.sendEax],
    POWER_OFF,
  )
  let bytes = Buffer.alloc(0)
  await using machine = await Machine.create(
    config(file('kernel', kernel), {
      devices: [{ kind: 'rng' }],
      onConsole: (part) => (bytes = Buffer.concat([bytes, part])),
    }),
  )
  machine.start()
  t.match(await machine.exited, { reason: 'poweroff' })
  const words = Array.from({ length: 4 }, (_, i) => bytes.readUInt32LE(i * 4))
  t.same(words, [0x0d57_8086, 0x1044_1af4, 0x0001_ffff, 0xffff_ffff])
  t.match(machine.statistics.accesses, { 'pci-config': 1, 'pci-bar': 1 })
})

t.test('devices come and go while the guest runs', { skip }, async (t) => {
  const file = scratch(t)
  const [disk, layer] = [file('disk', Buffer.alloc(MIB)), file('layer', Buffer.alloc(3 * MIB))]
  const slot = ECAM + 2 * 8 * 4096
  const kernel = image(
    code.waitWhile(slot, 0xffff_ffff),
    [...code.load32(slot), ...code.sendEax],
    code.print('\n'),
    code.waitUntil(slot, 0xffff_ffff),
    code.print('gone\n'),
    code.spin,
  )
  let bytes = Buffer.alloc(0)
  let heard = (): void => undefined
  await using machine = await Machine.create(
    config(file('kernel', kernel), {
      devices: [{ kind: 'vsock', cid: 3 }],
      onConsole: (part) => {
        bytes = Buffer.concat([bytes, part])
        heard()
      },
    }),
  )
  const line = (wanted: Buffer): Promise<void> =>
    new Promise((resolve) => {
      heard = () => {
        if (bytes.includes(wanted)) resolve()
      }
      heard()
    })
  const [vsock] = machine.devices
  t.same(machine.devices, [{ id: vsock!.id, slot: 1 }])
  machine.start()
  const rng = await machine.plug({ kind: 'rng' })
  t.equal(rng.slot, 2)
  await line(Buffer.of(0xf4, 0x1a, 0x44, 0x10, 10))
  await machine.unplug(rng)
  await line(Buffer.from('gone'))
  await t.rejects(machine.unplug(rng), { code: 'NOT_FOUND' })

  const descriptors = (): number => readdirSync('/proc/self/fd').length
  const maps = (): number => readFileSync('/proc/self/maps', 'latin1').split(layer).length
  const before = [descriptors(), maps()]
  const all: DeviceSpec[] = [
    { kind: 'blk', name: 'disk', path: disk },
    { kind: 'pmem', name: 'images', blobs: [{ name: 'layer', path: layer }] },
    { kind: 'pmem', name: 'more', blobs: [{ name: 'layer', path: layer }] },
  ]
  for (let i = 0; i < 3; i++) {
    const plugged = await Promise.all(all.map((spec) => machine.plug(spec)))
    t.same(
      plugged.map((each) => each.slot),
      [2, 3, 4],
    )
    await Promise.all(plugged.map((each) => machine.unplug(each)))
  }
  const refused: [DeviceSpec, Record<string, unknown>][] = [
    [{ kind: 'vsock', cid: 4 }, { code: 'CONFLICT' }],
    [
      { kind: 'blk', name: 'none', path: '/nonexistent' },
      { code: 'INVALID_ARGUMENT', message: /nonexistent/ },
    ],
    [
      { kind: 'pmem', name: 'none', blobs: [{ name: 'empty', path: file('empty', Buffer.alloc(0)) }] },
      { code: 'INVALID_ARGUMENT' },
    ],
  ]
  for (const [spec, error] of refused)
    await t.rejects(machine.plug(spec), { name: 'CoracleError', ...error }, JSON.stringify(spec))
  await t.rejects(machine.control(vsock!, {}), { code: 'NOT_IMPLEMENTED' })
  const many = await Promise.all(Array.from({ length: 30 }, () => machine.plug({ kind: 'rng' })))
  await t.rejects(machine.plug({ kind: 'rng' }), { code: 'CONFLICT', message: /31 devices/ })
  await Promise.all(many.map((each) => machine.unplug(each)))
  t.same([descriptors(), maps()], before, 'nothing of them stays')

  const late = machine.plug(all[0]!)
  const end = machine.stop()
  await late.catch((error: unknown) => t.match(error, { code: 'NOT_RUNNING' }))
  await end
  await t.rejects(machine.plug({ kind: 'rng' }), { code: 'NOT_RUNNING' })
})

t.test('a machine stands still until it is started, pauses, and is stopped', { skip }, async (t) => {
  const file = scratch(t)
  await using machine = await Machine.create(config(file('kernel', image(code.spin)), { cpus: 2 }))
  machine.start()
  t.throws(() => machine.start(), /running/)
  await machine.pause()
  await machine.pause()
  machine.resume()
  await machine.stop()
  t.same(await machine.exited, { reason: 'stopped' })
  await machine.stop()
  machine.resume()
})

t.test('a guest that says it halted, again and again, is neither ended nor set free', { skip }, async (t) => {
  const file = scratch(t)
  const say = code.print('reboot: System halted\n')
  const back = -(say.length + 5)
  const kernel = image(say, [0xe9, back & 0xff, (back >> 8) & 0xff, 0xff, 0xff])
  let said = 0
  let more = (): void => undefined
  const lines = (): Promise<void> => new Promise((resolve) => (more = resolve))
  await using machine = await Machine.create(
    config(file('kernel', kernel), { onConsole: () => ++said % 20 === 0 && more() }),
  )
  machine.start()
  for (let i = 0; i < 5; i++) {
    await lines()
    await machine.pause()
    const { serial } = machine.statistics.accesses
    // Longer than the look at the processors waits before it comes again.
    await new Promise((resolve) => setTimeout(resolve, 50))
    t.equal(machine.statistics.accesses['serial'], serial, 'paused, it stands still')
    machine.resume()
  }
  await machine.stop()
  t.same(await machine.exited, { reason: 'stopped' })
})

t.test('a machine tells what it is made of', { skip }, async (t) => {
  const file = scratch(t)
  const blobs = [{ name: 'one', path: file('blob', new Uint8Array(2 * MIB)) }]
  const machine = await Machine.create(
    config(file('kernel', image(code.spin)), {
      devices: [{ kind: 'pmem', name: 'images', blobs }, { kind: 'rng' }],
    }),
  )
  const described = await machine.describe()
  t.match(described, {
    state: 'created',
    cpus: 1,
    pci: [
      { slot: 0, id: '8086:0d57' },
      {
        slot: 1,
        id: '1af4:105b',
        virtio: { name: 'pmem images', queues: [{ enabled: false, maximum: 64 }] },
      },
      { slot: 2, id: '1af4:1044', bars: [{ index: 0, size: 32768 }], virtio: { name: 'rng', status: [] } },
    ],
  })
  t.match(
    described.memory.map(({ name, address, size, readOnly }) => [name, address, size, readOnly]),
    [
      ['ram', '0x0', 64 * MIB, false],
      ['ECAM', '0xe0000000', MIB, true],
      ['pmem images', '0x100000000', Number, true],
    ],
  )
  t.same(JSON.parse(JSON.stringify(described)), described, 'plain data')
  await machine.close()
  await t.rejects(machine.describe(), { code: 'NOT_RUNNING' })
})

t.test('a machine that never ran can be closed', { skip }, async (t) => {
  const file = scratch(t)
  const machine = await Machine.create(
    config(file('kernel', image(code.spin)), { devices: [{ kind: 'vsock', cid: 3 }] }),
  )
  await machine.close()
  await machine.close()
  t.same(await machine.exited, { reason: 'stopped' })
})

t.test('what cannot be made is refused, and nothing of it stays', { skip }, async (t) => {
  const file = scratch(t)
  const kernel = file('kernel', image(code.spin))
  // Node keeps some descriptors of the first worker.
  await (await Machine.create(config(kernel))).close()
  const descriptors = (): number => readdirSync('/proc/self/fd').length
  const before = descriptors()
  const refused: [Config, Record<string, unknown>][] = [
    [{ cpus: 0 }, { code: 'INVALID_ARGUMENT' }],
    [{ cpus: 1.5 }, { code: 'INVALID_ARGUMENT' }],
    [{ cpus: 17 }, { code: 'INVALID_ARGUMENT', message: /1 to 16 processors/ }],
    [{ memory: 8 * MIB }, { code: 'MEMORY_SIZE' }],
    [{ memory: 2 ** 46 }, { code: 'MEMORY_SIZE' }],
    [{ kernel: file('text', Buffer.from('hello')) }, { code: 'KERNEL_INVALID' }],
    [{ kernel: '/nonexistent' }, { code: 'KERNEL_INVALID' }],
    [{ append: 'x'.repeat(3000) }, { code: 'INVALID_ARGUMENT' }],
    [
      { devices: [{ kind: 'blk', name: 'disk', path: '/nonexistent' }] },
      { code: 'INVALID_ARGUMENT', message: /\/nonexistent/ },
    ],
  ]
  for (const [more, wanted] of refused)
    await t.rejects(
      Machine.create(config(kernel, more)),
      { name: 'CoracleError', ...wanted },
      JSON.stringify(more),
    )
  t.equal(descriptors(), before)
})

t.test('ten machines in a row leave no descriptor and no mapping', { skip }, async (t) => {
  const file = scratch(t)
  const kernel = file('kernel', image(POWER_OFF))
  const once = async (): Promise<void> => {
    await using machine = await Machine.create(
      config(kernel, { devices: [{ kind: 'rng' }, { kind: 'vsock', cid: 3 }] }),
    )
    machine.start()
    t.match(await machine.exited, { reason: 'poweroff' })
  }
  await once()
  const before = readdirSync('/proc/self/fd').length
  for (let i = 0; i < 10; i++) await once()
  t.equal(readdirSync('/proc/self/fd').length, before)
})
