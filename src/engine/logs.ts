import { watch } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import { STDERR, STDOUT } from './frames.js'

const BLOCK = 64 * 1024

/** Which part of a log, and how. */
export interface LogOptions {
  readonly stdout: boolean
  readonly stderr: boolean
  /** Go on with what comes, until the run ends. */
  readonly follow?: boolean
  /** Entries from the end; absent for all. */
  readonly tail?: number
  /** Milliseconds since 1970; entries before `since` and from after `until` are left out. */
  readonly since?: number
  readonly until?: number
  /** Put the time before each entry. */
  readonly timestamps?: boolean
}

/** A piece of a container's output. */
export interface LogEntry {
  /** STDOUT or STDERR, frames.ts. */
  readonly stream: number
  readonly data: Buffer
}

/**
 * Reads a log in Docker's json-file format: a JSON object a line, `{"log", "stream", "time"}`.
 * @param ended resolves when the run is over and nothing more will be written; only with `follow`
 */
export async function* readLog(
  path: string,
  options: LogOptions,
  ended: Promise<unknown>,
  signal?: AbortSignal,
): AsyncGenerator<LogEntry> {
  const changes = options.follow ? new Changes(dirname(path), ended, signal) : undefined
  let file: FileHandle | undefined
  try {
    let offset = -1
    let rest: Buffer = Buffer.alloc(0)
    const block = Buffer.allocUnsafe(BLOCK)
    for (;;) {
      const last = changes === undefined || changes.over
      file ??= await openIfThere(path)
      if (file && offset < 0) offset = options.tail === undefined ? 0 : await tailOffset(file, options.tail)
      for (;;) {
        if (!file || signal?.aborted) break
        const { bytesRead } = await file.read(block, 0, BLOCK, offset)
        if (bytesRead === 0) break
        offset += bytesRead
        let from = 0
        const bytes = Buffer.concat([rest, block.subarray(0, bytesRead)])
        for (let end; (end = bytes.indexOf(10, from)) >= 0; from = end + 1) {
          const entry = parseEntry(bytes.toString('utf8', from, end), options)
          if (entry) yield entry
        }
        rest = bytes.subarray(from)
      }
      if (last || signal?.aborted) return
      await changes!.next()
    }
  } finally {
    changes?.close()
    await file?.close()
  }
}

/** Wakes a reader when something in a folder changed, or when the run is over. */
class Changes {
  over = false
  #pending = false
  #wake: (() => void) | undefined
  readonly #watcher

  constructor(directory: string, ended: Promise<unknown>, signal: AbortSignal | undefined) {
    this.#watcher = watch(directory, { persistent: true }, () => this.#ring())
    // The folder goes when the container is removed; `ended` says so too.
    this.#watcher.on('error', () => this.#ring())
    const end = (): void => {
      this.over = true
      this.#ring()
    }
    ended.then(end, end)
    signal?.addEventListener('abort', end, { once: true })
    if (signal?.aborted) end()
  }

  #ring(): void {
    this.#pending = true
    this.#wake?.()
  }

  async next(): Promise<void> {
    if (!this.#pending) await new Promise<void>((resolve) => (this.#wake = resolve))
    this.#wake = undefined
    this.#pending = false
  }

  close(): void {
    this.#watcher.close()
  }
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** Where the last `count` lines begin. Reads from the end, a block at a time. */
async function tailOffset(file: FileHandle, count: number): Promise<number> {
  const { size } = await file.stat()
  if (count <= 0) return size
  const block = Buffer.allocUnsafe(BLOCK)
  let found = 0
  for (let end = size; end > 0;) {
    const start = Math.max(0, end - BLOCK)
    const { bytesRead } = await file.read(block, 0, end - start, start)
    for (let at = bytesRead - 1; at >= 0; at--) {
      if (block[at] !== 10 || start + at === size - 1) continue
      if (++found === count) return start + at + 1
    }
    end = start
  }
  return 0
}

function parseEntry(line: string, options: LogOptions): LogEntry | undefined {
  let entry
  try {
    entry = JSON.parse(line) as { log?: unknown; stream?: unknown; time?: unknown }
  } catch {
    // A monitor that was killed in the middle of a line.
    return undefined
  }
  if (typeof entry.log !== 'string' || typeof entry.time !== 'string') return undefined
  const stream = entry.stream === 'stderr' ? STDERR : STDOUT
  if (!(stream === STDERR ? options.stderr : options.stdout)) return undefined
  if (options.since !== undefined || options.until !== undefined) {
    const time = Date.parse(entry.time)
    if (time < (options.since ?? -Infinity) || time > (options.until ?? Infinity)) return undefined
  }
  return { stream, data: Buffer.from(options.timestamps ? `${entry.time} ${entry.log}` : entry.log) }
}
