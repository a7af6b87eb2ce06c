import { readFileSync, readdirSync } from 'node:fs'
import { SysError, waitForChild } from '@coracle/sys'
import { CoracleError } from '../../errors.js'

const SIGKILL = 9

/** A process that crun left to us, as its reaper: it is waited for by its number alone. */
export class Child {
  static readonly #living = new Set<Child>()
  readonly pid: number
  /** Resolves to 0–255, or 128+n for signal n. */
  readonly ended: Promise<number>
  #resolve!: (exitCode: number) => void

  /** Followed from now on. */
  constructor(pid: number) {
    this.pid = pid
    this.ended = new Promise((resolve) => (this.#resolve = resolve))
    if (Child.#living.size === 0) process.on('SIGCHLD', Child.look)
    Child.#living.add(this)
  }

  /** Takes the status of those that have ended. */
  static readonly look = (): void => {
    for (const child of Child.#living) child.look()
  }

  /**
   * Follows what a crun that failed left to us in the container's PID namespace: while such a process is not waited
   * for, the kernel does not let that namespace end. Our own children are in our namespace, and not looked at.
   */
  static adoptStrays(): void {
    const known = new Set([...Child.#living].map(({ pid }) => pid))
    for (const pid of readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number))
      if (!known.has(pid) && isStray(pid)) new Child(pid).look()
  }

  /** Not waited for yet, so the number is still its own. */
  get alive(): boolean {
    return Child.#living.has(this)
  }

  /** @throws CoracleError NOT_RUNNING */
  kill(signal: number): void {
    if (!this.alive) throw new CoracleError('NOT_RUNNING', 'the process is not running')
    process.kill(this.pid, signal)
  }

  /** Takes its status where it has ended: a signal that came before we listened is not sent again. */
  look(): void {
    if (!this.alive) return
    let exitCode: number
    try {
      const end = waitForChild(this.pid)
      if (end === undefined) return
      exitCode = 'status' in end ? end.status : 128 + end.signal
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      exitCode = 128 + SIGKILL
    }
    Child.#living.delete(this)
    if (Child.#living.size === 0) process.off('SIGCHLD', Child.look)
    this.#resolve(exitCode)
  }
}

function isStray(pid: number): boolean {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    const parent = Number(/^PPid:\s+(\d+)$/m.exec(status)?.[1])
    return parent === process.pid && /^NSpid:\s+\d+\s+\d+/m.test(status)
  } catch {
    return false
  }
}
