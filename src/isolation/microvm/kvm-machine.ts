import { Socket } from 'node:net'
import { Fd, O_CREAT, O_TRUNC, O_WRONLY } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import { log } from '../../log.js'
import type { BalloonRequest, BalloonState } from '../../vmm/devices/balloon/balloon.js'
import type { RateLimits } from '../../vmm/devices/rate-limiter.js'
import type { DeviceSpec } from '../../vmm/device-thread/device-spec.js'
import type { NetSpec } from '../../vmm/devices/net/open.js'
import { Machine, type Plugged, type RestoreConfig, type SnapshotSink } from '../../vmm/machine.js'
import type { MachineExit } from '../../vmm/machine-exit.js'
import { Snapshot, type SnapshotFiles } from '../../vmm/snapshot/snapshot.js'
import type { VfioSpec } from '../../vmm/vfio/open.js'
import type { AdapterFiles } from '../offers.js'
import type { SandboxInterface, SandboxSpec } from '../sandbox.js'
import type { AgentClient, GuestMount } from './agent-client.js'
import type { MachineDescription } from '../../vmm/description.js'
import { type MachineUsage, processMemory } from '../stats.js'
import type { GuestDevices, GuestEnd, GuestMachine, SavedGuest } from './guest-machine.js'
import { type GuestParts, guestSize } from './guest-parts.js'
import type { IdleGuest } from './idle-guest.js'
import type { GuestShare } from './shares.js'
import type { MakerOrder } from './template.js'

/** Nothing on the host sees a guest's context id, so each may have the first that is free for guests. */
const GUEST_CID = 3
/** More than a bus holds. */
const MAX_ADAPTERS = 32
/** In nanoseconds. */
const MILLISECOND = 1_000_000
/** Bytes of the console that are kept in its file. */
const CONSOLE_LIMIT = 1 << 20

/** What a guest of ours is made of: files, any of them a descriptor's path (handover.ts). */
export interface KvmParts {
  readonly kernel: Pick<GuestParts['kernel'], 'vmlinux'>
  readonly initramfs: string
  readonly tools: Pick<GuestParts['tools'], 'path'>
  readonly disk: string
  readonly console: string
  readonly template?: SnapshotFiles
  /** A machine that was saved with its container in it, which goes on. */
  readonly saved?: SnapshotFiles
  /** Devices of the host that are bound to vfio-pci. @default none */
  readonly devices?: readonly Omit<VfioSpec, 'kind'>[]
  /** What of the host it sees, and the paths of the connections to their virtiofsds. @default none */
  readonly shares?: readonly (GuestShare & { readonly socket: string })[]
  /** @default '/dev/kvm' */
  readonly kvm?: string
  /** What an adapter on that tap of the host stands on, open. @throws CoracleError SANDBOX_FAILED */
  readonly takeAdapter?: (tap: string) => AdapterFiles
}

/** What every guest has from the start, in a template and without one; then come its own. */
export const baseDevices = (tools: string): DeviceSpec[] => [
  { kind: 'vsock', cid: GUEST_CID },
  { kind: 'rng' },
  { kind: 'pmem', name: 'tools', blobs: [{ name: 'tools', path: tools }] },
  { kind: 'balloon' },
]

/** Which of {@link baseDevices} is the balloon. */
const BALLOON = 3

const image = (disk: number, partition: number): GuestMount => ({
  device: `/dev/pmem${disk}p${partition}`,
  type: 'erofs',
  options: 'dax=always',
})

/** Where a guest of ours finds the tools. */
export const TOOLS = image(0, 1)

/** A guest in our own VMM, in this process. Its read-only images are persistent memory that it maps without a copy. */
export class KvmMachine implements GuestMachine {
  readonly devices: GuestDevices
  readonly exited: Promise<GuestEnd>
  readonly saved?: SavedGuest
  readonly agent?: AgentClient
  readonly #machine: Machine
  readonly #own: Adapting
  /** The network adapters, by where they are. */
  #adapters: readonly Adapter[]

