import { type Fd, SysError } from '@coracle/sys'
import {
  KVM_CAP_TSC_DEADLINE_TIMER,
  KVM_CAP_MAX_VCPUS,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  Kvm,
  type Vcpu,
  VcpuThread,
  type Vm,
} from '../kvm/index.js'
import { CoracleError } from '../errors.js'
import { writeAcpiTables } from './acpi/tables.js'
import { type BootSource, loadLinux, setBootState } from './boot/linux.js'
import { announceGeneration, newGeneration } from './devices/generation.js'
import { guestCpuid } from './cpu/cpuid.js'
import type { MachineDescription } from './description.js'
import { ConsoleLog } from './devices/console-log.js'
import { type DeviceSpec, sharesMemory } from './device-thread/device-spec.js'
import { DeviceThread } from './device-thread/device-thread.js'
import type { Plugged } from './device-thread/device-worker.js'
import { PROCESSOR_WORKER } from './device-thread/module.js'
import { ACCESS_KINDS, newAccessCounts } from './device-thread/port-handler.js'
import { IDENTITY_MAP_ADDRESS, TSS_ADDRESS, checkHostMemory } from './memory/layout.js'
import { Ram } from './memory/ram.js'
import { hostIdentity } from './snapshot/host.js'
import { type Extent, memoryPieces } from './snapshot/memory-file.js'
import { restoreProcessor, saveProcessor } from './snapshot/processor.js'
import { saveBytes } from './snapshot/saved.js'
import {
  type SavedMachine,
  type Snapshot,
  type SnapshotContent,
  type WriteOptions,
  encodeState,
  writeSnapshot,
} from './snapshot/snapshot.js'
import { describeSlots } from './memory/slots.js'
import { type MachineExit, exitOf } from './machine-exit.js'
import { newMetrics } from './metrics/device-metrics.js'

export type { Plugged } from './device-thread/device-worker.js'

/**
 * What every guest's command line begins with: no console output but what is critical, a panic resets at once, by
 * ACPI's register (with reduced hardware Linux would want EFI for it), no search for configuration mechanism 1 (there
 * is none), one serial port to probe in place of four, no tests of the kernel's own ciphers, and no waiting for lazy
 * grace periods, which is most of what loading a module takes.
 */
export const BASE_COMMAND_LINE =
  'console=ttyS0 loglevel=3 panic=-1 reboot=a pci=noearly 8250.nr_uarts=1 ' +
  'cryptomgr.notests rcupdate.rcu_expedited=1'

/** Intel SDM 4: fast string operations on, and memory write-back where no range says otherwise. */
const MSR_IA32_MISC_ENABLE = 0x1a0
const MSR_MTRR_DEF_TYPE = 0x2ff
const FAST_STRING = 1n
const MTRR_ENABLED_WRITE_BACK = 0x806n

/** Each processor is a thread, with a Node.js of its own: more than these would cost more than they give. */
const MAX_CPUS = 16

const HALTED = 'reboot: System halted'

/** Who hears of a machine. */
export interface MachineListeners {
  /** What the guest writes to its serial console, as it comes, beside the log that the machine keeps. */
  readonly onConsole?: (bytes: Uint8Array) => void
  /** What the devices have to say, one line at a time. */
  readonly onLog?: (line: string) => void
}

/** What a machine is made of; nothing of it changes later. */
export interface MachineConfig extends Omit<BootSource, 'commandLine'>, MachineListeners {
  /** Appended to {@link BASE_COMMAND_LINE}. @default '' */
  readonly append?: string
  /** The hypervisor: a path, or an open descriptor's. @default '/dev/kvm' */
  readonly kvm?: string
  /** Bytes. */
  readonly memory: number
  /** Virtual processors, 1 to 16. */
  readonly cpus: number
  /** In the order of their PCI slots, from 1. More can come later: {@link Machine.plug}. */
  readonly devices: readonly DeviceSpec[]
}

/** A machine that goes on where another was saved. */
export interface RestoreConfig extends MachineListeners {
  /** Stays the caller's, who may close it once the machine is made. */
  readonly snapshot: Snapshot
  /** @see MachineConfig.kvm */
  readonly kvm?: string
  /** Those of the saved machine, kind for kind and in the order of the bus, on files of their own. */
  readonly devices: readonly DeviceSpec[]
  /**
   * A copy of the memory in place of a private mapping of the snapshot's file, for devices that share the guest's
   * memory with another process (vhost-user) and are plugged later. @default whether one of `devices` does
   */
  readonly copyMemory?: boolean
}

