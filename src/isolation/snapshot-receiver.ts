import type { Socket } from 'node:net'
import { Fd, O_CREAT, O_EXCL, O_RDWR, SysError } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { CHUNK } from '../vmm/snapshot/memory-file.js'
import { MAX_SEALED } from '../vmm/snapshot/sealed.js'
import { copySparse } from './copy-sparse.js'
import { sandboxFiles, savedFiles } from './files.js'
import { toolsOf } from './microvm/guest-parts.js'
import { BEGIN, END, FAILED, MEMORY, SNAPSHOT_FRAME, STATE, restoreError } from './protocol.js'
import type { SandboxSpec } from './sandbox.js'

/** Bytes of an error's description. */
const MAX_ERROR = 64 << 10
const PAGE = 4096
/** Of a guest's memory; the file costs what is written. */
const MAX_MEMORY = 2 ** 40

/**
 * Takes a snapshot from a monitor into an empty folder: memory and state as it sends them, the disk and the tools from
 * the host's files. All of it is on the disk when this resolves. The monitor is not trusted with more than the content
 * of those files.
 * @param socket just before the first frame
 * @throws CoracleError what the monitor says, SANDBOX_FAILED; SysError such as ENOSPC
 */
export async function receiveSnapshot(
  socket: Socket,
  spec: SandboxSpec,
  folder: string,
  signal?: AbortSignal,
): Promise<void> {
  signal?.throwIfAborted()
  const abort = (): void => void socket.destroy()
  signal?.addEventListener('abort', abort, { once: true })
  const to = savedFiles(folder)
  const create = (path: string): Fd => Fd.open(path, O_RDWR | O_CREAT | O_EXCL)
  using memory = create(to.memory)
  using state = create(to.state)
  const receiver = new Receiver(memory, state)
  let copying: Promise<unknown> | undefined
  try {
    for await (const chunk of socket as AsyncIterable<Buffer>)
      for (const event of receiver.push(chunk)) {
        if (event === 'still') {
          const { disk } = sandboxFiles(spec)
          copying = Promise.all([copySparse(disk, to.disk), copySparse(toolsOf(spec), to.tools)])
          copying.catch(() => undefined)
        } else if (event === 'state') {
          await copying
          socket.write('\n')
        } else {
          memory.sync()
          state.sync()
          return
        }
      }
    throw new CoracleError('SANDBOX_FAILED', 'the container ended while it was saved')
  } catch (error) {
    await copying?.catch(() => undefined)
    signal?.throwIfAborted()
    if (
      error instanceof CoracleError ||
      !(error as { syscall?: string }).syscall ||
      error instanceof SysError
    )
      throw error
    throw new CoracleError('SANDBOX_FAILED', 'the container ended while it was saved', { cause: error })
  } finally {
    signal?.removeEventListener('abort', abort)
    socket.destroy()
  }
}

/** Takes the frames apart; bytes go to their files as they come. */
class Receiver {
  readonly #memory: Fd
  readonly #state: Fd
  #size = 0
  #header = Buffer.alloc(0)
  #kind = 0
  /** Bytes that the frame still has, and where they go. */
  #left = 0
  #at = 0
  #error = ''
  /** The end of the memory that has come. */
  #end = 0
  #last = 0

  constructor(memory: Fd, state: Fd) {
    this.#memory = memory
    this.#state = state
  }

  *push(chunk: Buffer): Generator<'still' | 'state' | 'end'> {
    for (let rest = chunk; rest.length > 0;) {
      if (this.#left === 0) {
        const need = SNAPSHOT_FRAME - this.#header.length
        this.#header = Buffer.concat([this.#header, rest.subarray(0, need)])
        rest = rest.subarray(need)
        if (this.#header.length < SNAPSHOT_FRAME) return
        this.#begin(this.#header)
        this.#header = Buffer.alloc(0)
      } else {
        const part = rest.subarray(0, this.#left)
        this.#take(part)
        this.#left -= part.length
        rest = rest.subarray(part.length)
      }
      if (this.#left > 0) continue
      if (this.#kind === FAILED)
        throw restoreError(JSON.parse(this.#error) as { code: string; message: string })
      if (this.#kind === BEGIN) yield 'still'
      else if (this.#kind === STATE) yield 'state'
      else if (this.#kind === END) yield 'end'
    }
  }

  #begin(header: Buffer): void {
    const kind = header.readUInt32LE(0)
    const length = header.readUInt32LE(4)
    const offset = header.readBigUInt64LE(8)
    const isNext = kind === this.#last + 1 || (kind === STATE && this.#last === BEGIN)
    const inTurn = kind === FAILED || isNext || (kind === MEMORY && this.#last === MEMORY)
    const most = { [MEMORY]: CHUNK, [STATE]: MAX_SEALED, [FAILED]: MAX_ERROR }[kind] ?? 0
    const least = most > 0 ? 1 : 0
    if (!inTurn || length > most || length < least)
      throw broken(`a frame ${kind} of ${length} bytes out of turn`)
    this.#at = 0
    const at = Number(offset)
    if (kind === BEGIN) {
      if (at === 0 || at % PAGE !== 0 || at > MAX_MEMORY) throw broken(`a memory of ${offset} bytes`)
      this.#size = at
      this.#memory.truncate(at)
    } else if (kind === MEMORY) {
      if (at % PAGE !== 0 || at < this.#end || at + length > this.#size) throw broken(`memory at ${offset}`)
      this.#at = at
      this.#end = at + length
    }
    this.#last = this.#kind = kind
    this.#left = length
  }

  #take(part: Buffer): void {
    if (this.#kind === FAILED) this.#error += part.toString('latin1')
    else
      for (let done = 0; done < part.length;) {
        const file = this.#kind === MEMORY ? this.#memory : this.#state
        done += file.pwrite(part.subarray(done), this.#at + done)
      }
    this.#at += part.length
  }
}

const broken = (what: string): CoracleError =>
  new CoracleError('SANDBOX_FAILED', `the monitor does not send a snapshot as it should: ${what}`)
