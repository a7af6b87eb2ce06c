import { EPOLLERR, EPOLLHUP, EPOLLIN, type Fd, IoVector, SysError } from '@coracle/sys'
import { type DescriptorChain, type DeviceContext, VirtioError, type VirtioDevice } from 'vhost-user-ts'
import { CoracleError } from '../../../errors.js'
import { Turn } from '../turn.js'

/** linux/virtio_console.h */
const VIRTIO_ID_CONSOLE = 3
const VIRTIO_CONSOLE_F_SIZE = 1n << 0n
const VIRTIO_CONSOLE_F_EMERG_WRITE = 1n << 2n
/** struct virtio_console_config: cols and rows (le16), max_nr_ports and emerg_wr (le32). */
const CONFIG_SIZE = 12
const COLUMNS = 0
const ROWS = 2
const EMERGENCY = 8
const MOST = 0xffff
const RECEIVE = 0
const TRANSMIT = 1
/** A Linux driver fills the receive queue with a page each. */
const QUEUE_SIZE = 64
/** Bytes of one request: Linux sends a page. */
const MAX_BYTES = 64 << 10
/** Requests handled before other devices get their turn. */
const BUDGET = 16

/** Characters; 0 where it is not known. */
export interface ConsoleSize {
  readonly columns: number
  readonly rows: number
}

export interface ConsoleInit {
  /** For logs. */
  readonly name: string
  /**
   * What it is wired to, non-blocking: a socket, a terminal, a pipe. A regular file takes output, and has no input. It
   * stays the caller's.
   */
  readonly wire: Fd
  /** @default 0 by 0 */
  readonly size?: ConsoleSize
  readonly log?: (message: string) => void
}

/**
 * The console device (virtio 1.2 §5.3) with one port: `/dev/hvc0` of Linux.
 *
 * What the wire does not take at once is lost. Linux waits for each line with a lock held and its interrupts off, so
 * that a console which waits for its reader would have the whole guest stand still with it.
 */
export class Console implements VirtioDevice {
  readonly name: string
  readonly type = VIRTIO_ID_CONSOLE
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE]
  readonly features = VIRTIO_CONSOLE_F_SIZE | VIRTIO_CONSOLE_F_EMERG_WRITE
  readonly config = new Uint8Array(CONFIG_SIZE)
  readonly #wire: Fd
  readonly #log: (message: string) => void
  readonly #vector = new IoVector()
  #active: { readonly context: DeviceContext; readonly turn: Turn } | undefined
  #watched = false
  #hasInput = false
  #lost = false

  /** @throws CoracleError INVALID_ARGUMENT for a size that is none */
  constructor({ name, wire, size, log = () => undefined }: ConsoleInit) {
    this.name = `console ${name}`
    this.#wire = wire
    this.#log = log
    if (size) this.resize(size)
  }

  /** @throws CoracleError INVALID_ARGUMENT */
  resize({ columns, rows }: ConsoleSize): void {
    const fits = (value: number): boolean => Number.isInteger(value) && value >= 0 && value <= MOST
    if (!fits(columns) || !fits(rows))
      throw new CoracleError('INVALID_ARGUMENT', `a console of ${columns} by ${rows} characters`)
    const config = new DataView(this.config.buffer)
    config.setUint16(COLUMNS, columns, true)
    config.setUint16(ROWS, rows, true)
    this.#active?.context.configChanged()
  }

  /** One character at a time, at any time, for a driver in need (§5.3.4). */
  writeConfig(offset: number, data: Uint8Array): void {
    if (offset <= EMERGENCY && offset + data.length > EMERGENCY)
      this.#put(1, () => this.#wire.write(data.slice(EMERGENCY - offset, EMERGENCY - offset + 1)))
  }

  activate(context: DeviceContext): void {
    const turn = Turn.of(context, () => [RECEIVE, TRANSMIT].forEach((index) => this.notify(index)))
    this.#active = { context, turn }
    try {
      context.loop.add(this.#wire, EPOLLIN, (events) => this.#heard(context, events))
      this.#watched = this.#hasInput = true
    } catch (error) {
      // A file, which is always ready and cannot be waited for.
      if (!(error instanceof SysError && error.code === 'EPERM')) throw error
    }
  }

  notify(index: number): void {
    const queue = this.#active?.context.queues[index]
    if (!this.#active || !queue) return
    const { context, turn } = this.#active
    let budget = BUDGET
    let blocked = false
    do {
      for (let chain = queue.pop(); chain; chain = budget > 0 ? queue.pop() : undefined) {
        budget--
        if (index === TRANSMIT) this.#transmit(chain)
        const written = index === TRANSMIT ? 0 : this.#receive(chain)
        blocked = written === undefined
        if (written === undefined) {
          queue.undo(chain)
          break
        }
        queue.push(chain, written)
      }
    } while (!blocked && queue.enableNotifications() && budget > 0)
    if (budget <= 0 && !blocked) turn.later()
    // Without a buffer of the guest's there is nothing to listen for until it brings one.
    if (index === RECEIVE && this.#watched)
      context.loop.modify(this.#wire, this.#hasInput && queue.ready ? EPOLLIN : 0)
    if (queue.flush()) context.interrupt(index)
  }

  reset(): void {
    if (!this.#active) return
    this.#unwatch(this.#active.context)
    this.#active.turn[Symbol.dispose]()
    this.#active = undefined
    this.#hasInput = false
  }

  save(): null {
    return null
  }

  #heard(context: DeviceContext, events: number): void {
    // What the other end left behind is read yet, whenever the guest has room.
    if ((events & (EPOLLHUP | EPOLLERR)) !== 0) this.#unwatch(context)
    try {
      this.notify(RECEIVE)
    } catch (error) {
      context.fail(error as Error)
    }
  }

  #unwatch({ loop }: DeviceContext): void {
    if (this.#watched) loop.remove(this.#wire)
    this.#watched = false
  }

  /** @throws VirtioError DEVICE_REQUEST */
  #transmit({ reader }: DescriptorChain): void {
    if (reader.length > MAX_BYTES)
      throw new VirtioError('DEVICE_REQUEST', `${this.name}: a request of ${reader.length} bytes`)
    while (reader.length > 0) {
      const covered = reader.vector(this.#vector.clear())
      if (!this.#put(covered, () => this.#wire.writev(this.#vector))) return
      reader.skip(covered)
    }
  }

  /** @returns whether the wire took all of it */
  #put(bytes: number, write: () => number): boolean {
    let taken = 0
    try {
      taken = write()
    } catch (error) {
      // EPIPE, EIO, ENOSPC: to a guest all the same.
      if (!(error instanceof SysError)) throw error
    }
    if (taken >= bytes) return true
    if (!this.#lost) this.#log(`${this.name}: nobody reads what the guest writes: some of it is lost`)
    this.#lost = true
    return false
  }

  /** @returns bytes for the chain; undefined where none have come */
  #receive({ writer }: DescriptorChain): number | undefined {
    if (writer.length === 0) return 0
    if (!this.#hasInput) return undefined
    writer.vector(this.#vector.clear(), MAX_BYTES)
    try {
      const count = this.#wire.readv(this.#vector)
      if (count > 0) return count
      if (count === 0) this.#hasInput = false
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      this.#hasInput = false
    }
    return undefined
  }
}
