import { randomBytes, randomInt } from 'node:crypto'
import { CoracleError } from '../errors.js'

const MANNERS =
  'amber bold brisk calm clever coastal drifting eager early fair fleet gentle glad keen light lively lucky mellow misty nimble patient placid quick quiet ready salty silent silver sleek steady still sunny swift tidal tranquil upright wandering warm wise woven'
const CRAFT =
  'barge barque brig canoe caravel catboat clipper cog corvette curragh cutter dhow dinghy dory felucca galleon gig gondola hoy junk kayak ketch knarr launch lugger packet pinnace prau punt raft sampan schooner scow shallop skiff sloop tartane tender trawler umiak wherry xebec yawl'
const manners = MANNERS.split(' ')
const craft = CRAFT.split(' ')

/** A name such as `steady_curragh`; after some tries, with a number behind it. */
export function generateName(attempt: number): string {
  const name = `${manners[randomInt(manners.length)]}_${craft[randomInt(craft.length)]}`
  return attempt < 8 ? name : `${name}${randomInt(10 ** Math.min(attempt - 6, 8))}`
}

/** @throws CoracleError INVALID_ARGUMENT */
export function checkName(name: string): void {
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,252}$/.test(name))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `invalid container name (${name.slice(0, 64)}): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, two to 253 characters`,
    )
}

/** 64 hexadecimal digits whose first twelve are not all decimal, so that a short id is never taken for a number. */
export function generateId(): string {
  for (;;) {
    const id = randomBytes(32).toString('hex')
    if (!/^\d{12}/.test(id)) return id
  }
}
