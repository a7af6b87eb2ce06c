import type { IncomingMessage } from 'node:http'
import type { ValidateFunction } from 'ajv'
import { CoracleError } from '../errors.js'

/** Of a body that nobody wants any more, so much is waited for: bytes, and ms. */
const MAXIMUM_SKIPPED = 256 * 1024 * 1024
const SKIP_PATIENCE = 30_000

/** A request's body. Who reads no more of it leaves the connection as it is, for the answer. */
export const bodyBytes = (request: IncomingMessage): AsyncIterable<Buffer> =>
  request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>

/** Lets a client send what it has begun to: most look at the answer only then. Cut off where that takes too long. */
export function skipRest(request: IncomingMessage): void {
  let skipped = 0
  const late = setTimeout(() => request.destroy(), SKIP_PATIENCE).unref()
  request.on('data', ({ length }: Buffer) => {
    if ((skipped += length) > MAXIMUM_SKIPPED) request.destroy()
  })
  request.on('close', () => clearTimeout(late)).resume()
}

/** Bytes of a JSON request body at most. */
export const MAXIMUM_BODY = 4 * 1024 * 1024

const validators = new WeakMap<object, ValidateFunction>()

/**
 * Reads a request's JSON body and checks it. An empty body counts as `{}`.
 * @param schema JSON Schema; the caller names its type as `T`
 * @throws CoracleError INVALID_ARGUMENT
 */
export async function jsonBody<T>(request: IncomingMessage, schema: object): Promise<T> {
  const type = request.headers['content-type']?.split(';', 1)[0]!.trim().toLowerCase()
  const text = await readText(request)
  if (text !== '' && type !== 'application/json')
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `unsupported Content-Type: "${type ?? ''}", it must be application/json`,
    )
  return checkJson(text, schema)
}

/** Checks the text of a JSON body, as {@link jsonBody}. @throws CoracleError INVALID_ARGUMENT */
export async function checkJson<T>(text: string, schema: object): Promise<T> {
  let value: unknown
  try {
    value = text === '' ? {} : JSON.parse(text)
  } catch (error) {
    throw new CoracleError('INVALID_ARGUMENT', `invalid JSON: ${(error as Error).message}`)
  }
  return checked<T>(value, schema, 'the body')
}

/**
 * @param what it is, for errors
 * @throws CoracleError INVALID_ARGUMENT where the value does not fit the schema
 */
export async function checked<T>(value: unknown, schema: object, what: string): Promise<T> {
  const validate = await validatorOf(schema)
  if (validate(value)) return value as T
  const { instancePath = '', message = 'is wrong' } = validate.errors?.[0] ?? {}
  const where = instancePath.slice(1).replaceAll('/', '.')
  throw new CoracleError('INVALID_ARGUMENT', `invalid request: ${where === '' ? what : where} ${message}`)
}

async function validatorOf(schema: object): Promise<ValidateFunction> {
  const known = validators.get(schema)
  if (known) return known
  // Loaded with the first body: most commands of the command line send none.
  const { Ajv } = await import('ajv')
  const validate = new Ajv({ allowUnionTypes: true, strict: true }).compile(schema)
  validators.set(schema, validate)
  return validate
}

/** A body that is too large is still read to its end, within reason: a client that writes does not hear us. */
async function readText(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of bodyBytes(request)) {
    length += chunk.length
    if (length <= MAXIMUM_BODY) chunks.push(chunk)
    else if (length > 16 * MAXIMUM_BODY) break
  }
  if (length > MAXIMUM_BODY)
    throw new CoracleError('INVALID_ARGUMENT', `the request's body is larger than ${MAXIMUM_BODY} bytes`)
  return Buffer.concat(chunks).toString('utf8')
}
