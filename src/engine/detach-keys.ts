import { Transform, type TransformCallback } from 'node:stream'
import { CoracleError } from '../errors.js'

/** Keys at most: a sequence that nobody can type holds back what is typed. */
const MAX_KEYS = 32
/** `ctrl-@` is 0, `ctrl-a` 1, …, `ctrl-_` 31. */
const CONTROLS = '@abcdefghijklmnopqrstuvwxyz[\\]^_'

/**
 * The bytes of `--detach-keys`: keys with commas between them, each a character or `ctrl-` and one of `a` to `z`,
 * `@`, `[`, `\`, `]`, `^`, `_`.
 * @param text undefined or empty for Docker's default, ctrl-p ctrl-q
 * @throws CoracleError INVALID_ARGUMENT
 */
export function parseDetachKeys(text: string | undefined): Buffer {
  const keys = (text || 'ctrl-p,ctrl-q').split(',')
  const bytes = keys.map((key) => {
    if (/^[\x20-\x7e]$/.test(key)) return key.charCodeAt(0)
    const [, control] = /^ctrl-(.)$/i.exec(key) ?? []
    return control === undefined ? -1 : CONTROLS.indexOf(control.toLowerCase())
  })
  const bad = bytes.findIndex((byte) => byte < 0)
  if (bad >= 0)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `invalid detach keys: '${keys[bad]!.slice(0, 32)}' is no key, such as a or ctrl-a`,
    )
  if (bytes.length > MAX_KEYS)
    throw new CoracleError('INVALID_ARGUMENT', `invalid detach keys: there may be ${MAX_KEYS}`)
  return Buffer.from(bytes)
}

/** Passes on what is typed, until the keys are; the first of them are held back until the next byte. */
export class DetachKeys extends Transform {
  readonly #keys: Buffer
  readonly #onDetach: () => void
  #held = 0

  constructor(keys: Buffer, onDetach: () => void) {
    super()
    this.#keys = keys
    this.#onDetach = onDetach
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    const keys = this.#keys
    const bytes = Buffer.concat([keys.subarray(0, this.#held), chunk])
    const at = bytes.indexOf(keys)
    this.#held = 0
    if (at >= 0) {
      this.push(bytes.subarray(0, at))
      this.#onDetach()
    } else {
      let held = Math.min(keys.length - 1, bytes.length)
      while (!keys.subarray(0, held).equals(bytes.subarray(bytes.length - held))) held--
      this.#held = held
      this.push(bytes.subarray(0, bytes.length - held))
    }
    done()
  }

  override _flush(done: TransformCallback): void {
    if (this.#held > 0) this.push(this.#keys.subarray(0, this.#held))
    done()
  }
}
