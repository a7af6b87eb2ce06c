import { spawn, type ChildProcess } from 'node:child_process'
import { Duplex, type Writable } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { buildAgent } from '../../firmware/index.js'
import { decodeStat, type PathStat, type WorkloadArchive } from '../archive.js'

/** The files of a container without a VM: the agent's program reads and writes them, with its root in the container's. */
export class HostArchive implements WorkloadArchive {
  readonly #places: () => { readonly root: string; readonly upper: string; readonly layers: string }

  /** @param places the container's root as its process sees it, its upper directory, the folder of its layers */
  constructor(places: () => { readonly root: string; readonly upper: string; readonly layers: string }) {
    this.#places = places
  }

  async stat(path: string): Promise<PathStat> {
    const child = await this.#run(['stat', this.#places().root, path])
    child.stdin!.end()
    const chunks: Buffer[] = []
    for await (const chunk of child.stdout!) chunks.push(chunk as Buffer)
    const { status, stderr } = await ended(child)
    if (status !== 0) throw new CoracleError('NO_SUCH_PATH', stderr.replace(/^\d+ /, ''))
    return decodeStat(Buffer.concat(chunks))
  }

  async read(path: string, flags: number): Promise<Duplex> {
    const { root, upper, layers } = this.#places()
    const tree = (flags & 1) === 0 ? root : upper
    const child = await this.#run(['create', tree, String(flags), path, layers])
    child.stdin!.end()
    return duplexOf(child)
  }

  async write(path: string, flags: number): Promise<Duplex> {
    return duplexOf(await this.#run(['extract', this.#places().root, String(flags), path]))
  }

  async #run(words: string[]): Promise<ChildProcess> {
    const child = spawn(await buildAgent(), words, { cwd: '/', env: {}, stdio: ['pipe', 'pipe', 'pipe'] })
    child.on('error', () => undefined)
    child.stdin.on('error', () => undefined)
    return child
  }
}

function ended(child: ChildProcess): Promise<{ status: number | null; stderr: string }> {
  let stderr = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  return new Promise((resolve) => child.on('close', (status) => resolve({ status, stderr: stderr.trim() })))
}

/** Both streams as one that takes the child along when it is destroyed. */
function duplexOf(child: ChildProcess): Duplex {
  child.stderr!.resume()
  const stream = Duplex.from({ readable: child.stdout!, writable: child.stdin as Writable })
  stream.on('close', () => child.kill('SIGKILL'))
  return stream
}
