import { closeSync, fstatSync, ftruncateSync, readSync, writeSync } from 'node:fs'
import { Fd, O_APPEND, O_CREAT, O_RDWR } from '@coracle/sys'
import { log } from '../../log.js'
import { type LogFiles, parseTurns, timestamp } from '../files.js'
import { STDOUT, type OutputStream } from '../protocol.js'

/** Docker's: a line longer than this becomes several entries, of which only the last ends with a newline. */
const MAX_ENTRY = 16 * 1024
const NEWLINE = 0x0a

/** Digits of the number of turns: it is written over itself, always as long. */
const TURNS_WIDTH = 15

/**
 * Writes Docker's json-file log: one object a line, `{"log":"…\n","stream":"stdout","time":"…"}`. A line that is
 * not complete yet is held until it is, or until its stream ends.
 *
 * Files with a bound are used in turn, each emptied before it is written again; none is renamed, since a contained
 * monitor has descriptors alone. The number of turns is written between the two, so that a monitor which is killed at
 * any point leaves files whose order is known, and loses no more than the oldest of them.
 */
export class JsonLog {
  readonly #fds: readonly number[]
  readonly #turnsFd: number | undefined
  readonly #maxSize: number
  readonly #partial = new Map<OutputStream, Buffer>()
  #turns = 0
  /** Bytes in the file that is written. */
  #size = 0
  #failed = false

  /** Appends to files whose paths may be descriptors' (handover.ts). */
  constructor({ files, maxSize, turns }: LogFiles) {
    this.#fds = files.map((path) => Fd.openOrDuplicate(path, O_RDWR | O_APPEND | O_CREAT, 0o640).release())
    this.#maxSize = maxSize ?? Infinity
    this.#turnsFd =
      turns === undefined ? undefined : Fd.openOrDuplicate(turns, O_RDWR | O_CREAT, 0o640).release()
    if (this.#turnsFd !== undefined) this.#turns = parseTurns(textAt(this.#turnsFd, 0, TURNS_WIDTH))
    this.#size = fstatSync(this.#fd).size
    // What a monitor that was killed left of a line is not to spoil the next.
    if (this.#size > 0 && textAt(this.#fd, this.#size - 1, 1) !== '\n')
      this.#size += writeSync(this.#fd, '\n')
  }

  get #fd(): number {
    return this.#fds[this.#turns % this.#fds.length]!
  }

  write(stream: OutputStream, chunk: Buffer): void {
    const held = this.#partial.get(stream)
    let rest = held === undefined ? chunk : Buffer.concat([held, chunk])
    const entries: Buffer[] = []
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

  /** What still comes, of a stream that something else holds open, is dropped: its descriptor may be another's by then. */
  close(): void {
    this.#failed = true
    for (const fd of this.#fds) closeSync(fd)
    if (this.#turnsFd !== undefined) closeSync(this.#turnsFd)
  }

  /** A disk that is full ends the log, not the workload: said once, in the monitor's own log. */
  #append(entries: Buffer[]): void {
    if (this.#failed) return
    try {
      let from = 0
      let length = 0
      const flush = (to: number): void => {
        this.#write(Buffer.concat(entries.slice(from, to), length))
        from = to
        length = 0
      }
      entries.forEach((each, i) => {
        if (this.#size + length > 0 && this.#size + length + each.length > this.#maxSize) {
          flush(i)
          this.#turn()
        }
        length += each.length
      })
      flush(entries.length)
    } catch (error) {
      this.#failed = true
      log.error('container-log-ended', { message: (error as Error).message })
    }
  }

  #write(data: Buffer): void {
    for (let at = 0; at < data.length;) at += writeSync(this.#fd, data, at)
    this.#size += data.length
  }

  #turn(): void {
    const next = this.#turns + 1
    ftruncateSync(this.#fds[next % this.#fds.length]!)
    writeSync(this.#turnsFd!, `${String(next).padStart(TURNS_WIDTH, '0')}\n`, 0)
    this.#turns = next
    this.#size = 0
  }
}

function textAt(fd: number, position: number, length: number): string {
  const bytes = Buffer.alloc(length)
  return bytes.toString('latin1', 0, readSync(fd, bytes, 0, length, position))
}

function entry(stream: OutputStream, line: Buffer): Buffer {
  const name = stream === STDOUT ? 'stdout' : 'stderr'
  return Buffer.from(
    `{"log":${JSON.stringify(line.toString('utf8'))},"stream":"${name}","time":"${timestamp()}"}\n`,
  )
}

/** The last place at or before `at` that does not cut a UTF-8 sequence in two. */
function characterBoundary(bytes: Buffer, at: number): number {
  for (let back = 0; back < 4; back++) if ((bytes[at - back]! & 0xc0) !== 0x80) return at - back
  return at
}
