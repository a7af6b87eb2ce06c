/** What a guest wrote to its console last, at most `capacity` bytes of it, and how much it wrote at all. */
export class ConsoleLog {
  readonly #ring: Uint8Array
  #total = 0

  constructor(capacity = 65_536) {
    this.#ring = new Uint8Array(capacity)
  }

  /** Bytes ever written. */
  get total(): number {
    return this.#total
  }

  append(bytes: Uint8Array): void {
    const { length } = this.#ring
    const kept = bytes.subarray(Math.max(0, bytes.length - length))
    this.#total += bytes.length - kept.length
    for (let done = 0; done < kept.length;) {
      const at = this.#total % length
      const piece = Math.min(kept.length - done, length - at)
      this.#ring.set(kept.subarray(done, done + piece), at)
      this.#total += piece
      done += piece
    }
  }

  /** What is kept, oldest first. */
  bytes(): Uint8Array {
    const { length } = this.#ring
    if (this.#total <= length) return this.#ring.slice(0, this.#total)
    const at = this.#total % length
    return Buffer.concat([this.#ring.subarray(at), this.#ring.subarray(0, at)])
  }

  toString(): string {
    return Buffer.from(this.bytes()).toString('utf8')
  }
}
