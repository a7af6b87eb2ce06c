import { EventFd, Fd } from '@coracle/sys'
import { type AddressSpace, type ExitHandler, FAILED, type Verdict } from './exit-handler.js'

/*
 * The shared memory of a channel, as 32-bit words:
 *
 *   0 state   1 space   2 size   3 isWrite   4 verdict   6-7 address (f64)   8-9 data (8 bytes)
 *
 * Whoever takes the state from IDLE to REQUEST or from REQUEST to RESPONSE has written the other words before.
 */
const STATE = 0
const SPACE = 1
const SIZE = 2
const IS_WRITE = 3
const VERDICT = 4
const ADDRESS = 3
const DATA_OFFSET = 32
const CHANNEL_SIZE = 64

const IDLE = 0
const REQUEST = 1
const RESPONSE = 2
const CLOSED = 3

/** Looks at the state this often before sleeping: about the time of a futex call, so little is lost where it fails. */
const SPINS = 100

/** A channel's two parts, as another thread gets them. Structured-cloneable; the eventfd's maker keeps it open. */
export interface SharedExitChannel {
  readonly buffer: SharedArrayBuffer
  /** The eventfd that wakes the server; several channels may share one. */
  readonly doorbell: number
}

/** A channel for one vCPU whose accesses the thread that waits on `doorbell` answers. */
export function newExitChannel(doorbell: EventFd): SharedExitChannel {
  return { buffer: new SharedArrayBuffer(CHANNEL_SIZE), doorbell: doorbell.number }
}

/** Ends channels whose server is gone, from any thread: whoever waits, or asks later, gets FAILED. */
export function closeExitChannels(channels: readonly SharedExitChannel[]): void {
  for (const { buffer } of channels) {
    const words = new Int32Array(buffer)
    Atomics.store(words, STATE, CLOSED)
    Atomics.notify(words, STATE)
  }
}

/**
 * The vCPU's end: a synchronous call to another thread, one at a time. After the server has gone, or failed, each
 * access is answered FAILED.
 */
export class ExitChannel implements ExitHandler {
  readonly #words: Int32Array
  readonly #address: Float64Array
  readonly #data: DataView
  readonly #doorbell: EventFd

  constructor({ buffer, doorbell }: SharedExitChannel) {
    this.#words = new Int32Array(buffer)
    this.#address = new Float64Array(buffer)
    this.#data = new DataView(buffer)
    this.#doorbell = new EventFd(new Fd(doorbell))
  }

  access(
    space: AddressSpace,
    address: number,
    size: number,
    isWrite: boolean,
    data: DataView,
    offset: number,
  ): Verdict {
    const words = this.#words
    words[SPACE] = space
    words[SIZE] = size
    words[IS_WRITE] = isWrite ? 1 : 0
    this.#address[ADDRESS] = address
    if (isWrite) copy(data, offset, this.#data, DATA_OFFSET, size)
    if (Atomics.compareExchange(words, STATE, IDLE, REQUEST) !== IDLE) return FAILED
    this.#doorbell.signal()
    for (let i = 0; i < SPINS && Atomics.load(words, STATE) === REQUEST; i++);
    while (Atomics.load(words, STATE) === REQUEST) Atomics.wait(words, STATE, REQUEST)
    if (Atomics.compareExchange(words, STATE, RESPONSE, IDLE) !== RESPONSE) return FAILED
    if (!isWrite) copy(this.#data, DATA_OFFSET, data, offset, size)
    return words[VERDICT] as Verdict
  }
}

/** The end that answers, on the thread whose loop waits for {@link doorbell}. */
export class ExitServer implements Disposable {
  readonly #handler: ExitHandler
  readonly #onError: (error: unknown) => void
  readonly #channels: { words: Int32Array; address: Float64Array; data: DataView }[] = []
  /** To be watched for EPOLLIN, with {@link serve} as its handler. The server does not close it. */
  readonly doorbell: EventFd

  /** @param onError gets what the handler throws; that access is answered FAILED */
  constructor(doorbell: EventFd, handler: ExitHandler, onError: (error: unknown) => void) {
    this.doorbell = doorbell
    this.#handler = handler
    this.#onError = onError
  }

  add({ buffer }: SharedExitChannel): void {
    const channel = {
      words: new Int32Array(buffer),
      address: new Float64Array(buffer),
      data: new DataView(buffer),
    }
    this.#channels.push(channel)
  }

  /**
   * Answers all requests there are. The doorbell is emptied first: a request made after that rings it again, one
   * made before is seen by the look at its channel.
   */
  serve(): void {
    this.doorbell.drain()
    for (const { words, address, data } of this.#channels) {
      if (Atomics.load(words, STATE) !== REQUEST) continue
      words[VERDICT] = this.#answer(words, address[ADDRESS]!, data)
      Atomics.compareExchange(words, STATE, REQUEST, RESPONSE)
      Atomics.notify(words, STATE)
    }
  }

  /** Ends all channels: whoever waits, or asks later, gets FAILED. */
  close(): void {
    for (const { words } of this.#channels) {
      Atomics.store(words, STATE, CLOSED)
      Atomics.notify(words, STATE)
    }
    this.#channels.length = 0
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #answer(words: Int32Array, address: number, data: DataView): Verdict {
    const isWrite = words[IS_WRITE] === 1
    if (!isWrite) data.setFloat64(DATA_OFFSET, 0)
    try {
      return this.#handler.access(
        words[SPACE] as AddressSpace,
        address,
        words[SIZE]!,
        isWrite,
        data,
        DATA_OFFSET,
      )
    } catch (error) {
      this.#onError(error)
      return FAILED
    }
  }
}

function copy(from: DataView, at: number, to: DataView, toAt: number, size: number): void {
  if (size === 4) to.setInt32(toAt, from.getInt32(at))
  else for (let i = 0; i < size; i++) to.setUint8(toAt + i, from.getUint8(at + i))
}
