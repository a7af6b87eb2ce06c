import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { EPOLLIN, Epoll, EventFd, Fd, Mapping, memfd } from '@coracle/sys'
import { GuestMemory, type MemoryRegion } from 'vhost-user-ts'
import { CoracleError, type ErrorCode } from '../../errors.js'
import {
  CONTINUE,
  type ExitHandler,
  ExitServer,
  KVM_CAP_READONLY_MEM,
  KVM_MEM_READONLY,
  PIO,
  type SharedExitChannel,
  type SharedVm,
  Vm,
} from '../../kvm/index.js'
import type { DeviceDescription } from '../description.js'
import { COM1, COM1_GSI, Serial } from '../devices/serial.js'
import { Vsock } from '../devices/vsock/vsock.js'
import { ECAM, ECAM_SIZE } from '../memory/layout.js'
import { Saved } from '../snapshot/saved.js'
import type { SharedRam } from '../memory/ram.js'
import { PciBus } from '../pci/bus.js'
import { GsiAllocator } from '../pci/msix.js'
import { describeSlots } from '../memory/slots.js'
import { type SavedTransport, TRANSPORT_PAGES, VirtioPci } from '../virtio-pci/transport.js'
import { DeviceMemory, type DeviceSpec, type OpenDevice, openDevice } from './device-spec.js'

/** What {@link DeviceThread} gives its worker. Descriptors stay with the giver. */
export interface DeviceWorkerData {
  readonly vm: SharedVm
  readonly ram: SharedRam
  readonly devices: readonly DeviceSpec[]
  /** @see newMetrics */
  readonly metrics: SharedArrayBuffer
  readonly channels: readonly SharedExitChannel[]
  /** eventfd of the exit channels */
  readonly doorbell: number
  /** Commands come by this port; `commandBell`, an eventfd, says that there are some. */
  readonly commands: MessagePort
  readonly commandBell: number
  /** What {@link SavedDevices} was, as it came from a file: the machine goes on from there. */
  readonly restore?: unknown
}

/** All that this thread owns, in a snapshot: plain JSON. */
export interface SavedDevices {
  readonly serial: ReturnType<Serial['save']>
  readonly bus: ReturnType<PciBus['save']>
  readonly transports: readonly SavedTransport[]
}

/** What the worker is told. */
export type DeviceCommand =
  | { readonly kind: 'listen' | 'unlisten'; readonly port: number }
  | { readonly kind: 'connect'; readonly port: number; readonly id: number }
  /** Answered by `saved` or `unsaved`. After `saved` nothing happens here until `thaw`. No processor runs. */
  | { readonly kind: 'save' | 'thaw' }
  /** The processors of a restored machine are about to run. */
  | { readonly kind: 'wake' }
  | { readonly kind: 'describe'; readonly id: number }
  | { readonly kind: 'stop' }

/** What the worker tells. A descriptor in a message changes hands with it. */
export type DeviceMessage =
  | { readonly kind: 'ready' }
  | { readonly kind: 'console'; readonly bytes: Uint8Array }
  | { readonly kind: 'log'; readonly line: string }
  | { readonly kind: 'connection'; readonly port: number; readonly fd: number }
  | { readonly kind: 'connected'; readonly id: number; readonly fd: number }
  | { readonly kind: 'saved'; readonly state: SavedDevices }
  | { readonly kind: 'failed' | 'unsaved'; readonly code: ErrorCode; readonly message: string }
  | { readonly kind: 'description'; readonly id: number; readonly description: DeviceDescription }

const CONSOLE_BATCH = 4096
const NEWLINE = 10
const MAX_LOG_LINES = 200
/** Memory slots: RAM has the first ones. */
const ECAM_SLOT = 4
const FIRST_PAGES_SLOT = 8
const FIRST_REGION_SLOT = FIRST_PAGES_SLOT + 32
/** One transport a slot of the bus. */
const TRANSPORTS = 32

const post = (message: DeviceMessage): void => parentPort!.postMessage(message)
let lines = 0
/** A guest can make its devices complain as often as it likes. */
const log = (line: string): void => {
  if (++lines < MAX_LOG_LINES) post({ kind: 'log', line })
  else if (lines === MAX_LOG_LINES) post({ kind: 'log', line: 'further messages of the devices are dropped' })
}

