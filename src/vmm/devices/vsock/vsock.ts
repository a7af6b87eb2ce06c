import { EPOLLHUP, EPOLLIN, EPOLLOUT, type Fd, socketPair } from '@coracle/sys'
import {
  type ChainReader,
  type DescriptorChain,
  type DeviceContext,
  VirtioError,
  type VirtioDevice,
  type Virtqueue,
} from 'vhost-user-ts'
import { Turn } from '../turn.js'
import {
  BUFFER_SIZE,
  Connection,
  DUE_CREDIT,
  DUE_DATA,
  DUE_REQUEST,
  DUE_RESPONSE,
  DUE_SHUTDOWN,
} from './connection.js'
import {
  HEADER_SIZE,
  PacketHeader,
  VIRTIO_VSOCK_EVENT_TRANSPORT_RESET,
  VIRTIO_VSOCK_OP_CREDIT_REQUEST,
  VIRTIO_VSOCK_OP_CREDIT_UPDATE,
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_OP_SHUTDOWN,
  VIRTIO_VSOCK_SHUTDOWN_BOTH,
  VIRTIO_VSOCK_SHUTDOWN_RCV,
  VIRTIO_VSOCK_SHUTDOWN_SEND,
  VIRTIO_VSOCK_TYPE_STREAM,
  VMADDR_CID_HOST,
} from './packet.js'

const VIRTIO_ID_VSOCK = 19
const RX = 0
const TX = 1
const EVENT = 2
const QUEUE_SIZE = 256
/** Refusals that wait for a buffer of the guest; while there are this many, nothing more is taken from it. */
const MAX_REFUSALS = 128
/** Chains handled before other devices get their turn. */
const BUDGET = 4 * QUEUE_SIZE
/** Packets for one connection before the next gets its turn. */
const SHARE = 64
/** Where the ports of our own connections start. */
const FIRST_HOST_PORT = 0x4000_0000

/** Takes over one end of a connection's socket: a Unix stream socket, non-blocking. */
export type VsockHandler = (fd: Fd) => void

export interface VsockInit {
  /** The guest's context id, 3 or more. */
  readonly cid: number
  /**
   * Connections at once; more are refused. Each costs a descriptor here, one at the other end and up to 256 KiB.
   * @default 1024
   */
  readonly maxConnections?: number
}

/**
 * The socket device (virtio 1.2 §5.10), stream sockets only: each connection between guest and host is a pair of
 * Unix sockets, of which the device keeps one end and gives the other away. End of file, half-close and
 * backpressure mean on that other end what they mean on a vsock in the guest.
 *
 * Bytes move by readv and writev on guest memory. Nothing is queued without a bound: towards the host the guest's
 * credit is the bound, towards the guest what it cannot take yet stays in the socket.
 *
 * Needs no driver to be configured: {@link listen} and {@link connect} outlive the guest's resets, connections do not.
 */
