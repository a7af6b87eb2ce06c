import { CONTINUE, type ExitHandler, type Verdict } from '../../src/kvm/index.js'

const CAPACITY = 1024

/** What a guest wrote, in memory that threads share: word 0 counts, the values follow. Reads get 0. */
export class SharedLog implements ExitHandler {
  readonly #words: Int32Array
  constructor(readonly buffer = new SharedArrayBuffer(4 * (1 + CAPACITY))) {
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
    const count = Atomics.load(this.#words, 0)
    this.#words[1 + (count % CAPACITY)] = size === 1 ? data.getUint8(offset) : data.getUint32(offset, true)
    Atomics.add(this.#words, 0, 1)
    Atomics.notify(this.#words, 0)
    return CONTINUE
  }

  get values(): number[] {
    return Array.from(this.#words.subarray(1, 1 + Atomics.load(this.#words, 0)))
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

/** The handler module's entry: `data` is a log's buffer. */
export const createHandler = (data: unknown): ExitHandler => new SharedLog(data as SharedArrayBuffer)
