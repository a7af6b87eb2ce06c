import type { Fd } from '@coracle/sys'
import type { BackendConnection } from './backend.js'
import { INFLIGHT_SIZE, describeInflight, inflightShape } from './inflight.js'
import { MAX_FDS, VhostUserError, u32s, u64s } from './message.js'
import * as m from './protocol.js'
import type { SharedRegion } from './shared-memory.js'

/** What answers a request that has a reply of its own. */
export interface Reply {
  readonly payload: Uint8Array
  readonly fds?: readonly Fd[]
}

interface Shape {
  readonly name: string
  /** Bytes that its payload has at least. */
  readonly size: number
  /** How many descriptors it may bring. A handler takes those that it keeps out of the list. */
  readonly fds: number
  /** It may be the last that the device has waited for. */
  readonly starts?: true
}

/** One kind of request, and what it does. */
export type Handler = Shape &
  (
    | {
        readonly answers?: never
        readonly run: (this: BackendConnection, payload: DataView, fds: Fd[]) => void
      }
    | {
        /** It has a reply of its own, in which there is no room for a refusal. */
        readonly answers: true
        readonly run: (this: BackendConnection, payload: DataView, fds: Fd[]) => Reply
      }
  )

/** With SET_VRING_KICK and its like: the ring's number, and the descriptor unless the message says there is none. */
function ringFd(payload: DataView, fds: Fd[]): [number, Fd | undefined] {
  const value = payload.getUint32(0, true)
  const fd = fds.pop()
  if (((value & m.VHOST_USER_VRING_NOFD_MASK) !== 0) !== (fd === undefined)) {
    fd?.close()
    throw new VhostUserError('the descriptor of a ring is missing, or one too many')
  }
  return [value & m.VHOST_USER_VRING_INDEX_MASK, fd]
}

/** Runs `use` with a descriptor that it keeps, or closes it where that throws. */
function keep(fd: Fd | undefined, use: (fd: Fd | undefined) => void): void {
  try {
    use(fd)
  } catch (error) {
    fd?.close()
    throw error
  }
}

/** VhostUserMemoryRegion at `at`. A number beyond 2^53 is inexact, and no address: it is refused with the region. */
function region(payload: DataView, at: number): Omit<SharedRegion, 'fd'> {
  const field = (offset: number): number => Number(payload.getBigUint64(at + offset, true))
  return { guestAddress: field(0), size: field(8), userAddress: field(16), offset: field(24) }
}

