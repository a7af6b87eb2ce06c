import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { join } from 'node:path'
import { type Host, collect } from './host.js'

/** A daemon over a host's folders, on a socket of its own. */
export class Daemon {
  readonly socket: string
  readonly #child
  readonly #ended

  private constructor(host: Host, words: readonly string[]) {
    this.socket = join(host.run, 'api.sock')
    this.#child = host.spawn('daemon', '--listen', `unix://${this.socket}`, '--pool', '0', ...words)
    this.#ended = collect(this.#child)
  }

  /** Resolves when it serves. From then on the host's command line talks to it. */
  static async start(host: Host, ...words: string[]): Promise<Daemon> {
    const daemon = new Daemon(host, words)
    const lines = createInterface(daemon.#child.stderr!)
    const serving = (async () => {
      for await (const line of lines) if (line.includes('"serving"')) return
      throw new Error(`the daemon ended: ${(await daemon.#ended).stderr}`)
    })()
    await serving
    host.env['DOCKER_HOST'] = `unix://${daemon.socket}`
    return daemon
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** As by a crash. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#ended
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGTERM')
      await once(this.#child, 'exit')
    }
    await this.#ended
  }
}