  private constructor(
    machine: Machine,
    own: Adapting,
    devices: GuestDevices,
    adapters: readonly Adapter[],
    { now, agent }: { readonly now?: readonly NetSpec[]; readonly agent?: AgentClient } = {},
  ) {
    if (agent) this.agent = agent
    this.#machine = machine
    this.#own = own
    this.devices = devices
    this.#adapters = adapters
    if (now)
      this.saved = {
        adapters: adapters.map(({ plugged }) => plugged.slot),
        exchangeAdapters: () => this.#exchangeAdapters(now),
      }
    this.exited = machine.exited.then(endOf)
  }

  /**
   * Makes the guest of a container: from its template, where there is one, else by a boot.
   * @param idle one that was made ready from that template, which becomes this container's
   * @throws CoracleError KVM_UNAVAILABLE, KERNEL_INVALID, MEMORY_SIZE, INVALID_ARGUMENT
   */
  static async create(spec: SandboxSpec, parts: KvmParts, idle?: IdleGuest): Promise<KvmMachine> {
    const listeners = {
      onConsole: consoleFile(parts.console),
      onLog: (message: string) => log.warn('device', { container: spec.id, message }),
      ...(parts.kvm !== undefined && { kvm: parts.kvm }),
    }
    const { shares = [] } = parts
    const adapting = {
      ...(spec.networkRates && { networkRates: spec.networkRates }),
      ...(parts.takeAdapter && { takeAdapter: parts.takeAdapter }),
    }
    const nets = (spec.network?.interfaces ?? []).map((each) => adapterOf(spec, each))
    const files: DeviceSpec[] = [
      {
        kind: 'pmem',
        name: 'images',
        blobs: spec.layers.map((layer, i) => ({ name: `layer ${i}`, path: layer.path })),
      },
      { kind: 'blk', name: 'writable', path: parts.disk, limits: diskLimits(spec) },
    ]
    const own: DeviceSpec[] = [
      ...files,
      ...nets,
      ...shares.map(({ tag, socket }) => ({ kind: 'fs' as const, tag, socket })),
      ...(parts.devices ?? []).map((device) => ({ kind: 'vfio' as const, ...device })),
    ]
    const devices = {
      layers: spec.layers.map((_, i) => image(1, i + 1)),
      upper: { device: '/dev/vda', type: 'ext4' },
      shares,
    }
    const base = baseDevices(parts.tools.path)
    if (parts.saved) {
      using snapshot = Snapshot.open(parts.saved)
      const before = [...base, ...files]
      const old = savedAdapters(snapshot)
      const machine = await Machine.restore({ snapshot, devices: [...before, ...old], ...listeners })
      const adapters = found(machine.devices.slice(before.length), old)
      return new KvmMachine(machine, adapting, devices, adapters, { now: nets })
    }
    const ready = idle?.take(listeners)
    const clone =
      ready ??
      (parts.template &&
        (await restore(parts.template, base, { ...listeners, copyMemory: shares.length > 0 })))
    if (clone) {
      try {
        const plugged: Plugged[] = []
        for (const device of own) plugged.push(await clone.plug(device))
        return new KvmMachine(
          clone,
          adapting,
          { ...devices, plugged: true },
          found(plugged.slice(files.length), nets),
          ready && idle ? { agent: idle.agent } : {},
        )
      } catch (error) {
        await clone.close()
        throw error
      }
    }
    const machine = await Machine.create({
      kernel: parts.kernel.vmlinux,
      initramfs: parts.initramfs,
      ...guestSize(spec),
      devices: [...base, ...own],
      ...listeners,
    })
    const at = base.length + files.length
    return new KvmMachine(
      machine,
      adapting,
      { ...devices, tools: TOOLS },
      found(machine.devices.slice(at), nets),
    )
  }

