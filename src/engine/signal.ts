import { constants } from 'node:os'
import { CoracleError } from '../errors.js'

const SIGRTMIN = 34
const SIGRTMAX = 64

/**
 * The number of a signal given as `KILL`, `SIGKILL`, `9` or `RTMIN+3`.
 * @throws CoracleError INVALID_ARGUMENT
 */
export function signalNumber(text: string): number {
  if (/^\d+$/.test(text)) {
    const number = Number(text)
    if (number >= 1 && number <= SIGRTMAX) return number
  }
  const name = text.toUpperCase().replace(/^SIG/, '')
  const known = constants.signals[`SIG${name}` as NodeJS.Signals]
  if (known !== undefined) return known
  const realtime = /^RT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(name)
  if (realtime) {
    const base = realtime[1] === 'MIN' ? SIGRTMIN : SIGRTMAX
    const number = base + Number(`${realtime[2] ?? '+'}${realtime[3] ?? 0}`)
    if (number >= SIGRTMIN && number <= SIGRTMAX) return number
  }
  throw new CoracleError('INVALID_ARGUMENT', `invalid signal: ${text.slice(0, 64)}`)
}
