import { CoracleError } from '../../errors.js'

/** Numbers below an end, each for one holder at a time: interrupts (GSIs), memory slots. */
export class NumberPool {
  readonly #end: number
  readonly #what: string
  readonly #free: number[] = []
  #next: number

  /** @param what for the message when there are no more, such as `memory slots` */
  constructor(first: number, end: number, what: string) {
    this.#next = first
    this.#end = end
    this.#what = what
  }

  /** @throws CoracleError KVM_REFUSED where all are taken */
  take(): number {
    const number = this.#free.pop() ?? this.#next
    if (number >= this.#end)
      throw new CoracleError('KVM_REFUSED', `KVM has no more ${this.#what} for this machine: remove a device`)
    if (number === this.#next) this.#next++
    return number
  }

  giveBack(number: number): void {
    this.#free.push(number)
  }
}

/** Parts of one range of addresses, each for one holder at a time: BARs in the PCI window, memory of devices. */
export class AddressPool {
  readonly #start: number
  readonly #end: number
  readonly #what: string
  /** In the order of their addresses. */
  readonly #taken: { start: number; end: number }[] = []

  /** @param what for the message when it is full, such as `the PCI window` */
  constructor(range: { readonly start: number; readonly size: number }, what: string) {
    this.#start = range.start
    this.#end = range.start + range.size
    this.#what = what
  }

  /**
   * The lowest free place.
   * @param size bytes @param alignment of the address @throws CoracleError CONFLICT where there is none
   */
  take(size: number, alignment: number): number {
    let at = this.#start
    let i = 0
    for (; ; i++) {
      at = Math.ceil(at / alignment) * alignment
      const next = this.#taken[i]
      if (at + size <= (next?.start ?? this.#end)) break
      if (!next) throw new CoracleError('CONFLICT', `${this.#what} is full: remove a device`)
      at = next.end
    }
    this.#taken.splice(i, 0, { start: at, end: at + size })
    return at
  }

  giveBack(address: number): void {
    const i = this.#taken.findIndex(({ start }) => start === address)
    if (i >= 0) this.#taken.splice(i, 1)
  }
}
