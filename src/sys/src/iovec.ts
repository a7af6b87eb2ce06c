/**
 * `struct iovec[]` (sys/uio.h) over memory that outlives the call, such as guest memory: readv and writev on it
 * move bytes between a descriptor and the guest without one pass through JavaScript.
 */
export class IoVector {
  readonly #entries: BigUint64Array
  #count = 0
  #total = 0

  /** @param capacity entries at most; the kernel's own limit is IOV_MAX, 1024 */
  constructor(capacity = 1024) {
    this.#entries = new BigUint64Array(capacity * 2)
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

  /** @throws RangeError when full */
  push(address: bigint, length: number): this {
    if (this.full) throw new RangeError('iovec is full')
    this.#entries[this.#count * 2] = address
    this.#entries[this.#count * 2 + 1] = BigInt(length)
    this.#count++
    this.#total += length
    return this
  }
}
