import { Socket } from 'node:net'
import { Fd } from '@coracle/sys'
import type { Vsock } from './devices/vsock/vsock.js'

/** What the main thread asks of the thread that has the vsock device. Plain data, for a message port. */
export type VsockCommand =
  | { readonly type: 'listen'; readonly port: number }
  | { readonly type: 'unlisten'; readonly port: number }
  /** `id` comes back with the answer. */
  | { readonly type: 'connect'; readonly port: number; readonly id: number }

/** What the device's thread tells the main thread. A descriptor's number is the receiver's to close. */
export type VsockEvent =
  /** The guest connected to host port `port`. */
  | { readonly type: 'connection'; readonly port: number; readonly fd: number }
  /** A connection of ours: without `fd` the guest refused it. */
  | { readonly type: 'connected'; readonly id: number; readonly fd?: number }

/**
 * The device thread's side of {@link VsockHost}.
 * @param post sends an event to the main thread
 * @returns what carries out a command of the main thread
 */
export function controlVsock(
  device: Vsock,
  post: (event: VsockEvent) => void,
): (command: VsockCommand) => void {
  return (command) => {
    const { port } = command
    if (command.type === 'listen')
      device.listen(port, (fd) => post({ type: 'connection', port, fd: fd.release() }))
    else if (command.type === 'unlisten') device.unlisten(port)
    else
      device.connect(port, (fd) =>
        post({ type: 'connected', id: command.id, ...(fd ? { fd: fd.release() } : {}) }),
      )
  }
}

/** Takes a connection over. Half-open is allowed: `end()` is EOF for the guest, and its own EOF ends nothing here. */
export type VsockListener = (socket: Socket) => void

/** Vsock ports for Node's streams: the same for our own VMM's guests and for QEMU's. */
export interface VsockSockets {
  /** Accepts the guest's connections to host port `port`. Call it before the guest starts, or they are refused. */
  listen(port: number, listener: VsockListener): void
  /** Refuses connections to `port` from now on. */
  unlisten(port: number): void
  /** Connects to guest port `port`. @throws Error with code ECONNREFUSED when the guest refuses or is not there */
  connect(port: number): Promise<Socket>
}

/** {@link VsockSockets} over a machine of our own, which deals in descriptors. */
export function vsockSockets(machine: {
  listen(port: number, handler: (fd: Fd) => void): void
  unlisten(port: number): void
  connect(port: number): Promise<Fd | undefined>
}): VsockSockets {
  return {
    listen: (port, listener) => machine.listen(port, (fd) => listener(wrap(fd.release()))),
    unlisten: (port) => machine.unlisten(port),
    connect: async (port) => {
      const fd = await machine.connect(port)
      if (!fd) throw refused(port)
      return wrap(fd.release())
    },
  }
}

/**
 * The guest's vsock for Node: connections are `net.Socket`s, whoever serves the device - a thread of our own VMM, or
 * one that serves it to QEMU. Reads and writes go straight between Node's loop and the device's thread through a Unix
 * socket; only a connection's first word passes through messages.
 */
export class VsockHost implements VsockSockets {
  readonly #send: (command: VsockCommand) => void
  readonly #listeners = new Map<number, VsockListener>()
  readonly #pending = new Map<number, { resolve: (socket: Socket) => void; reject: (error: Error) => void }>()
  #nextId = 0
  #closed = false

  /** @param send brings a command to {@link controlVsock} on the device's thread */
  constructor(send: (command: VsockCommand) => void) {
    this.#send = send
  }

  listen(port: number, listener: VsockListener): void {
    this.#listeners.set(port, listener)
    this.#send({ type: 'listen', port })
  }

  unlisten(port: number): void {
    this.#listeners.delete(port)
    this.#send({ type: 'unlisten', port })
  }

  connect(port: number): Promise<Socket> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(refused(port))
      const id = this.#nextId++
      this.#pending.set(id, { resolve, reject: () => reject(refused(port)) })
      this.#send({ type: 'connect', port, id })
    })
  }

  /** Takes in what the device's thread has posted. */
  receive(event: VsockEvent): void {
    if (this.#closed) {
      if (event.fd !== undefined) new Fd(event.fd).close()
      return
    }
    const socket = event.fd === undefined ? undefined : wrap(event.fd)
    if (event.type === 'connection') {
      const listener = this.#listeners.get(event.port)
      if (socket && listener) listener(socket)
      else socket?.destroy()
      return
    }
    const pending = this.#pending.get(event.id)
    this.#pending.delete(event.id)
    if (socket && pending) pending.resolve(socket)
    else {
      socket?.destroy()
      pending?.reject(new Error())
    }
  }

  /** The device's thread is gone: fails what waits for it. Connections end by themselves. */
  close(): void {
    this.#closed = true
    for (const { reject } of this.#pending.values()) reject(new Error())
    this.#pending.clear()
    this.#listeners.clear()
  }
}

function wrap(fd: number): Socket {
  return new Socket({ fd, readable: true, writable: true, allowHalfOpen: true })
}

function refused(port: number): Error {
  return Object.assign(new Error(`the guest refused the connection to vsock port ${port}`), {
    code: 'ECONNREFUSED',
  })
}
