import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import { createServer, type Server, type Socket } from 'node:net'
import { formatAddress, parseAddress, type Address } from '../address.js'
import { hostResolvers } from '../wiring.js'
import { NOTIMP, SERVFAIL, encodeAnswer, isStandard, parseQuery, truncated } from './dns-message.js'
import { TcpFrames, forward, framed } from './forward.js'
import type { View } from './view.js'

const PORT = 53
/** What fits into a datagram for whoever does not say more (RFC 1035 §4.2.1). */
const MAX_DATAGRAM = 512
/** Connections of one network at a time, and how long one may be idle, in ms. */
const MAX_CONNECTIONS = 128
const IDLE = 10_000

/** Answers for names at one gateway address of a network, over UDP and TCP. */
export class DnsServer {
  readonly address: string
  readonly #network: string
  readonly #view: () => View
  readonly #udp: UdpSocket
  readonly #tcp: Server
  readonly #connections = new Set<Socket>()

  private constructor(network: string, address: Address, view: () => View) {
    this.#network = network
    this.address = formatAddress(address)
    this.#view = view
    this.#udp = createSocket({ type: address.family === 4 ? 'udp4' : 'udp6', ipv6Only: address.family === 6 })
    this.#tcp = createServer((socket) => this.#serve(socket))
    this.#tcp.maxConnections = MAX_CONNECTIONS
  }

  /** @param view what is attached at the time of a question @throws what bind(2) says, as Node does */
  static async listen(network: string, address: Address, view: () => View): Promise<DnsServer> {
    const server = new DnsServer(network, address, view)
    try {
      await server.#listen()
    } catch (error) {
      server.close()
      throw error
    }
    return server
  }

  async #listen(): Promise<void> {
    const host = this.address
    await new Promise<void>((resolve, reject) => {
      this.#udp.once('error', reject)
      this.#udp.bind({ address: host, port: PORT, exclusive: true }, resolve)
    })
    await new Promise<void>((resolve, reject) => {
      this.#tcp.once('error', reject)
      this.#tcp.listen({ host, port: PORT, exclusive: true }, resolve)
    })
    this.#udp.on('error', () => undefined)
    this.#tcp.on('error', () => undefined)
    this.#udp.on('message', (message, { address, port }) => {
      void this.#answer(message, address, false).then((answer) => {
        if (answer) this.#udp.send(answer, port, address, () => undefined)
      })
    })
  }

  #serve(socket: Socket): void {
    this.#connections.add(socket)
    socket.on('close', () => this.#connections.delete(socket)).on('error', () => socket.destroy())
    socket.setTimeout(IDLE, () => socket.destroy())
    const frames = new TcpFrames()
    const source = socket.remoteAddress ?? ''
    // One after the other: who sends many questions waits for their answers.
    socket.on('data', (chunk: Buffer) => {
      socket.pause()
      void this.#answerAll(socket, frames.push(chunk), source).finally(() => socket.resume())
    })
  }

  async #answerAll(socket: Socket, messages: readonly Buffer[], source: string): Promise<void> {
    for (const message of messages) {
      const answer = await this.#answer(message, source, true)
      if (!answer) return void socket.destroy()
      socket.write(framed(answer))
    }
  }

  async #answer(message: Buffer, from: string, tcp: boolean): Promise<Buffer | undefined> {
    const question = parseQuery(message)
    const source = parseAddress(from.replace(/^::ffff:(?=\d+\.)/, '').replace(/%.*$/, ''))
    if (!question || !source) return undefined
    if (!isStandard(question) || !question.isInternet) return encodeAnswer(message, question, NOTIMP)
    const verdict = this.#view().resolve(this.#network, source, question.name, question.type)
    if (!verdict) return undefined
    if ('forward' in verdict) {
      const servers = verdict.forward.length > 0 ? verdict.forward : hostResolvers()
      return (await forward(message, servers, tcp)) ?? encodeAnswer(message, question, SERVFAIL)
    }
    const answer = encodeAnswer(message, question, verdict.code, verdict.answers)
    return tcp || answer.length <= MAX_DATAGRAM ? answer : truncated(answer, question)
  }

  close(): void {
    try {
      this.#udp.close()
    } catch {
      // It was never open.
    }
    this.#tcp.close()
    for (const socket of this.#connections) socket.destroy()
  }
}
