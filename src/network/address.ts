import { isIPv4, isIPv6 } from 'node:net'

/** The address families, by their number in an address's name. */
export type Family = 4 | 6

/** Bits of an address. */
export const bitsOf = (family: Family): number => (family === 4 ? 32 : 128)

/** An IP address as a number. */
export interface Address {
  readonly family: Family
  readonly value: bigint
}

/** @returns undefined for what is no address; a zone (`%eth0`) makes it none */
export function parseAddress(text: string): Address | undefined {
  if (isIPv4(text)) return { family: 4, value: number(text.split('.').map(Number), 8n) }
  if (!isIPv6(text) || text.includes('%')) return undefined
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text)
  if (dotted) {
    const [a, b, c, d] = dotted.slice(2).map(Number) as [number, number, number, number]
    text = `${dotted[1]}${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`
  }
  const groups = (part: string): number[] =>
    part === '' ? [] : part.split(':').map((each) => parseInt(each, 16))
  const [left = '', right] = text.split('::')
  const head = groups(left)
  const tail = right === undefined ? [] : groups(right)
  const zeros: number[] = Array.from({ length: 8 - head.length - tail.length }, () => 0)
  return { family: 6, value: number([...head, ...zeros, ...tail], 16n) }
}

const number = (parts: readonly number[], bits: bigint): bigint =>
  parts.reduce((all, part) => (all << bits) | BigInt(part), 0n)

/** The address as it is written, an IPv6 one by RFC 5952. */
export function formatAddress({ family, value }: Address): string {
  if (family === 4) return [24n, 16n, 8n, 0n].map((shift) => (value >> shift) & 0xffn).join('.')
  const groups = Array.from({ length: 8 }, (_, i) => Number((value >> BigInt(112 - 16 * i)) & 0xffffn))
  let best = { at: -1, length: 1 }
  for (let at = 0; at < 8; at++) {
    let length = 0
    while (at + length < 8 && groups[at + length] === 0) length++
    if (length > best.length) best = { at, length }
  }
  const hex = groups.map((group) => group.toString(16))
  if (best.at < 0) return hex.join(':')
  return `${hex.slice(0, best.at).join(':')}::${hex.slice(best.at + best.length).join(':')}`
}

/** The address's bytes in network order. */
export function addressBytes({ family, value }: Address): Buffer {
  return Buffer.from(value.toString(16).padStart(bitsOf(family) / 4, '0'), 'hex')
}

/** The address in `bytes`, of 4 or 16. */
export function addressOfBytes(bytes: Uint8Array): Address {
  return { family: bytes.length === 4 ? 4 : 6, value: BigInt(`0x${Buffer.from(bytes).toString('hex')}`) }
}

/** A range of addresses with a common prefix. */
export class Subnet {
  readonly family: Family
  /** Its lowest address. */
  readonly base: bigint
  readonly prefix: number

  constructor({ family, value }: Address, prefix: number) {
    this.family = family
    this.prefix = prefix
    const host = BigInt(bitsOf(family) - prefix)
    this.base = (value >> host) << host
  }

  /** @param text such as `10.1.0.0/16`; bits behind the prefix are dropped @returns undefined for what is none */
  static parse(text: string): Subnet | undefined {
    const match = /^([^/]+)\/(\d{1,3})$/.exec(text)
    const address = match ? parseAddress(match[1]!) : undefined
    const prefix = Number(match?.[2])
    return address && prefix <= bitsOf(address.family) ? new Subnet(address, prefix) : undefined
  }

  get size(): bigint {
    return 1n << BigInt(bitsOf(this.family) - this.prefix)
  }

  /** Its highest address. */
  get last(): bigint {
    return this.base + this.size - 1n
  }

  contains({ family, value }: Address): boolean {
    return family === this.family && value >= this.base && value <= this.last
  }

  overlaps(other: Subnet): boolean {
    return other.family === this.family && other.base <= this.last && this.base <= other.last
  }

  /** The address that is `offset` above its lowest. */
  at(offset: bigint): Address {
    return { family: this.family, value: this.base + offset }
  }

  toString(): string {
    return `${formatAddress(this.at(0n))}/${this.prefix}`
  }
}