/** What a backend understands, by request code. */
export const HANDLERS: Readonly<Record<number, Handler>> = {
  [m.VHOST_USER_GET_FEATURES]: {
    name: 'GET_FEATURES',
    size: 0,
    fds: 0,
    answers: true,
    run() {
      return { payload: u64s(this.getFeatures()) }
    },
  },
  [m.VHOST_USER_SET_FEATURES]: {
    name: 'SET_FEATURES',
    size: 8,
    fds: 0,
    starts: true,
    run(payload) {
      this.setFeatures(payload.getBigUint64(0, true))
    },
  },
  [m.VHOST_USER_SET_OWNER]: { name: 'SET_OWNER', size: 0, fds: 0, run: () => undefined },
  [m.VHOST_USER_RESET_OWNER]: { name: 'RESET_OWNER', size: 0, fds: 0, run: () => undefined },
  [m.VHOST_USER_SET_MEM_TABLE]: {
    name: 'SET_MEM_TABLE',
    size: 8,
    fds: MAX_FDS,
    starts: true,
    run(payload, fds) {
      const count = payload.getUint32(0, true)
      if (count !== fds.length || count === 0 || payload.byteLength < 8 + count * 32)
        throw new VhostUserError(`SET_MEM_TABLE: ${count} regions, ${fds.length} descriptors`)
      this.setMemoryTable(fds.map((fd, i) => ({ fd, ...region(payload, 8 + i * 32) })))
    },
  },
  [m.VHOST_USER_SET_VRING_NUM]: {
    name: 'SET_VRING_NUM',
    size: 8,
    fds: 0,
    run(payload) {
      this.ring(payload.getUint32(0, true), true).size = payload.getUint32(4, true)
    },
  },
  [m.VHOST_USER_SET_VRING_ADDR]: {
    name: 'SET_VRING_ADDR',
    size: 40,
    fds: 0,
    run(payload) {
      const address = (at: number): number => Number(payload.getBigUint64(at, true))
      this.ring(payload.getUint32(0, true), true).addresses = {
        descriptorTable: address(8),
        usedRing: address(16),
        availableRing: address(24),
      }
    },
  },
  [m.VHOST_USER_SET_VRING_BASE]: {
    name: 'SET_VRING_BASE',
    size: 8,
    fds: 0,
    run(payload) {
      this.ring(payload.getUint32(0, true), true).base = payload.getUint32(4, true)
    },
  },
  [m.VHOST_USER_GET_VRING_BASE]: {
    name: 'GET_VRING_BASE',
    size: 8,
    fds: 0,
    answers: true,
    run(payload) {
      const index = payload.getUint32(0, true)
      return { payload: u32s(index, this.stopRing(index)) }
    },
  },
  [m.VHOST_USER_SET_VRING_KICK]: {
    name: 'SET_VRING_KICK',
    size: 8,
    fds: 1,
    starts: true,
    run(payload, fds) {
      const [index, fd] = ringFd(payload, fds)
      keep(fd, (kick) => this.startRing(index, kick))
    },
  },
  [m.VHOST_USER_SET_VRING_CALL]: {
    name: 'SET_VRING_CALL',
    size: 8,
    fds: 1,
    run(payload, fds) {
      const [index, fd] = ringFd(payload, fds)
      keep(fd, (call) => this.ring(index, false).setCall(call))
    },
  },
  [m.VHOST_USER_SET_VRING_ERR]: {
    name: 'SET_VRING_ERR',
    size: 8,
    fds: 1,
    run(payload, fds) {
      const [index, fd] = ringFd(payload, fds)
      keep(fd, (error) => this.ring(index, false).setError(error))
    },
  },
  [m.VHOST_USER_GET_PROTOCOL_FEATURES]: {
    name: 'GET_PROTOCOL_FEATURES',
    size: 0,
    fds: 0,
    answers: true,
    run() {
      return { payload: u64s(this.getProtocolFeatures()) }
    },
  },
  [m.VHOST_USER_SET_PROTOCOL_FEATURES]: {
    name: 'SET_PROTOCOL_FEATURES',
    size: 8,
    fds: 0,
    run(payload) {
      this.setProtocolFeatures(payload.getBigUint64(0, true))
    },
  },
  [m.VHOST_USER_GET_QUEUE_NUM]: {
    name: 'GET_QUEUE_NUM',
    size: 0,
    fds: 0,
    answers: true,
    run() {
      return { payload: u64s(this.getQueueNum()) }
    },
  },
  [m.VHOST_USER_SET_VRING_ENABLE]: {
    name: 'SET_VRING_ENABLE',
    size: 8,
    fds: 0,
    starts: true,
    run(payload) {
      this.enableRing(payload.getUint32(0, true), payload.getUint32(4, true) !== 0)
    },
  },
  [m.VHOST_USER_SET_BACKEND_REQ_FD]: {
    name: 'SET_BACKEND_REQ_FD',
    size: 0,
    fds: 1,
    run(_payload, fds) {
      const fd = fds.pop()
      if (!fd) throw new VhostUserError('SET_BACKEND_REQ_FD: no descriptor')
      this.setRequestChannel(fd)
    },
  },
  [m.VHOST_USER_GET_CONFIG]: {
    name: 'GET_CONFIG',
    size: 12,
    fds: 0,
    answers: true,
    run(payload) {
      const size = payload.getUint32(4, true)
      // vhost-user.rst: "a zero-length payload indicates an error".
      if (payload.byteLength < 12 + size) return { payload: new Uint8Array() }
      const config = this.getConfig(payload.getUint32(0, true), size)
      const reply = new Uint8Array(12 + size)
      reply.set(new Uint8Array(payload.buffer, 0, 12))
      reply.set(config, 12)
      return { payload: reply }
    },
  },
  [m.VHOST_USER_SET_CONFIG]: {
    name: 'SET_CONFIG',
    size: 12,
    fds: 0,
    run(payload) {
      const size = payload.getUint32(4, true)
      if (payload.byteLength < 12 + size) throw new VhostUserError('SET_CONFIG: shorter than it says')
      this.setConfig(payload.getUint32(0, true), new Uint8Array(payload.buffer, 12, size))
    },
  },
  [m.VHOST_USER_GET_INFLIGHT_FD]: {
    name: 'GET_INFLIGHT_FD',
    size: INFLIGHT_SIZE,
    fds: 0,
    answers: true,
    run(payload) {
      const { fd, shape } = this.newInflight(payload.getUint16(16, true), payload.getUint16(18, true))
      return { payload: describeInflight(shape), fds: [fd] }
    },
  },
  [m.VHOST_USER_SET_INFLIGHT_FD]: {
    name: 'SET_INFLIGHT_FD',
    size: INFLIGHT_SIZE,
    fds: 1,
    run(payload, fds) {
      const fd = fds.pop()
      if (!fd) throw new VhostUserError('SET_INFLIGHT_FD: no descriptor')
      keep(fd, () => this.setInflight(fd, inflightShape(payload)))
    },
  },
  [m.VHOST_USER_RESET_DEVICE]: {
    name: 'RESET_DEVICE',
    size: 0,
    fds: 0,
    run() {
      this.resetDevice()
    },
  },
  [m.VHOST_USER_GET_MAX_MEM_SLOTS]: {
    name: 'GET_MAX_MEM_SLOTS',
    size: 0,
    fds: 0,
    answers: true,
    run() {
      return { payload: u64s(this.getMaxMemorySlots()) }
    },
  },
  [m.VHOST_USER_ADD_MEM_REG]: {
    name: 'ADD_MEM_REG',
    size: 40,
    fds: 1,
    starts: true,
    run(payload, fds) {
      const [fd] = fds
      if (!fd) throw new VhostUserError('ADD_MEM_REG: no descriptor')
      this.addMemory({ fd, ...region(payload, 8) })
    },
  },
  [m.VHOST_USER_REM_MEM_REG]: {
    name: 'REM_MEM_REG',
    size: 40,
    // Older frontends send one along.
    fds: 1,
    starts: true,
    run(payload) {
      this.removeMemory(region(payload, 8))
    },
  },
  [m.VHOST_USER_SET_STATUS]: {
    name: 'SET_STATUS',
    size: 8,
    fds: 0,
    run(payload) {
      this.setStatus(payload.getUint8(0))
    },
  },
  [m.VHOST_USER_GET_STATUS]: {
    name: 'GET_STATUS',
    size: 0,
    fds: 0,
    answers: true,
    run() {
      return { payload: u64s(this.getStatus()) }
    },
  },
}