/** Who takes a snapshot in pieces. The machine stands still until {@link SnapshotSink.state} has resolved. */
export interface SnapshotSink {
  /** From here on the guest and its devices do nothing. @param size bytes of the memory */
  begin(size: number): void
  /** A part of the memory that is not all zero, at most 1 MiB; in order. The bytes are the guest's own memory. */
  memory(offset: number, bytes: Uint8Array): Promise<void>
  /** The content of the file `state`. */
  state(bytes: Buffer): Promise<void>
}

/** What {@link Machine.snapshot} may be told. The machine stands still while `alongside` is called. */
export interface SnapshotOptions extends WriteOptions {
  /** Kept in the snapshot for whoever restores it: JSON. @default null */
  readonly details?: unknown
}

const CHIPS = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
const IRQCHIP_SIZE = 520

/** What a machine cost so far. */
export interface MachineStatistics {
  /** Returns to user space by KVM's reason, over all processors. */
  readonly exits: Readonly<Record<string, number>>
  /** Accesses by where they went. */
  readonly accesses: Readonly<Record<string, number>>
  readonly consoleBytes: number
}

/** Connections over vsock. @see DeviceThread */
export interface MachineVsock {
  /** Accepts the guest's connections to host port `port`. The handler owns the descriptor: a non-blocking socket. */
  listen(port: number, handler: (fd: Fd) => void): void
  unlisten(port: number): void
  /** Connects to a port of the guest; undefined where it refuses. */
  connect(port: number): Promise<Fd | undefined>
}

/** What a machine's constructor takes over. */
interface MachineParts {
  readonly kvm: Kvm
  readonly vm: Vm
  readonly ram: Ram
  readonly vcpus: readonly Vcpu[]
  readonly devices: readonly DeviceSpec[]
  /** The devices' state, as it came from a snapshot. */
  readonly restore: unknown
}

type State = 'created' | 'running' | 'paused' | 'ended'

/**
 * One virtual machine in this process: its memory, processors (a thread each) and devices (one thread). Made by
 * {@link create}, it stands still until {@link start}; it ends once, for one reason; {@link close} gives all back.
 */
export class Machine implements AsyncDisposable {
  readonly #kvm: Kvm
  readonly #vm: Vm
  readonly #ram: Ram
  readonly #vcpus: readonly Vcpu[]
  readonly #threads: readonly VcpuThread[]
  readonly #devices: DeviceThread
  readonly #console = new ConsoleLog()
  readonly #accesses: Float64Array
  readonly #restored: boolean
  #state: State = 'created'
  #end!: (exit: MachineExit) => void
  #closing: Promise<void> | undefined
  #ending: Promise<void> | undefined
  #haltSeen = ''
  /** A look at the processors is under way, for which they stand still. */
  #looking = false
  #checkingHalt = false
  #initial: readonly Plugged[] = []

  /** Settles when the guest has ended, for whatever reason; never rejects. The machine still needs {@link close}. */
  readonly exited: Promise<MachineExit>
  readonly vsock: MachineVsock

  private constructor(config: MachineListeners, parts: MachineParts) {
    this.#restored = parts.restore !== undefined
    this.#kvm = parts.kvm
    this.#vm = parts.vm
    this.#ram = parts.ram
    this.#vcpus = parts.vcpus
    const accesses = newAccessCounts()
    this.#accesses = new Float64Array(accesses)
    this.exited = new Promise((resolve) => (this.#end = resolve))
    this.#ram.install(this.#vm)
    const { devices, restore } = parts
    const init = { vm: this.#vm.share(), ram: this.#ram.share(), devices, restore, metrics: newMetrics() }
    this.#devices = new DeviceThread(init, this.#vcpus.length, {
      console: (bytes) => this.#write(bytes, config.onConsole),
      log: (line) => config.onLog?.(line),
      failed: (message) => void this.#finish(() => ({ reason: 'internal-error', detail: message })),
    })
    this.vsock = {
      listen: (port, handler) => this.#devices.listen(port, handler),
      unlisten: (port) => this.#devices.unlisten(port),
      connect: (port) => this.#devices.connect(port),
    }
    const handler = { program: PROCESSOR_WORKER, data: accesses }
    this.#threads = this.#vcpus.map((vcpu, i) => {
      const channel = this.#devices.channels[i]!
      return new VcpuThread({ vcpu: vcpu.share(), channel, handler, paused: true })
    })
    for (const thread of this.#threads)
      void thread.ended.then((end) => {
        if (end.kind !== 'stop') void this.#finish(() => exitOf(end, this.console))
      })
  }

