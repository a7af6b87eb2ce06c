import { closeSync, writeSync } from 'node:fs'
import { Fd, O_APPEND, O_CREAT, O_WRONLY } from '@coracle/sys'
import { log } from '../../log.js'
import { timestamp } from '../files.js'
import { STDOUT, type OutputStream } from '../protocol.js'

/** Docker's: a line longer than this becomes several entries, of which only the last ends with a newline. */
const MAX_ENTRY = 16 * 1024
const NEWLINE = 0x0a

/**
 * Writes Docker's json-file log: one object a line, `{"log":"…\n","stream":"stdout","time":"…"}`. A line that is
 * not complete yet is held until it is, or until its stream ends.
 */
export class JsonLog {
  readonly #fd: number
  readonly #partial = new Map<OutputStream, Buffer>()
  #failed = false

  /** Appends to the file at `path`, which may be a descriptor's (handover.ts). */
  constructor(path: string) {
    this.#fd = Fd.openOrDuplicate(path, O_WRONLY | O_APPEND | O_CREAT, 0o640).release()
  }

  write(stream: OutputStream, chunk: Buffer): void {
    const held = this.#partial.get(stream)
    let rest = held === undefined ? chunk : Buffer.concat([held, chunk])
    const entries: string[] = []
    for (;;) {
      const newline = rest.indexOf(NEWLINE)
      let end = newline + 1
      if (newline < 0 || newline >= MAX_ENTRY) {
        if (rest.length < MAX_ENTRY) break
        end = characterBoundary(rest, MAX_ENTRY)
      }
      entries.push(entry(stream, rest.subarray(0, end)))
      rest = rest.subarray(end)
    }
    // A copy, since a short rest would keep its whole chunk in memory.
    this.#partial.set(stream, Buffer.from(rest))
    this.#append(entries)
  }

  /** The stream has ended: what is held of it is written as it is. */
  end(stream: OutputStream): void {
    const rest = this.#partial.get(stream)
    this.#partial.delete(stream)
    if (rest !== undefined && rest.length > 0) this.#append([entry(stream, rest)])
  }

  close(): void {
    closeSync(this.#fd)
  }

  /** A disk that is full ends the log, not the workload: said once, in the monitor's own log. */
  #append(entries: string[]): void {
    if (entries.length === 0 || this.#failed) return
    const data = Buffer.from(entries.join(''))
    try {
      for (let at = 0; at < data.length;) at += writeSync(this.#fd, data, at)
    } catch (error) {
      this.#failed = true
      log.error('container-log-ended', { message: (error as Error).message })
    }
  }
}

function entry(stream: OutputStream, line: Buffer): string {
  const name = stream === STDOUT ? 'stdout' : 'stderr'
  return `{"log":${JSON.stringify(line.toString('utf8'))},"stream":"${name}","time":"${timestamp()}"}\n`
}

/** The last place at or before `at` that does not cut a UTF-8 sequence in two. */
function characterBoundary(bytes: Buffer, at: number): number {
  for (let back = 0; back < 4; back++) if ((bytes[at - back]! & 0xc0) !== 0x80) return at - back
  return at
}