export class Vsock implements VirtioDevice {
  readonly name = 'vsock'
  readonly type = VIRTIO_ID_VSOCK
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, 16]
  readonly features = 0n
  readonly config = new Uint8Array(8)
  readonly #cid: number
  readonly #maxConnections: number
  readonly #listeners = new Map<number, VsockHandler>()
  /** By host port, then by guest port. */
  readonly #connections = new Map<number, Map<number, Connection>>()
  readonly #lingering = new Set<Connection>()
  /** Connections with something due, in the order of their turns. */
  readonly #turns: Connection[] = []
  /** Connections to refuse: pairs of host and guest port. */
  readonly #refusals: [number, number][] = []
  readonly #header = new PacketHeader()
  #count = 0
  #nextPort = FIRST_HOST_PORT
  #resetPending = false
  #again: Turn | undefined
  #context: DeviceContext | undefined
  #rx: Virtqueue | undefined
  #tx: Virtqueue | undefined
  #event: Virtqueue | undefined

  constructor({ cid, maxConnections = 1024 }: VsockInit) {
    this.#cid = cid
    this.#maxConnections = maxConnections
    new DataView(this.config.buffer).setBigUint64(0, BigInt(cid), true)
  }

  /** Connections that exist now. */
  get connections(): number {
    return this.#count
  }

  /** Accepts the guest's connections to host port `port`. */
  listen(port: number, handler: VsockHandler): void {
    this.#listeners.set(port, handler)
  }

  /** Refuses connections to `port` from now on. */
  unlisten(port: number): void {
    this.#listeners.delete(port)
  }

  /** Connects to guest port `port`. @param done called once, with undefined where the guest refuses or is not there */
  connect(port: number, done: (fd: Fd | undefined) => void): void {
    if (!this.#context || this.#count >= this.#maxConnections) return done(undefined)
    while (this.#find(this.#nextPort, port)) this.#takePort()
    const [ours, theirs] = socketPair()
    const connection = this.#add(new Connection(ours, this.#takePort(), port))
    connection.state = 'requested'
    connection.answer = done
    connection.handout = theirs
    this.#owe(connection, DUE_REQUEST)
    this.#serve()
  }

  /** Ends all connections and tells the guest that its context changed (§5.10.6.7), as after a snapshot. */
  transportReset(): void {
    this.#closeAll()
    this.#resetPending = true
    this.#sendEvent()
  }

  activate(context: DeviceContext): void {
    this.#context = context
    ;[this.#rx, this.#tx, this.#event] = context.queues
    this.#again = new Turn(context.loop, () => this.#guard(() => this.#transmit()))
  }

  notify(index: number): void {
    if (!this.#context) return
    if (index === TX) this.#transmit()
    else if (index === RX) this.#receive()
    else if (index === EVENT) this.#sendEvent()
  }

  reset(): void {
    this.#closeAll()
    this.#again?.[Symbol.dispose]()
    this.#again = undefined
    this.#context = undefined
    this.#rx = this.#tx = this.#event = undefined
    this.#resetPending = false
  }

  save(): null {
    return null
  }

  /** The connections stay with the process that was saved: the guest hears that its context changed (§5.10.6.7). */
  restore(): void {
    this.#resetPending = true
  }

  /** Guest to host: takes what the guest has sent. */
  #transmit(): void {
    const queue = this.#tx
    if (!queue) return
    let budget = BUDGET
    queue.disableNotifications()
    do {
      while (this.#refusals.length < MAX_REFUSALS && budget > 0) {
        const chain = queue.pop()
        if (!chain) break
        budget--
        this.#packet(chain.reader)
        queue.push(chain, 0)
      }
      // Refusals leave with the guest's next buffers; the doorbell of those brings us back.
      if (this.#refusals.length >= MAX_REFUSALS) this.#receive()
      if (this.#refusals.length >= MAX_REFUSALS) break
      if (budget === 0) {
        this.#again?.later()
        break
      }
    } while (queue.enableNotifications())
    if (queue.flush()) this.#context?.interrupt(TX)
    this.#receive()
  }

  /** One packet of the guest. What breaks the ring's rules throws; what breaks a connection's ends that. */
  #packet(reader: ChainReader): void {
    const header = this.#header
    header.read(reader)
    const { length, operation, sourcePort: guestPort, destinationPort: hostPort } = header
    if (length > reader.length)
      throw new VirtioError(
        'DEVICE_REQUEST',
        `vsock packet of ${length} bytes in a chain of ${reader.length}`,
      )
    // Not from this guest or not for this host: nobody to answer.
    if (header.sourceCid !== this.#cid || header.destinationCid !== VMADDR_CID_HOST) return
    const connection = this.#find(hostPort, guestPort)
    if (header.type !== VIRTIO_VSOCK_TYPE_STREAM) return this.#refuse(operation, hostPort, guestPort)
    if (!connection) {
      if (operation === VIRTIO_VSOCK_OP_REQUEST) this.#accept(hostPort, guestPort)
      else this.#refuse(operation, hostPort, guestPort)
      return
    }
    connection.updateCredit(header.bufferSize, header.forwarded)
    if (connection.state === 'requested' && operation !== VIRTIO_VSOCK_OP_RST) {
      if (operation !== VIRTIO_VSOCK_OP_RESPONSE) return this.#abort(connection)
      connection.state = 'open'
      const { answer, handout } = connection
      connection.answer = connection.handout = undefined
      answer?.(handout)
      return this.#settle(connection)
    }
    switch (operation) {
      case VIRTIO_VSOCK_OP_RW:
        if (!connection.fromGuest(reader, length)) return this.#abort(connection)
        break
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        break
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        connection.due |= DUE_CREDIT
        break
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        connection.shutDown(header.flags)
        if ((header.flags & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0) connection.due &= ~DUE_DATA
        break
      case VIRTIO_VSOCK_OP_RST:
        return this.#retire(connection)
      default:
        return this.#abort(connection)
    }
    this.#settle(connection)
  }

  #accept(hostPort: number, guestPort: number): void {
    const handler = this.#listeners.get(hostPort)
    if (!handler || this.#count >= this.#maxConnections)
      return this.#refuse(VIRTIO_VSOCK_OP_REQUEST, hostPort, guestPort)
    const [ours, theirs] = socketPair()
    const connection = this.#add(new Connection(ours, hostPort, guestPort))
    connection.updateCredit(this.#header.bufferSize, this.#header.forwarded)
    this.#owe(connection, DUE_RESPONSE)
    handler(theirs)
    this.#settle(connection)
  }

  /** Answers RST, but never to an RST. */
  #refuse(operation: number, hostPort: number, guestPort: number): void {
    if (operation !== VIRTIO_VSOCK_OP_RST) this.#refusals.push([hostPort, guestPort])
  }

  /** Host to guest: fills the guest's buffers with what is due. */
  #receive(): void {
    const queue = this.#rx
    const context = this.#context
    if (!queue || !context) return
    const due = (): boolean => this.#refusals.length > 0 || this.#turns.length > 0
    let budget = BUDGET
    queue.disableNotifications()
    do {
      while (budget > 0 && due()) {
        const chain = queue.pop()
        if (!chain) break
        budget--
        this.#fill(queue, chain)
      }
    } while (queue.enableNotifications() && budget > 0 && due())
    if (queue.flush()) context.interrupt(RX)
    if (budget === 0) this.#again?.later()
    // Who is left waits for the guest's buffers: its socket must not wake us before there are any.
    else for (const connection of this.#turns) this.#watch(connection, true)
  }

  /** Puts one packet into `chain`, or gives it back to the queue where nothing was due after all. */
  #fill(queue: Virtqueue, chain: DescriptorChain): void {
    const { writer } = chain
    const refusal = this.#refusals.shift()
    if (refusal) {
      const wasFull = this.#refusals.length === MAX_REFUSALS - 1
      this.#header.operation = VIRTIO_VSOCK_OP_RST
      this.#head(chain, refusal[0], refusal[1], 0)
      queue.push(chain, HEADER_SIZE)
      if (wasFull) this.#again?.later()
      return
    }
    const connection = this.#turns[0]!
    const header = this.#header
    let length = 0
    header.flags = 0
    const due = connection.due
    if ((due & DUE_REQUEST) !== 0) {
      connection.due &= ~DUE_REQUEST
      header.operation = VIRTIO_VSOCK_OP_REQUEST
    } else if ((due & DUE_RESPONSE) !== 0) {
      connection.due &= ~DUE_RESPONSE
      header.operation = VIRTIO_VSOCK_OP_RESPONSE
    } else if ((due & DUE_CREDIT) !== 0) {
      connection.due &= ~DUE_CREDIT
      header.operation = VIRTIO_VSOCK_OP_CREDIT_UPDATE
    } else if ((due & DUE_DATA) !== 0 && connection.credit > 0) {
      writer.skip(HEADER_SIZE)
      if (writer.length === 0) throw new VirtioError('DEVICE_REQUEST', 'vsock buffer without room for data')
      length = connection.toGuest(writer)
      if (length > 0) header.operation = VIRTIO_VSOCK_OP_RW
      else {
        connection.due &= ~DUE_DATA
        if (length === 0) this.#endOfInput(connection)
        queue.undo(chain)
        return this.#settle(connection)
      }
      writer.rewind()
    } else if ((due & DUE_SHUTDOWN) !== 0) {
      connection.due &= ~DUE_SHUTDOWN
      header.operation = VIRTIO_VSOCK_OP_SHUTDOWN
      connection.toldShutdown = header.flags = connection.shutdown
    } else {
      queue.undo(chain)
      return this.#settle(connection)
    }
    header.bufferSize = BUFFER_SIZE
    header.forwarded = connection.announce()
    this.#head(chain, connection.hostPort, connection.guestPort, length)
    queue.push(chain, HEADER_SIZE + length)
    this.#settle(connection, ++this.#streak >= SHARE)
  }

  /** Packets in a row for the connection whose turn it is. */
  #streak = 0

  #head(chain: DescriptorChain, hostPort: number, guestPort: number, length: number): void {
    const header = this.#header
    header.sourceCid = VMADDR_CID_HOST
    header.destinationCid = this.#cid
    header.sourcePort = hostPort
    header.destinationPort = guestPort
    header.length = length
    header.type = VIRTIO_VSOCK_TYPE_STREAM
    header.write(chain.writer)
  }

  /** The socket's other end writes no more, and the guest has all of it. */
  #endOfInput(connection: Connection): void {
    connection.endOfInput = true
    connection.due |= DUE_SHUTDOWN
  }

  /** Brings list, epoll and end of a connection in line with its state. @param yields it has had its turn */
  #settle(connection: Connection, yields = false): void {
    if (connection.state === 'lingering') {
      if (!connection.backlog) this.#close(connection)
      else this.#watch(connection)
      return
    }
    connection.endWrites()
    const over = connection.guestShutdown === VIRTIO_VSOCK_SHUTDOWN_BOTH
    if (over && !connection.backlog) return this.#abort(connection)
    if ((connection.shutdown & ~connection.toldShutdown) === 0) connection.due &= ~DUE_SHUTDOWN
    const sendable = connection.due & (connection.credit > 0 ? ~0 : ~DUE_DATA)
    const first = this.#turns[0] === connection
    if (first && (sendable === 0 || yields)) {
      this.#turns.shift()
      connection.listed = false
      this.#streak = 0
    }
    if (sendable !== 0 && !connection.listed) {
      connection.listed = true
      this.#turns.push(connection)
    }
    this.#watch(connection)
  }

  #owe(connection: Connection, due: number): void {
    connection.due |= due
    if (connection.listed) return
    connection.listed = true
    this.#turns.push(connection)
  }

  /** Tells epoll what to wait for: bytes only where the guest can take them, so that it never spins. */
  #watch(connection: Connection, stalled = false): void {
    const loop = this.#context?.loop
    if (!loop || connection.fd.closed) return
    let events: number | undefined = connection.backlog ? EPOLLOUT : undefined
    const deafened = (connection.guestShutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) !== 0
    const listening = connection.state === 'open' && !connection.endOfInput && !deafened
    const takes = (connection.due & DUE_DATA) === 0 || (connection.credit > 0 && !stalled)
    if (listening && takes) events = (events ?? 0) | EPOLLIN
    // After the end of input only a hang-up tells that nobody reads any more either.
    if (connection.state === 'open' && connection.endOfInput && !connection.deaf) events ??= 0
    if (events === connection.watched) return
    if (events === undefined) loop.remove(connection.fd)
    else if (connection.watched === undefined)
      loop.add(connection.fd, events, (ready) => this.#guard(() => this.#ready(connection, ready)))
    else loop.modify(connection.fd, events)
    connection.watched = events
  }

  /** The socket can be read or written, or its other end is gone. */
  #ready(connection: Connection, ready: number): void {
    if (connection.fd.closed) return
    if ((ready & (EPOLLOUT | EPOLLHUP)) !== 0) connection.drain()
    if (connection.state === 'open') {
      if (connection.endOfInput && (ready & EPOLLHUP) !== 0 && !connection.backlog) {
        connection.deaf = true
        connection.due |= DUE_SHUTDOWN
      } else if (!connection.endOfInput) connection.due |= DUE_DATA
    }
    this.#settle(connection)
    this.#receive()
  }

  /** Ends a connection on both sides at once. */
  #abort(connection: Connection): void {
    this.#refuse(VIRTIO_VSOCK_OP_REQUEST, connection.hostPort, connection.guestPort)
    this.#forget(connection)
    this.#close(connection)
  }

  /** The guest is through with it: what it had sent still goes to the socket. */
  #retire(connection: Connection): void {
    this.#forget(connection)
    if (!connection.backlog) return this.#close(connection)
    connection.state = 'lingering'
    connection.shutDown(VIRTIO_VSOCK_SHUTDOWN_SEND)
    this.#lingering.add(connection)
    this.#watch(connection)
  }

  #add(connection: Connection): Connection {
    let ports = this.#connections.get(connection.hostPort)
    if (!ports) this.#connections.set(connection.hostPort, (ports = new Map()))
    ports.set(connection.guestPort, connection)
    this.#count++
    return connection
  }

  #find(hostPort: number, guestPort: number): Connection | undefined {
    return this.#connections.get(hostPort)?.get(guestPort)
  }

  /** Takes the connection out of the guest's sight. */
  #forget(connection: Connection): void {
    const ports = this.#connections.get(connection.hostPort)
    ports?.delete(connection.guestPort)
    if (ports?.size === 0) this.#connections.delete(connection.hostPort)
    if (connection.listed) this.#turns.splice(this.#turns.indexOf(connection), 1)
    this.#streak = 0
    connection.listed = false
    connection.due = 0
  }

  #close(connection: Connection): void {
    if (connection.fd.closed) return
    this.#lingering.delete(connection)
    if (connection.watched !== undefined) this.#context?.loop.remove(connection.fd)
    connection.watched = undefined
    connection.fd.close()
    this.#count--
    const { answer, handout } = connection
    connection.answer = connection.handout = undefined
    handout?.close()
    answer?.(undefined)
  }

  #closeAll(): void {
    for (const ports of [...this.#connections.values()])
      for (const connection of [...ports.values()]) {
        this.#forget(connection)
        this.#close(connection)
      }
    for (const connection of [...this.#lingering]) this.#close(connection)
    this.#refusals.length = 0
    this.#streak = 0
  }

  #sendEvent(): void {
    const queue = this.#event
    if (!queue || !this.#resetPending) return
    // Where the driver has offered no buffer yet, its doorbell brings us back.
    const chain = queue.pop() ?? (queue.enableNotifications() ? queue.pop() : undefined)
    if (!chain) return
    this.#resetPending = false
    chain.writer.u32(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET)
    queue.push(chain, 4)
    if (queue.flush()) this.#context?.interrupt(EVENT)
  }

  #serve(): void {
    this.#guard(() => this.#receive())
  }

  #takePort(): number {
    const port = this.#nextPort
    this.#nextPort = port === 0xffff_fffe ? FIRST_HOST_PORT : port + 1
    return port
  }

  #guard(work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#context?.fail(error as Error)
    }
  }
}
