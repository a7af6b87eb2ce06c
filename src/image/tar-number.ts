/** An octal field: blanks or NULs may stand around the digits, and nothing at all is 0. */
export function octal(block: Buffer, at: number, length: number): number {
  const text = block
    .toString('latin1', at, at + length)

    .replace(/^[ \0]+|[ \0].*$/gs, '')
  if (text === '') return 0
  return /^[0-7]+$/.test(text) ? parseInt(text, 8) : NaN
}

/** GNU's base-256 field: big-endian two's complement below the top bit. */
export function binary(block: Buffer, at: number, length: number): number {
  let value = BigInt(block[at]! & 0x7f)
  for (let i = 1; i < length; i++) value = (value << 8n) | BigInt(block[at + i]!)
  return Number(BigInt.asIntN(length * 8 - 1, value))
}
