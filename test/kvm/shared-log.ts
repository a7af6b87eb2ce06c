import { CONTINUE, type ExitHandler, type Verdict } from '../../src/kvm/index.js'

const CAPACITY = 1024

/** What a guest wrote, in memory that threads share: word 0 counts them, word 1 the places taken, the
 * values follow. Reads get 0. */
export class SharedLog implements ExitHandler {
  readonly #words: Int32Array
  constructor(readonly buffer = new SharedArrayBuffer(4 * (2 + CAPACITY))) {
    this.#words = new Int32Array(buffer)
  }

  access(
    _space: number,
    _address: number,
    size: number,
    isWrite: boolean,
    data: DataView,
    offset: number,
  ): Verdict {
    if (!isWrite) return CONTINUE
    const value = size === 1 ? data.getUint8(offset) : data.getUint32(offset, true)
    // Several processors may write: take a place, fill it, and count only then.
    const place = Atomics.add(this.#words, 1, 1)
    this.#words[2 + (place % CAPACITY)] = value
    Atomics.add(this.#words, 0, 1)
    Atomics.notify(this.#words, 0)
    return CONTINUE
  }

  get values(): number[] {
    return Array.from(this.#words.subarray(2, 2 + Atomics.load(this.#words, 0)))
  }

  /** Waits, blocking, until `count` values are there. @returns false after 20 s */
  waitFor(count: number): boolean {
    for (;;) {
      const now = Atomics.load(this.#words, 0)
      if (now >= count) return true
      if (Atomics.wait(this.#words, 0, now, 20_000) === 'timed-out') return false
    }
  }
}
