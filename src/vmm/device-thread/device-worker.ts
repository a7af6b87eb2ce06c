import { type MessagePort, parentPort, receiveMessageOnPort } from 'node:worker_threads'
import { EPOLLIN, Epoll, EventFd, Fd, Mapping, memfd } from '@coracle/sys'
import { CoracleError, type ErrorCode } from '../../errors.js'
import {
  CONTINUE,
  type ExitHandler,
  ExitServer,
  PIO,
  type SharedExitChannel,
  type SharedVm,
  Vm,
  threadData,
} from '../../kvm/index.js'
import type { DeviceDescription } from '../description.js'
import { COM1, COM1_GSI, Serial } from '../devices/serial.js'
import type { SharedRam } from '../memory/ram.js'
import { Saved } from '../snapshot/saved.js'
import { BAY_PAGES, DeviceBay } from './device-bay.js'
import type { DeviceSpec } from './device-spec.js'

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
export interface SavedDevices extends ReturnType<DeviceBay['save']> {
  readonly serial: ReturnType<Serial['save']>
}

/** A device in the machine. Structured-cloneable. */
export interface Plugged {
  /** Never used again after this device is gone. */
  readonly id: number
  /** On PCI bus 0: the guest knows the device as 0000:00:SLOT.0, in hexadecimal. */
  readonly slot: number
}

/** What the worker is asked, by kind: the fields of the request, and what it answers. */
export interface DeviceRequests {
  plug: { readonly request: { readonly spec: DeviceSpec }; readonly answer: Plugged }
  unplug: { readonly request: { readonly id: number }; readonly answer: undefined }
  control: { readonly request: { readonly id: number; readonly body: unknown }; readonly answer: unknown }
  /** No processor runs. Once it is answered nothing happens here until `thaw`; where it is refused, all goes on. */
  save: { readonly request: object; readonly answer: SavedDevices }
  describe: { readonly request: object; readonly answer: DeviceDescription }
}

export type DeviceRequest = {
  [K in keyof DeviceRequests]: { readonly kind: K; readonly request: number } & DeviceRequests[K]['request']
}[keyof DeviceRequests]

/** What the worker is told. A request is answered under its number. */
export type DeviceCommand =
  | { readonly kind: 'listen' | 'unlisten'; readonly port: number }
  | { readonly kind: 'connect'; readonly port: number; readonly id: number }
  /** For `wake` the processors of a restored machine are about to run. */
  | { readonly kind: 'thaw' | 'wake' | 'stop' }
  | DeviceRequest

/** What the worker tells. A descriptor in a message changes hands with it. */
export type DeviceMessage =
  | { readonly kind: 'ready'; readonly devices: readonly Plugged[] }
  | { readonly kind: 'console'; readonly bytes: Uint8Array }
  | { readonly kind: 'log'; readonly line: string }
  | { readonly kind: 'connection'; readonly port: number; readonly fd: number }
  | { readonly kind: 'connected'; readonly id: number; readonly fd: number }
  | { readonly kind: 'answer'; readonly request: number; readonly answer: unknown }
  | {
      readonly kind: 'refused'
      readonly request: number
      readonly code: ErrorCode
      readonly message: string
    }
  | { readonly kind: 'failed'; readonly code: ErrorCode; readonly message: string }

const CONSOLE_BATCH = 4096
const NEWLINE = 10
const MAX_LOG_LINES = 200
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
  readonly #pages: Mapping
  readonly #bay: DeviceBay
  readonly #serial: Serial
  readonly #serialInterrupt = EventFd.create()
  readonly #console = new Uint8Array(CONSOLE_BATCH)
  readonly #commands: MessagePort
  readonly #commandBell: EventFd
  readonly #server: ExitServer
  #consoleLength = 0
  /** What the machine was made with, in that order. */
  readonly initial: readonly Plugged[]

  constructor(data: DeviceWorkerData) {
    const vm = Vm.borrow(data.vm)
    using file = memfd('guest-pci', BAY_PAGES)
    this.#pages = Mapping.create({ fd: file, length: BAY_PAGES })
    this.#bay = new DeviceBay(vm, data.ram, this.#pages, this.#loop, {
      metrics: data.metrics,
      log,
      fail: (message) => post({ kind: 'failed', code: 'GUEST_FAILED', message }),
    })

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
      const saved = data.restore === undefined ? undefined : new Saved(data.restore, 'devices')
      this.#bay.bus.keepTo(saved?.get('bus'))
      this.initial = data.devices.map((spec) => this.#bay.plug(spec))
      this.#bay.bus.keepTo(undefined)
      if (saved) this.#restore(saved)
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

  #save(): SavedDevices {
    return { serial: this.#serial.save(), ...this.#bay.save() }
  }

  /** @throws CoracleError SNAPSHOT_INVALID, SNAPSHOT_MISMATCH */
  #restore(state: Saved): void {
    this.#serial.restore(state.get('serial'))
    this.#bay.restore(state)
  }

  /** Waits for `thaw` and does nothing else: guest memory stays as it is. */
  #freeze(): void {
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

  #close(): void {
    this.#server.close()
    this.#flushConsole()
    this.#bay.close()
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
    } else this.#bay.bus.access(address, size, isWrite, data, offset)
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
    const { vsock } = this.#bay
    switch (command.kind) {
      case 'listen':
        vsock?.listen(command.port, (fd) =>
          post({ kind: 'connection', port: command.port, fd: fd.release() }),
        )
        break
      case 'unlisten':
        vsock?.unlisten(command.port)
        break
      case 'connect': {
        const { id, port } = command
        const done = (fd: Fd | undefined): void => post({ kind: 'connected', id, fd: fd ? fd.release() : -1 })
        if (vsock) vsock.connect(port, done)
        else done(undefined)
        break
      }
      case 'wake':
        this.#bay.wake()
        break
      case 'thaw':
        break
      case 'stop':
        this.#loop.stop()
        break
      default:
        this.#reply(command)
    }
  }

  #reply(command: DeviceRequest): void {
    const { request, kind } = command
    try {
      post({ kind: 'answer', request, answer: this.#answer(command) })
    } catch (error) {
      post({ kind: 'refused', request, ...described(error) })
      return
    }
    if (kind === 'save') this.#freeze()
  }

  #answer(command: DeviceRequest): unknown {
    switch (command.kind) {
      case 'plug':
        return this.#bay.plug(command.spec)
      case 'unplug':
        return this.#bay.unplug(command.id)
      case 'control':
        return this.#bay.control(command.id, command.body)
      case 'save':
        return this.#save()
      case 'describe':
        return this.#bay.describe()
    }
  }
}

/** An error as it crosses to the main thread. */
function described(error: unknown): { code: ErrorCode; message: string } {
  const code = error instanceof CoracleError ? error.code : 'INTERNAL'
  return { code, message: error instanceof Error ? error.message : String(error) }
}

function run(data: DeviceWorkerData): void {
  try {
    const devices = new Devices(data)
    post({ kind: 'ready', devices: devices.initial })
    devices.run()
  } catch (error) {
    post({ kind: 'failed', ...described(error) })
  }
}

void threadData().then((data) => run(data as DeviceWorkerData))