  /**
   * Makes the machine and loads the kernel; nothing of the guest runs yet.
   * @throws CoracleError KVM_UNAVAILABLE, KERNEL_INVALID, MEMORY_SIZE, INVALID_ARGUMENT
   */
  static async create(config: MachineConfig): Promise<Machine> {
    checkHostMemory(config.memory)
    // The threads take their time to start: meanwhile the kernel is loaded.
    const { devices } = config
    const machine = Machine.#assemble(Kvm.open(config.kvm), config.cpus, (parts) => {
      return new Machine(config, {
        ...parts,
        devices,
        restore: undefined,
        ram: parts.own(Ram.create(config.memory)),
      })
    })
    try {
      const append = config.append ? ` ${config.append}` : ''
      const source = { ...config, commandLine: BASE_COMMAND_LINE + append }
      const entry = loadLinux(machine.#ram, source, writeAcpiTables(machine.#ram, config.cpus))
      newGeneration(machine.#ram)
      await machine.#ready()
      for (const vcpu of machine.#vcpus)
        vcpu.setMsrs([
          { index: MSR_IA32_MISC_ENABLE, value: FAST_STRING },
          { index: MSR_MTRR_DEF_TYPE, value: MTRR_ENABLED_WRITE_BACK },
        ])
      setBootState(machine.#vcpus[0]!, entry)
      return machine
    } catch (error) {
      await machine.close()
      throw error
    }
  }

  /**
   * Makes a machine that goes on where a snapshot was taken, once it is started. Its memory is the snapshot's file,
   * mapped and not read: it must stay as it is while the machine lives (deleting it is no change).
   * @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH, and those of {@link create}
   */
  static async restore(config: RestoreConfig): Promise<Machine> {
    const { snapshot, devices } = config
    const { memory, memorySize, cpus, machine: state } = snapshot
    checkHostMemory(memorySize)
    const kvm = Kvm.open(config.kvm)
    const machine = Machine.#assemble(kvm, cpus, (parts) => {
      snapshot.checkHost(hostIdentity(kvm))
      const ram = parts.own(
        (config.copyMemory ?? devices.some(sharesMemory))
          ? Ram.copy(memory, memorySize)
          : Ram.restore(memory.duplicate(), memorySize),
      )
      return new Machine(config, {
        ...parts,
        devices,
        restore: state.get('devices').raw,
        ram,
      })
    })
    try {
      const chips = state.get('chips').list(CHIPS.length)
      chips.forEach((chip) => machine.#vm.setIrqchip(chip.bytes(IRQCHIP_SIZE)))
      await machine.#ready()
      const processors = state.get('processors').list(cpus)
      machine.#vcpus.forEach((vcpu, i) => restoreProcessor(vcpu, processors[i]!))
      machine.#vm.setClock(state.get('clock').u64())
      newGeneration(machine.#ram)
      announceGeneration(machine.#vm)
      return machine
    } catch (error) {
      await machine.close()
      if (!(error instanceof SysError)) throw error
      throw new CoracleError(
        'SNAPSHOT_MISMATCH',
        `this host does not take the machine's state: ${error.message}`,
        {
          cause: error,
        },
      )
    }
  }

  /** @param make adds the RAM */
  static #assemble(
    kvm: Kvm,
    cpus: number,
    make: (
      parts: Pick<MachineParts, 'kvm' | 'vm' | 'vcpus'> & { own<T extends Disposable>(part: T): T },
    ) => Machine,
  ): Machine {
    const made: Disposable[] = [kvm]
    const own = <T extends Disposable>(part: T): T => {
      made.unshift(part)
      return part
    }
    try {
      const most = Math.min(MAX_CPUS, kvm.checkExtension(KVM_CAP_MAX_VCPUS))
      if (!Number.isInteger(cpus) || cpus < 1 || cpus > most)
        throw new CoracleError('INVALID_ARGUMENT', `a machine on this host has 1 to ${most} processors`)
      const vm = own(kvm.createVm())
      vm.setIdentityMapAddress(IDENTITY_MAP_ADDRESS)
      vm.setTssAddress(TSS_ADDRESS)
      vm.createIrqchip()
      const cpuid = kvm.supportedCpuid()
      const tscDeadline = kvm.checkExtension(KVM_CAP_TSC_DEADLINE_TIMER) > 0
      const vcpus = Array.from({ length: cpus }, (_, id) => {
        const vcpu = own(vm.createVcpu(id))
        vcpu.setCpuid(guestCpuid(cpuid, id, cpus, tscDeadline))
        return vcpu
      })
      return make({ kvm, vm, vcpus, own })
    } catch (error) {
      for (const part of made) part[Symbol.dispose]()
      throw error
    }
  }

  /** What the guest wrote to its console last. */
  get console(): string {
    return this.#console.toString()
  }

  get statistics(): MachineStatistics {
    const exits: Record<string, number> = {}
    for (const thread of this.#threads)
      for (const [name, count] of Object.entries(thread.exits)) exits[name] = (exits[name] ?? 0) + count
    const accesses = Object.fromEntries(ACCESS_KINDS.map((kind, i) => [kind, this.#accesses[i]!]))
    return { exits, accesses, consoleBytes: this.#console.total }
  }

  /** Memory, bus, devices and queues as they are now. @throws CoracleError NOT_RUNNING once the machine has ended */
  async describe(): Promise<MachineDescription> {
    const devices = await this.#devices.describe()
    const { exits, accesses } = this.statistics
    const memory = [...describeSlots(this.#vm), ...devices.memory].sort((a, b) => a.slot - b.slot)
    return { state: this.#state, cpus: this.#vcpus.length, memory, pci: devices.pci, exits, accesses }
  }

  /** Lets the guest run for the first time. */
  start(): void {
    if (this.#state !== 'created') throw new Error(`a machine that is ${this.#state} cannot be started`)
    this.#state = 'running'
    if (this.#restored) this.#devices.wake()
    for (const thread of this.#threads) thread.resume()
  }

  /**
   * Saves the machine into a folder that does not exist yet, for {@link restore}, and goes on as before. A machine that
   * is paused stays so. While it is saved the guest stands still, and so do its devices.
   * @throws CoracleError SNAPSHOT_UNSUPPORTED for a device that cannot be saved, CONFLICT where the folder is there,
   *   NOT_RUNNING; SysError such as ENOSPC. Nothing of the folder stays then
   */
  async snapshot(folder: string, { details = null, ...options }: SnapshotOptions = {}): Promise<void> {
    await this.#still((saved) => writeSnapshot(folder, { ...saved, details }, this.#ram, options))
  }

  /**
   * As {@link snapshot}, in pieces to whoever keeps it.
   * @param details kept for whoever restores it: JSON
   * @throws CoracleError as {@link snapshot}, what `sink` throws
   */
  async send(sink: SnapshotSink, details: unknown = null): Promise<void> {
    await this.#still(async (saved) => {
      sink.begin(this.#ram.layout.size)
      const extents: Extent[] = []
      for (const { start, end, extent } of memoryPieces(this.#ram)) {
        extents.push(extent)
        await sink.memory(start, this.#ram.mapping.bytes(start, end - start))
        // The memory is about to be unmapped.
        if (this.#ending) throw new CoracleError('NOT_RUNNING', 'the machine has ended while it was saved')
      }
      await sink.state(encodeState({ ...saved, details }, this.#ram.layout.size, extents))
    })
  }

  /** Has the machine stand still, devices and all, for `work`. */
  async #still(
    work: (saved: Pick<SnapshotContent, 'host' | 'machine'>) => Promise<void> | void,
  ): Promise<void> {
    const wasRunning = this.#state === 'running'
    if (!wasRunning && this.#state !== 'paused')
      throw new CoracleError('NOT_RUNNING', `a machine that is ${this.#state} cannot be saved`)
    await this.pause()
    try {
      const devices = await this.#devices.save()
      try {
        await work({ host: hostIdentity(this.#kvm), machine: this.#save(devices) })
      } finally {
        this.#devices.thaw()
      }
    } finally {
      if (wasRunning) this.resume()
    }
  }

  #save(devices: SavedMachine['devices']): SavedMachine {
    const msrs = this.#kvm.msrIndices()
    return {
      processors: this.#vcpus.map((vcpu) => saveProcessor(vcpu, msrs)),
      chips: CHIPS.map((chip) => saveBytes(this.#vm.getIrqchip(chip))),
      clock: String(this.#vm.getClock()),
      devices,
    }
  }

  /** The devices of {@link MachineConfig.devices}, in that order, whether they are still there or not. */
  get devices(): readonly Plugged[] {
    return this.#initial
  }

  /**
   * Puts a device into the machine, at any time until it ends. A running guest sees it once it scans its bus anew,
   * as the agent does for the host. All of the device is there when this resolves, or nothing of it.
   * @throws CoracleError INVALID_ARGUMENT for a file that cannot be used, CONFLICT where bus or addresses are full,
   * KVM_REFUSED, NOT_RUNNING where the machine has ended, or what else its kind throws
   */
  plug(spec: DeviceSpec): Promise<Plugged> {
    return this.#devices.request('plug', { spec })
  }

  /**
   * Takes a device out of the machine and closes it. A guest that has not let go of it first, for want of being asked
   * or of good will, finds ones in its place.
   * @throws CoracleError NOT_FOUND where it is gone already, NOT_RUNNING where the machine has ended
   */
  async unplug({ id }: Plugged): Promise<void> {
    await this.#devices.request('unplug', { id })
  }

  /**
   * Asks something of a device; what, is the device's to say.
   * @param request plain data, as the answer is
   * @throws CoracleError NOT_FOUND, NOT_IMPLEMENTED where it takes no requests, or what the device throws
   */
  control({ id }: Plugged, request: unknown): Promise<unknown> {
    return this.#devices.request('control', { id, body: request })
  }

  /** Makes the processors stand still; devices go on with what they have. */
  async pause(): Promise<void> {
    if (this.#state === 'running') this.#state = 'paused'
    if (this.#state === 'paused') await this.#standStill()
  }

  resume(): void {
    if (this.#state !== 'paused') return
    this.#state = 'running'
    this.#goOn()
  }

  /** Ends the guest as by pulling the plug. */
  async stop(): Promise<void> {
    await this.#finish(() => ({ reason: 'stopped' }))
  }

  /** Ends the guest if need be and gives back threads, memory and descriptors. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      await this.stop()
      for (const vcpu of this.#vcpus) vcpu.close()
      this.#vm.close()
      this.#kvm.close()
      this.#ram.close()
    })()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #ready(): Promise<void> {
    this.#initial = await this.#devices.ready
    await Promise.all(this.#threads.map((thread) => thread.ready))
  }

  /** Ends the machine once; who comes later waits for the same end. @param exit called when all is quiet */
  #finish(exit: () => MachineExit): Promise<void> {
    this.#ending ??= (async () => {
      this.#state = 'ended'
      await Promise.all(this.#threads.map((thread) => thread.stop()))
      // What the guest wrote last is still on its way here.
      await this.#devices.stop()
      this.#end(exit())
    })()
    return this.#ending
  }

  #write(bytes: Uint8Array, onConsole: ((bytes: Uint8Array) => void) | undefined): void {
    this.#console.append(bytes)
    onConsole?.(bytes)
    this.#haltSeen = (this.#haltSeen + Buffer.from(bytes).toString('latin1')).slice(-256)
    if (!this.#haltSeen.includes(HALTED)) return
    this.#haltSeen = ''
    void this.#checkHalt()
  }

  /** The words on the console may be anybody's, and as often as they like: the processors' state is what counts. */
  async #checkHalt(): Promise<void> {
    if (this.#checkingHalt) return
    this.#checkingHalt = true
    for (let tries = 0; tries < 50 && this.#state === 'running'; tries++) {
      this.#looking = true
      await this.#standStill()
      this.#looking = false
      if (this.#ending) return
      if (this.#vcpus.every((vcpu) => vcpu.isHaltedForGood())) return this.#finish(() => ({ reason: 'halt' }))
      this.#goOn()
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    this.#checkingHalt = false
  }

  async #standStill(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.pause()))
  }

  /** Lets the processors run unless somebody wants them to stand still. */
  #goOn(): void {
    if (this.#state !== 'running' || this.#looking) return
    for (const thread of this.#threads) thread.resume()
  }
}
