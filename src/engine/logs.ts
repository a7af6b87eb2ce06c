import { watch } from 'node:fs'
import { open, readFile, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import { type LogFiles, parseTurns } from '../isolation/files.js'
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

/** A line longer than this is none of ours, in bytes. */
const MAX_LINE = 1 << 20

/**
 * Reads a log in Docker's json-file format: a JSON object a line, `{"log", "stream", "time"}`. Files that are written in
 * turn are read in their order; where the writer comes round before the reader has read a file, that one is left out.
 * @param ended resolves when the run is over and nothing more will be written; only with `follow`
 */
export async function* readLog(
  log: LogFiles,
  options: LogOptions,
  ended: Promise<unknown>,
  signal?: AbortSignal,
): AsyncGenerator<LogEntry> {
  const changes = options.follow ? new Changes(dirname(log.files[0]!), ended, signal) : undefined
  const count = log.files.length
  const pathOf = (turn: number): string => log.files[turn % count]!
  let file: FileHandle | undefined
  let at: { turn: number; offset: number } | undefined
  let rest: Buffer = Buffer.alloc(0)
  const block = Buffer.allocUnsafe(BLOCK)
  const move = async (turn: number): Promise<void> => {
    await file?.close()
    file = undefined
    rest = Buffer.alloc(0)
    at = { turn, offset: 0 }
  }
  try {
    let end = Infinity
    for (;;) {
      const last = changes === undefined || changes.over
      const now = Math.min(await turnsOf(log), end)
      // Whatever comes while it is read is not waited for.
      if (changes === undefined) end = now
      at ??= await beginning(now, count, pathOf, options.tail)
      if (now - at.turn >= count) await move(now - count + 1)
      file ??= await openIfThere(pathOf(at.turn))
      for (;;) {
        if (!file || signal?.aborted) break
        const { bytesRead } = await file.read(block, 0, BLOCK, at.offset)
        // By now it may be another turn's.
        if (bytesRead === 0 || (await turnsOf(log)) - at.turn >= count) break
        at.offset += bytesRead
        let from = 0
        const bytes = Buffer.concat([rest, block.subarray(0, bytesRead)])
        for (let end; (end = bytes.indexOf(10, from)) >= 0; from = end + 1) {
          const entry = parseEntry(bytes.toString('utf8', from, end), options)
          if (entry) yield entry
        }
        rest = bytes.length - from > MAX_LINE ? Buffer.alloc(0) : bytes.subarray(from)
      }
      if (signal?.aborted) return
      // The writer had gone on before the end was read: there is no more of it.
      if (now > at.turn) await move(at.turn + 1)
      else if (last) return
      else await changes!.next()
    }
  } finally {
    changes?.close()
    await file?.close()
  }
}

async function turnsOf({ turns }: LogFiles): Promise<number> {
  if (turns === undefined) return 0
  try {
    return parseTurns(await readFile(turns, 'latin1'))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 0
    throw error
  }
}

/** Where the oldest entry is, or the last `tail` lines begin. */
async function beginning(
  now: number,
  count: number,
  pathOf: (turn: number) => string,
  tail: number | undefined,
): Promise<{ turn: number; offset: number }> {
  const oldest = Math.max(0, now - count + 1)
  if (tail === undefined) return { turn: oldest, offset: 0 }
  let left = tail
  for (let turn = now; turn >= oldest; turn--) {
    const file = await openIfThere(pathOf(turn))
    if (!file) continue
    try {
      const { offset, found } = await tailOffset(file, left)
      if (found === left) return { turn, offset }
      left -= found
    } finally {
      await file.close()
    }
  }
  return { turn: oldest, offset: 0 }
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

/** Where the last `count` lines begin, or how many there are. Reads from the end, a block at a time. */
async function tailOffset(file: FileHandle, count: number): Promise<{ offset: number; found: number }> {
  const { size } = await file.stat()
  if (count <= 0) return { offset: size, found: count }
  const block = Buffer.allocUnsafe(BLOCK)
  let found = 0
  for (let end = size; end > 0;) {
    const start = Math.max(0, end - BLOCK)
    const { bytesRead } = await file.read(block, 0, end - start, start)
    for (let at = bytesRead - 1; at >= 0; at--) {
      if (block[at] !== 10 || start + at === size - 1) continue
      if (++found === count) return { offset: start + at + 1, found }
    }
    end = start
  }
  // The first line has no other before it.
  return { offset: 0, found: size > 0 ? found + 1 : 0 }
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