/** All of the machine but its processors and RAM; nothing outside this thread touches it. */
class Devices implements ExitHandler {
  readonly #loop = new Epoll()
  readonly #vm: Vm
  readonly #pages: Mapping
  readonly #bus: PciBus
  readonly #serial: Serial
  readonly #serialInterrupt = EventFd.create()
  readonly #console = new Uint8Array(CONSOLE_BATCH)
  readonly #commands: MessagePort
  readonly #commandBell: EventFd
  readonly #open: OpenDevice[] = []
  readonly #transports: VirtioPci[] = []
  readonly #server: ExitServer
  #consoleLength = 0
  #vsock: Vsock | undefined

  constructor(data: DeviceWorkerData) {
    const vm = (this.#vm = Vm.borrow(data.vm))
    const pagesSize = ECAM_SIZE + TRANSPORTS * TRANSPORT_PAGES
    using file = memfd('guest-pci', pagesSize)
    this.#pages = Mapping.create({ fd: file, length: pagesSize })
    this.#bus = new PciBus(this.#pages, 0)
    const readOnly = vm.checkExtension(KVM_CAP_READONLY_MEM) > 0
    const ecam = {
      guestAddress: ECAM,
      size: ECAM_SIZE,
      mapping: this.#pages,
      mappingOffset: 0,
      name: 'ECAM',
    }
    if (readOnly) vm.setMemory(ECAM_SLOT, ecam, KVM_MEM_READONLY)

    vm.irqfd(this.#serialInterrupt, COM1_GSI)
    this.#serial = new Serial(
      (byte) => this.#print(byte),
      () => this.#serialInterrupt.signal(),
    )

    const doorbell = new EventFd(new Fd(data.doorbell))
    this.#server = new ExitServer(doorbell, this, (error) => log(`an access failed: ${String(error)}`))
    data.channels.forEach((channel) => this.#server.add(channel))
    this.#loop.add(doorbell.fd, EPOLLIN, () => this.#server.serve())
    this.#commands = data.commands
    this.#commandBell = new EventFd(new Fd(data.commandBell))
    this.#loop.add(this.#commandBell.fd, EPOLLIN, () => this.#obey())
    try {
      this.#addDevices(vm, data, readOnly)
      if (data.restore !== undefined) this.#restore(new Saved(data.restore, 'devices'))
    } catch (error) {
      this.#close()
      throw error
    }
  }

  /** Serves until told to stop. */
  run(): void {
    try {
      this.#loop.run()
    } finally {
      this.#close()
    }
  }

  /** RAM, and what devices bring along; the latter gets its slots here. */
  #memory(vm: Vm, shared: SharedRam): GuestMemory {
    const mapping = Mapping.borrow(shared.address, shared.length)
    const regions: MemoryRegion[] = shared.ranges.map(({ start, size, offset }) => ({
      guestAddress: start,
      size,
      mapping,
      mappingOffset: offset,
    }))
    this.#open.forEach(({ device, region }, i) => {
      if (!region) return
      const { guestAddress, blobs } = region
      const slot = {
        guestAddress,
        size: blobs.size,
        mapping: blobs.mapping,
        mappingOffset: 0,
        readOnly: true,
        name: device.name,
      }
      vm.setMemory(FIRST_REGION_SLOT + i, slot, KVM_MEM_READONLY)
      regions.push(slot)
    })
    return new GuestMemory(regions)
  }

  #addDevices(vm: Vm, data: DeviceWorkerData, readOnly: boolean): void {
    const place = new DeviceMemory(data.ram.deviceMemory)
    for (const spec of data.devices) this.#open.push(openDevice(spec, (size) => place.take(size), log))
    const memory = this.#memory(vm, data.ram)
    const gsis = new GsiAllocator()
    this.#open.forEach(({ device }, i) => {
      if (device instanceof Vsock) this.#vsock = device
      const transport = new VirtioPci(device, {
        vm,
        bus: this.#bus,
        gsis,
        memory,
        loop: this.#loop,
        pages: { mapping: this.#pages, offset: ECAM_SIZE + i * TRANSPORT_PAGES },
        memorySlot: readOnly ? FIRST_PAGES_SLOT + i : undefined,
        metrics: data.metrics,
        log,
      })
      this.#transports.push(transport)
    })
  }

  #save(): SavedDevices {
    return {
      serial: this.#serial.save(),
      bus: this.#bus.save(),
      transports: this.#transports.map((each) => each.save()),
    }
  }

  /** @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH */
  #restore(state: Saved): void {
    this.#serial.restore(state.get('serial'))
    this.#bus.restore(state.get('bus'))
    const transports = state.get('transports').list(this.#transports.length)
    this.#transports.forEach((each, i) => each.restore(transports[i]!))
  }

  /** Tells the state, and then waits for `thaw` and does nothing else: guest memory stays as it is. */
  #freeze(): void {
    try {
      post({ kind: 'saved', state: this.#save() })
    } catch (error) {
      const code = error instanceof CoracleError ? error.code : 'INTERNAL'
      post({ kind: 'unsaved', code, message: error instanceof Error ? error.message : String(error) })
      return
    }
    const waiting: DeviceCommand[] = []
    using loop = new Epoll()
    loop.add(this.#commandBell.fd, EPOLLIN, () => {
      this.#commandBell.drain()
      for (;;) {
        const command = this.#nextCommand()
        if (!command) return
        if (command.kind === 'stop') this.#loop.stop()
        if (command.kind === 'stop' || command.kind === 'thaw') return loop.stop()
        waiting.push(command)
      }
    })
    loop.run()
    for (const command of waiting) this.#carryOut(command)
    // Those behind `thaw` have lost their bell.
    this.#commandBell.signal()
  }

  #describe(): DeviceDescription {
    const transports = new Map(this.#transports.map((each) => [each.slot, each]))
    return {
      memory: describeSlots(this.#vm),
      pci: this.#bus.describe().map((each) => {
        const transport = transports.get(each.slot)
        return transport ? { ...each, virtio: transport.describe() } : each
      }),
    }
  }

  #close(): void {
    this.#server.close()
    this.#flushConsole()
    for (const transport of this.#transports) transport.close()
    for (const each of this.#open) each.close()
    this.#pages.unmap()
    this.#serialInterrupt.close()
    this.#loop.close()
    this.#commands.close()
  }

  access(
    space: number,
    address: number,
    size: number,
    isWrite: boolean,
    data: DataView,
    offset: number,
  ): typeof CONTINUE {
    if (space === PIO) {
      if (isWrite) this.#serial.write(address - COM1, data.getUint8(offset))
      else data.setUint8(offset, this.#serial.read(address - COM1))
    } else this.#bus.access(address, size, isWrite, data, offset)
    return CONTINUE
  }

  #print(byte: number): void {
    this.#console[this.#consoleLength++] = byte
    if (byte === NEWLINE || this.#consoleLength === CONSOLE_BATCH) this.#flushConsole()
  }

  #flushConsole(): void {
    if (this.#consoleLength === 0) return
    post({ kind: 'console', bytes: this.#console.slice(0, this.#consoleLength) })
    this.#consoleLength = 0
  }

  #obey(): void {
    this.#commandBell.drain()
    for (let command = this.#nextCommand(); command; command = this.#nextCommand()) this.#carryOut(command)
  }

  #nextCommand(): DeviceCommand | undefined {
    return (receiveMessageOnPort(this.#commands) as { message: DeviceCommand } | undefined)?.message
  }

  #carryOut(command: DeviceCommand): void {
    switch (command.kind) {
      case 'listen':
        this.#vsock?.listen(command.port, (fd) =>
          post({ kind: 'connection', port: command.port, fd: fd.release() }),
        )
        break
      case 'unlisten':
        this.#vsock?.unlisten(command.port)
        break
      case 'connect': {
        const { id, port } = command
        const done = (fd: Fd | undefined): void => post({ kind: 'connected', id, fd: fd ? fd.release() : -1 })
        if (this.#vsock) this.#vsock.connect(port, done)
        else done(undefined)
        break
      }
      case 'describe':
        post({ kind: 'description', id: command.id, description: this.#describe() })
        break
      case 'save':
        this.#freeze()
        break
      case 'wake':
        for (const transport of this.#transports) transport.wake()
        break
      case 'thaw':
        break
      case 'stop':
        this.#loop.stop()
        break
    }
  }
}

try {
  const devices = new Devices(workerData as DeviceWorkerData)
  post({ kind: 'ready' })
  devices.run()
} catch (error) {
  const code = error instanceof CoracleError ? error.code : 'INTERNAL'
  post({ kind: 'failed', code, message: error instanceof Error ? error.message : String(error) })
}
