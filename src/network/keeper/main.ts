import { closeSync, mkdirSync, rmSync, writeSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { dirname } from 'node:path'
import { identify, isAlive, signLock, takeLock } from '../../isolation/liveness.js'
import { targetOf } from '../firewall.js'
import { Networks } from '../networks.js'
import type { Attachment, NetworkRecord, PublishedPort } from '../record.js'
import { gatewaysOf } from '../wiring.js'
import { keeperFiles, type Looked } from './client.js'
import { DnsServer } from './dns-server.js'
import { listen, type Relay } from './relay.js'
import { View } from './view.js'

/*
 * The process that keeps the networks of one run folder while any container is attached: `main.js RUN STATE`. It
 * answers for names, holds published ports, and takes away what a container had when that ends and nobody else looks.
 * It does what is written in the run folder; whoever changes that asks it to look, by a connection to its socket, and
 * reads a line of JSON. Killed, it is started anew by the next engine that is opened. Descriptor 3 takes a line when
 * the socket answers.
 */

const READY = 3
/** How long another keeper's end is waited for, in ms. */
const LOCK_PATIENCE = 5_000
/** How often those are looked at who have no socket yet whose end would tell, in ms. */
const LOOK = 500

const [run = '', state = ''] = process.argv.slice(2)

class Keeper {
  readonly #networks = new Networks({ run, state, keeper: async () => undefined })
  #view = new View(new Map(), [])
  readonly #dns = new Map<string, DnsServer>()
  readonly #relays = new Map<string, Relay>()
  readonly #followed = new Map<string, Socket>()
  #timer: NodeJS.Timeout | undefined
  #looking: Promise<unknown> = Promise.resolve()
  /** Connections of those who want it to stay. */
  readonly #kept = new Set<Socket>()

  /** One at a time, each on what is written then. */
  look(): Promise<Looked> {
    const looked = this.#looking.then(() => this.#look())
    this.#looking = looked.catch(() => undefined)
    return looked
  }

  async #look(): Promise<Looked> {
    const attachments = this.#networks.attachments()
    const networks = new Map(this.#networks.list().map((record) => [record.id, record]))
    this.#view = new View(networks, attachments)
    await this.#serveNames(networks, attachments)
    const errors = await this.#holdPorts(networks, attachments)
    this.#follow(attachments)
    return { errors, ending: attachments.length === 0 && this.#kept.size === 0, identity: identify('self')! }
  }

  async #serveNames(
    networks: ReadonlyMap<string, NetworkRecord>,
    attachments: readonly Attachment[],
  ): Promise<void> {
    const used = new Set(attachments.flatMap(({ interfaces }) => interfaces.map(({ network }) => network)))
    const wanted = [...networks.values()]
      .filter(({ id, driver }) => driver === 'bridge' && used.has(id))
      .flatMap((record) =>
        gatewaysOf(record).map((address) => ({ key: `${record.id} ${address.value}`, record, address })),
      )
    for (const [key, server] of this.#dns)
      if (!wanted.some((each) => each.key === key)) {
        server.close()
        this.#dns.delete(key)
      }
    for (const { key, record, address } of wanted) {
      if (this.#dns.has(key)) continue
      // Where another resolver has all addresses of the host, names go to that.
      const server = await DnsServer.listen(record.id, address, () => this.#view).catch(() => undefined)
      if (server) this.#dns.set(key, server)
    }
  }

  async #holdPorts(
    networks: ReadonlyMap<string, NetworkRecord>,
    attachments: readonly Attachment[],
  ): Promise<Record<string, string>> {
    const errors: Record<string, string> = {}
    const wanted = attachments.flatMap((attachment) =>
      attachment.ports.map((port) => {
        const family = port.hostAddress.includes(':') ? 6 : 4
        const target =
          targetOf(attachment, networks, family) ?? targetOf(attachment, networks, family === 4 ? 6 : 4)
        return { key: `${keyOf(port)} ${target}`, port, target, container: attachment.container }
      }),
    )
    for (const [key, relay] of this.#relays)
      if (!wanted.some((each) => each.key === key)) {
        relay.close()
        this.#relays.delete(key)
      }
    for (const { key, port, target, container } of wanted) {
      if (this.#relays.has(key) || target === undefined) continue
      try {
        this.#relays.set(key, await listen(port, target))
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        const isAbsent = port.hostAddress === '::' && (code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL')
        if (!isAbsent)
          errors[container] =
            `failed to bind host port ${port.hostAddress}:${port.hostPort}/${port.protocol}: ${code}`
      }
    }
    return errors
  }

  /** A monitor's control socket is connected to for as long as it lives; before that, its starter is looked at. */
  #follow(attachments: readonly Attachment[]): void {
    const launched = attachments.filter((each) => each.launched)
    for (const { run: id, control } of launched) {
      if (this.#followed.has(id)) continue
      const socket = connect(control)
      this.#followed.set(id, socket)
      socket.on('connect', () => socket.write('{"op":"wait"}\n'))
      socket.on('error', () => undefined).resume()
      socket.on('close', () => void this.#sweep())
    }
    for (const [id, socket] of this.#followed)
      if (!launched.some((each) => each.run === id)) {
        this.#followed.delete(id)
        socket.removeAllListeners('close').destroy()
      }
    const unwatched = attachments.some(({ launched: is, run: id }) => !is || this.#followed.get(id)?.closed)
    clearTimeout(this.#timer)
    this.#timer = unwatched ? setTimeout(() => void this.#sweep(), LOOK) : undefined
  }

  async #sweep(): Promise<void> {
    // The one whose end was told may take a moment to be gone.
    if (this.#networks.attachments().some(({ owner }) => !isAlive(owner)))
      await this.#networks.sweep().catch(() => undefined)
    const { ending } = await this.look()
    if (ending) finish()
  }

  /** Does not end for as long as a connection lasts. */
  stay(socket: Socket): void {
    this.#kept.add(socket)
    // Before our end of it closes: whoever waits for that asks us next.
    socket.on('end', () => this.#kept.delete(socket))
    socket.on('close', () => {
      this.#kept.delete(socket)
      void this.#sweep()
    })
  }

  close(): void {
    for (const server of this.#dns.values()) server.close()
    for (const relay of this.#relays.values()) relay.close()
  }
}

const keyOf = ({ protocol, hostAddress, hostPort, containerPort }: PublishedPort): string =>
  `${protocol} ${hostAddress} ${hostPort} ${containerPort}`

const files = keeperFiles(run)
mkdirSync(dirname(files.lock), { recursive: true, mode: 0o700 })

async function holdLock(): Promise<boolean> {
  const deadline = Date.now() + LOCK_PATIENCE
  for (;;) {
    const lock = takeLock(files.lock, true)
    if (lock) {
      signLock(files.lock, identify('self')!)
      held = lock
      return true
    }
    // One that answers is as good as we are.
    if ((await isServed(files.socket)) || Date.now() > deadline) return false
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

function isServed(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path)
    socket.on('data', () => (socket.destroy(), resolve(true)))
    socket.on('error', () => resolve(false)).on('close', () => resolve(false))
  })
}

let held: Disposable | undefined
const keeper = new Keeper()

function finish(): never {
  rmSync(files.socket, { force: true })
  rmSync(files.stay, { force: true })
  rmSync(files.lock, { force: true })
  keeper.close()
  held?.[Symbol.dispose]()
  process.exit(0)
}

if (!(await holdLock())) process.exit(0)
rmSync(files.socket, { force: true })
rmSync(files.stay, { force: true })
const server = createServer((socket) => {
  socket.on('error', () => socket.destroy())
  keeper.look().then(
    (looked) => socket.end(`${JSON.stringify(looked)}\n`, () => looked.ending && finish()),
    () => socket.destroy(),
  )
})
const stayServer = createServer((socket) => {
  socket.on('error', () => socket.destroy()).resume()
  keeper.stay(socket)
})
const mask = process.umask(0o177)
stayServer.listen(files.stay)
server.listen(files.socket, () => {
  process.umask(mask)
  writeSync(READY, '\n')
  closeSync(READY)
})
for (const signal of ['SIGINT', 'SIGHUP', 'SIGPIPE'] as const) process.on(signal, () => undefined)
process.on('SIGTERM', finish)
