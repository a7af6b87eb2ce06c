import { closeSync } from 'node:fs'
import { rmSync } from 'node:fs'
import { ReadStream } from 'node:tty'
import { Fd, SysError, accept, listenUnix, receiveWithFds } from '@coracle/sys'
import { CoracleError } from '../../errors.js'

/** asm-generic/ioctls.h */
const TIOCSWINSZ = 0x5414

/** Our end of a container's terminal: the pseudoterminal's master. */
export class Terminal {
  /** What the terminal shows, and where to type. */
  readonly stream: ReadStream
  readonly #fd: Fd

  /** @param fd the master; owned from now on */
  constructor(fd: Fd) {
    this.#fd = fd.duplicate()
    this.stream = new ReadStream(fd.release())
  }

  /** Columns and rows. */
  resize(width: number, height: number): void {
    if (this.#fd.closed) return
    // struct winsize: rows, columns, and two fields for pixels.
    this.#fd.ioctl(TIOCSWINSZ, new Uint16Array([height, width, 0, 0]), 'TIOCSWINSZ')
  }

  close(): void {
    this.#fd.close()
    this.stream.destroy()
  }
}

/** The socket over which crun hands out a terminal's master (`--console-socket`). */
export class ConsoleSocket implements Disposable {
  readonly path: string
  readonly #listener: Fd

  constructor(path: string) {
    rmSync(path, { force: true })
    this.path = path
    this.#listener = listenUnix(path)
  }

  /** Takes what `crun create` sent; called after it ended well, so nothing is waited for. */
  receive(): Terminal {
    const connection = accept(this.#listener)
    if (connection === undefined) throw new CoracleError('SANDBOX_FAILED', 'crun sent no terminal')
    try {
      const { fds } = receiveWithFds(connection, new Uint8Array(256))
      const [master, ...more] = fds
      for (const fd of more) closeSync(fd.release())
      if (master === undefined) throw new CoracleError('SANDBOX_FAILED', 'crun sent no terminal')
      return new Terminal(master)
    } catch (error) {
      if (error instanceof SysError)
        throw new CoracleError('SANDBOX_FAILED', `crun's terminal: ${error.message}`)
      throw error
    } finally {
      connection.close()
    }
  }

  [Symbol.dispose](): void {
    this.#listener.close()
    rmSync(this.path, { force: true })
  }
}
