import type { ServerResponse } from 'node:http'
import { CoracleError, ERRORS, isNoSpace } from '../errors.js'
import { API_VERSION } from './router.js'
import { VERSION } from './version.js'

/** What every answer carries. */
export const HEADERS = {
  'Api-Version': API_VERSION,
  Ostype: 'linux',
  Server: `Coracle/${VERSION} (linux)`,
} as const

/** The head of an answer on a connection that was taken over. @param status such as `101 UPGRADED` */
export function headOf(status: string, headers: Record<string, string>): string {
  const lines = Object.entries({ ...HEADERS, ...headers }).map(([name, value]) => `${name}: ${value}`)
  return `HTTP/1.1 ${status}\r\n${lines.join('\r\n')}\r\n\r\n`
}

/** `code` is ours: Docker's clients look at the message alone. */
export function errorShape(error: unknown): { status: number; body: { message: string; code: string } } {
  if (error instanceof CoracleError)
    return { status: error.status, body: { message: messageOf(error), code: error.code } }
  const message = (error as Error)?.message ?? String(error)
  if (isNoSpace(error))
    return {
      status: ERRORS.NO_SPACE.status,
      body: { message: `${message}: 'coracle system df' says what takes it`, code: 'NO_SPACE' },
    }
  return { status: ERRORS.INTERNAL.status, body: { message, code: 'INTERNAL' } }
}

/** The words by which Docker's client tells 126 and 127 from 125 when a start failed. */
const START_HINTS: Partial<Record<CoracleError['code'], string>> = {
  COMMAND_NOT_FOUND: 'executable file not found',
  COMMAND_NOT_EXECUTABLE: 'permission denied',
}

function messageOf(error: CoracleError): string {
  const hint = START_HINTS[error.code]
  return hint === undefined || error.message.includes(hint) ? error.message : `${error.message}: ${hint}`
}

/** Answers with JSON. Docker's clients want this very Content-Type, without a charset. */
export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const text = JSON.stringify(body)
  response
    .writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) })
    .end(text)
}
