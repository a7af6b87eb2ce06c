/**
 * `struct iovec[]` (sys/uio.h) over memory that outlives the call, such as guest memory: readv and writev on it
 * move bytes between a descriptor and the guest without one pass through JavaScript.
 */
export class IoVector {
  readonly #entries: BigUint64Array
  /** The same memory as 32-bit halves: storing a number this way allocates no BigInt. */
  readonly #halves: Uint32Array
  #count = 0
  #total = 0

  /** @param capacity entries at most; the kernel's own limit is IOV_MAX, 1024 */
  constructor(capacity = 1024) {
    this.#entries = new BigUint64Array(capacity * 2)
    this.#halves = new Uint32Array(this.#entries.buffer)
  }

  get bytes(): BigUint64Array {
    return this.#entries
  }
  get count(): number {
    return this.#count
  }
  /** The sum of the parts' lengths in bytes. */
  get total(): number {
    return this.#total
  }
  get full(): boolean {
    return this.#count * 2 === this.#entries.length
  }

  clear(): this {
    this.#count = 0
    this.#total = 0
    return this
  }

  /**
   * @param address as a number it is exact up to 2^53, beyond any user-space address
   * @throws RangeError when full
   */
  push(address: bigint | number, length: number): this {
    if (this.full) throw new RangeError('iovec is full')
    const at = this.#count * 4
    if (typeof address === 'bigint') this.#entries[at / 2] = address
    else {
      this.#halves[at] = address % 2 ** 32
      this.#halves[at + 1] = Math.floor(address / 2 ** 32)
    }
    this.#halves[at + 2] = length % 2 ** 32
    this.#halves[at + 3] = Math.floor(length / 2 ** 32)
    this.#count++
    this.#total += length
    return this
  }
}