  /** Makes a guest with no container in it, for a template. @throws CoracleError as {@link create} */
  static async bare({
    kernel,
    initramfs,
    tools,
    memory,
    cpus,
  }: Omit<MakerOrder, 'folder'>): Promise<KvmMachine> {
    const machine = await Machine.create({ kernel, initramfs, memory, cpus, devices: baseDevices(tools) })
    return KvmMachine.around(machine)
  }

  /** A guest with no container in it. */
  static around(machine: Machine): KvmMachine {
    return new KvmMachine(machine, {}, { tools: TOOLS, layers: [], upper: TOOLS }, [])
  }

  /** Saves it into a folder that is not there yet. @throws CoracleError as {@link Machine.snapshot} */
  saveTemplate(folder: string): Promise<void> {
    return this.#machine.snapshot(folder, { durable: false })
  }

  save(sink: SnapshotSink): Promise<void> {
    const bySlot = [...this.#adapters].sort((a, b) => a.plugged.slot - b.plugged.slot)
    return this.#machine.send(sink, {
      adapters: bySlot.map(({ spec: { name, mac, mtu } }) => ({ name, mac, mtu: mtu ?? null })),
    })
  }

  /** The guest has let go of the old ones. */
  async #exchangeAdapters(now: readonly NetSpec[]): Promise<void> {
    for (const { plugged } of this.#adapters) await this.#machine.unplug(plugged)
    const all: Adapter[] = []
    for (const spec of now) all.push({ spec, plugged: await this.#machine.plug(spec) })
    this.#adapters = all
  }

  async addAdapter(adapter: SandboxInterface): Promise<{ rescan: boolean }> {
    const { tap, vhost: _, ...rest } = adapter
    using files = tap === undefined ? undefined : this.#own.takeAdapter?.(tap)
    const given = files
      ? { tap: pathOf(files.tap), ...(files.vhost && { vhost: pathOf(files.vhost) }) }
      : adapter
    const spec = adapterOf(this.#own, { ...rest, ...given })
    this.#adapters = [...this.#adapters, { spec, plugged: await this.#machine.plug(spec) }]
    return { rescan: true }
  }

  async removeAdapter(
    name: string,
    letGo: (slot: number, function_: number) => Promise<void>,
  ): Promise<void> {
    const adapter = this.#adapters.find(({ spec }) => spec.name === name)
    if (!adapter) return
    await letGo(adapter.plugged.slot, 0).catch(() => undefined)
    this.#adapters = this.#adapters.filter((each) => each !== adapter)
    await this.#machine.unplug(adapter.plugged)
  }

  get console(): string {
    return this.#machine.console
  }

  listen(port: number, handler: (socket: Socket) => void): void {
    this.#machine.vsock.listen(port, (fd) => handler(new Socket({ fd: fd.release(), allowHalfOpen: true })))
  }

  start(): void {
    this.#machine.start()
  }

  work(): number {
    const { user, system } = process.cpuUsage()
    return (user + system) / 1000
  }

  async usage(): Promise<MachineUsage> {
    const { own, shared } = processMemory('self')
    const { exits, pci } = await this.#machine.describe()
    const queues = pci.flatMap(({ virtio }) =>
      (virtio?.metrics?.queues ?? []).map((each, queue) => ({ device: virtio!.name, queue, ...each })),
    )
    return { cpu: this.work() * MILLISECOND, overhead: own, guestMemory: shared, exits, queues }
  }

  pause(): Promise<void> {
    return this.#machine.pause()
  }

  async resume(): Promise<void> {
    this.#machine.resume()
  }

  async balloon(bytes?: number): Promise<number> {
    const request: BalloonRequest = bytes === undefined ? {} : { target: bytes }
    const device = this.#machine.devices[BALLOON]!
    return ((await this.#machine.control(device, request)) as BalloonState).actual
  }

  describe(): Promise<MachineDescription> {
    return this.#machine.describe()
  }

  close(): Promise<void> {
    return this.#machine.close()
  }
}

const pathOf = ({ number }: Fd): string => `/proc/self/fd/${number}`

/** What its later adapters need. */
type Adapting = Pick<SandboxSpec, 'networkRates'> & Pick<KvmParts, 'takeAdapter'>

/** A network adapter in the machine. */
interface Adapter {
  readonly spec: NetSpec
  readonly plugged: Plugged
}

const found = (plugged: readonly Plugged[], specs: readonly NetSpec[]): Adapter[] =>
  specs.map((spec, i) => ({ spec, plugged: plugged[i]! }))

/** The adapters that a saved guest had, as it needs to find them: with the same features, and no cable. */
function savedAdapters(snapshot: Snapshot): NetSpec[] {
  return snapshot.details
    .get('adapters')
    .list(MAX_ADAPTERS, true)
    .map((each) => {
      const mtu = each.get('mtu').optional()?.number(0xffff)
      const [name, mac] = [each.get('name').string(64), each.get('mac').string(17)]
      return { kind: 'net', name, mac, tap: undefined, ...(mtu !== undefined && { mtu }) }
    })
}

const rates = (bytes?: number, operations?: number): RateLimits => ({
  ...(bytes !== undefined && { bytes: { perSecond: bytes } }),
  ...(operations !== undefined && { operations: { perSecond: operations } }),
})

function diskLimits({ diskRates = {} }: SandboxSpec): { read: RateLimits; write: RateLimits } {
  const { readBps, readIops, writeBps, writeIops } = diskRates
  return { read: rates(readBps, readIops), write: rates(writeBps, writeIops) }
}

/** @throws CoracleError INVALID_ARGUMENT for an interface without a tap */
function adapterOf({ networkRates = {} }: Adapting, adapter: SandboxInterface): NetSpec {
  const { receiveBps, sendBps } = networkRates
  const limits = { receive: rates(receiveBps), transmit: rates(sendBps) }
  const { name, mac, mtu, tap, vhost } = adapter
  if (tap === undefined) throw new CoracleError('INVALID_ARGUMENT', `the interface ${name} has no tap`)
  return { kind: 'net', name, mac, mtu, tap, limits, ...(vhost !== undefined && { vhost }) }
}

/** Writes a new console log, and no more into it than {@link CONSOLE_LIMIT}: the guest decides what comes. */
function consoleFile(path: string): (bytes: Uint8Array) => void {
  const file = Fd.openOrDuplicate(path, O_WRONLY | O_CREAT | O_TRUNC)
  let at = 0
  return (bytes) => {
    const kept = bytes.subarray(0, CONSOLE_LIMIT - at)
    if (kept.length > 0) at += file.pwrite(kept, at)
  }
}

function endOf({ reason, detail }: MachineExit): GuestEnd {
  const more = detail === undefined ? '' : `: ${detail}`
  switch (reason) {
    case 'poweroff':
      return { reason: 'the guest switched itself off' }
    case 'reset':
      return { reason: 'the guest reset itself' }
    case 'halt':
      return { reason: 'the guest halted for good' }
    case 'panic':
      return { reason: `the guest's kernel panicked${more}` }
    case 'triple-fault':
      return { reason: 'the guest lost its processor to a triple fault' }
    case 'internal-error':
      return { reason: `the virtual machine failed${more}` }
    case 'stopped':
      return { reason: 'the virtual machine was stopped', killed: true }
  }
}

/** The template's machine, standing still; undefined where it is of no use: then a guest is booted. */
async function restore(
  files: SnapshotFiles,
  devices: readonly DeviceSpec[],
  rest: Omit<RestoreConfig, 'snapshot' | 'devices'>,
): Promise<Machine | undefined> {
  try {
    using snapshot = Snapshot.open(files)
    return await Machine.restore({ snapshot, devices, ...rest })
  } catch (error) {
    if (!(error instanceof CoracleError) || !error.code.includes('SNAPSHOT')) throw error
    log.warn('template-unusable', { message: `the guest boots instead: ${error.message}` })
    return undefined
  }
}
