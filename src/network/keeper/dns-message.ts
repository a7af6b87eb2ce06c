import type { Address } from '../address.js'
import { addressBytes } from '../address.js'

/* RFC 1035 §4.1: the parts of a message that a resolver of our kind looks at itself. */
const HEADER = 12
const MAX_LABEL = 63
const MAX_NAME = 255
const FLAG_RESPONSE = 0x8000
const FLAG_AUTHORITATIVE = 0x0400
const FLAG_TRUNCATED = 0x0200
const FLAG_RECURSION_DESIRED = 0x0100
const FLAG_RECURSION_AVAILABLE = 0x0080
const OPCODE = 0x7800
/** The name of an answer: where the question's is. */
const POINTER_TO_QUESTION = 0xc000 | HEADER
const CLASS_IN = 1

export const TYPE_A = 1
export const TYPE_PTR = 12
export const TYPE_AAAA = 28
export const TYPE_ANY = 255

export const NOERROR = 0
export const SERVFAIL = 2
export const NXDOMAIN = 3
export const NOTIMP = 4

/** Seconds that an answer of ours may be kept. */
const TTL = 30

/** A question, read off a message. */
export interface Question {
  readonly id: number
  readonly flags: number
  /** In lower case, without the last dot. */
  readonly name: string
  readonly type: number
  readonly isInternet: boolean
  /** Where the question ends in the message. */
  readonly end: number
}

/** A record of an answer: an address, or a name for PTR. */
export type Answer = { readonly address: Address } | { readonly name: string }

/** @returns undefined for what is no query of one question: it is not answered at all */
export function parseQuery(message: Buffer): Question | undefined {
  if (message.length < HEADER) return undefined
  const flags = message.readUInt16BE(2)
  if ((flags & FLAG_RESPONSE) !== 0 || message.readUInt16BE(4) !== 1) return undefined
  const labels: string[] = []
  let at = HEADER
  for (;;) {
    if (at >= message.length) return undefined
    const length = message[at]!
    if (length === 0) break
    // A pointer has nowhere to point to in a first question.
    if (length > MAX_LABEL || at + 1 + length > message.length || at + 1 + length - HEADER >= MAX_NAME)
      return undefined
    labels.push(message.toString('latin1', at + 1, at + 1 + length))
    at += 1 + length
  }
  if (at + 5 > message.length) return undefined
  return {
    id: message.readUInt16BE(0),
    flags,
    name: labels.join('.').toLowerCase(),
    type: message.readUInt16BE(at + 1),
    isInternet: message.readUInt16BE(at + 3) === CLASS_IN,
    end: at + 5,
  }
}

/** Whether it is a plain query (opcode 0). */
export const isStandard = ({ flags }: Question): boolean => (flags & OPCODE) === 0

/** Our answer to the question that `message` holds. @param code NOERROR, … */
export function encodeAnswer(
  message: Buffer,
  question: Question,
  code: number,
  answers: readonly Answer[] = [],
): Buffer {
  const head = Buffer.from(message.subarray(0, question.end))
  const flags = FLAG_RESPONSE | FLAG_AUTHORITATIVE | FLAG_RECURSION_AVAILABLE | code
  head.writeUInt16BE(flags | (question.flags & (OPCODE | FLAG_RECURSION_DESIRED)), 2)
  head.writeUInt16BE(answers.length, 6)
  head.writeUInt32BE(0, 8)
  return Buffer.concat([head, ...answers.map(encodeRecord)])
}

function encodeRecord(answer: Answer): Buffer {
  const data = 'address' in answer ? addressBytes(answer.address) : encodeName(answer.name)
  const type = 'address' in answer ? (answer.address.family === 4 ? TYPE_A : TYPE_AAAA) : TYPE_PTR
  const record = Buffer.alloc(12)
  record.writeUInt16BE(POINTER_TO_QUESTION, 0)
  record.writeUInt16BE(type, 2)
  record.writeUInt16BE(CLASS_IN, 4)
  record.writeUInt32BE(TTL, 6)
  record.writeUInt16BE(data.length, 10)
  return Buffer.concat([record, data])
}

export function encodeName(name: string): Buffer {
  const labels = name.split('.').map((label) => {
    const bytes = Buffer.from(label, 'latin1').subarray(0, MAX_LABEL)
    return Buffer.concat([Buffer.from([bytes.length]), bytes])
  })
  return Buffer.concat([...labels, Buffer.from([0])])
}

/** An answer cut to what fits into a datagram: the client asks again by TCP. */
export function truncated(answer: Buffer, question: Question): Buffer {
  const head = Buffer.from(answer.subarray(0, question.end))
  head.writeUInt16BE(head.readUInt16BE(2) | FLAG_TRUNCATED, 2)
  head.writeUInt16BE(0, 6)
  return head
}

/** The address whose name `d.c.b.a.in-addr.arpa` or a name below `ip6.arpa` asks for. */
export function reverseAddress(name: string): Address | undefined {
  const v4 = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.in-addr\.arpa$/.exec(name)
  if (v4) {
    const parts = v4.slice(1).reverse().map(Number)
    if (parts.some((part) => part > 255)) return undefined
    return { family: 4, value: parts.reduce((all, part) => (all << 8n) | BigInt(part), 0n) }
  }
  const v6 = /^((?:[0-9a-f]\.){32})ip6\.arpa$/.exec(name)
  return v6 ? { family: 6, value: BigInt(`0x${v6[1]!.split('.').reverse().join('')}`) } : undefined
}
