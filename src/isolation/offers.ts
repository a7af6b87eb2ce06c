import { Fd, Tap, accept, connectUnix } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { Handover, receiveHandover, sendHandover } from './handover.js'

/*
 * How a contained monitor gets descriptors while it runs: who wants something of it offers them at a socket of its own
 * (`offers.sock`) first, and then asks over the control socket, which makes it look there.
 */

/** How long an offer may be on its way, in ms: it was sent before. */
const PATIENCE = 1000

const nameOf = (tap: string): string => `tap.${tap}`

/**
 * Opens a tap in this process's network namespace and offers it.
 * @param path of the socket
 * @throws CoracleError NOT_RUNNING where nobody listens there, SysError EBUSY where somebody has the tap open
 */
export function offerTap(path: string, tap: string): void {
  using handover = new Handover()
  handover.add(nameOf(tap), Tap.open(tap).fd)
  let socket
  try {
    socket = connectUnix(path, PATIENCE)
  } catch (cause) {
    throw new CoracleError('NOT_RUNNING', 'the container is not running, or does not answer', { cause })
  }
  try {
    sendHandover(socket, handover)
  } finally {
    socket.close()
  }
}

/**
 * Looks through all that was offered for a tap, and lets go of the rest: who offered that is not there any more.
 * @throws CoracleError SANDBOX_FAILED where it is not among them
 */
export function takeTap(listener: Fd, tap: string): Fd {
  let found: Fd | undefined
  for (let socket; (socket = accept(listener)) !== undefined;) {
    using _socket = socket
    using handover = receiveHandover(socket, PATIENCE)
    if (handover?.has(nameOf(tap)) !== true) continue
    found?.close()
    found = handover.take(nameOf(tap))
  }
  if (found === undefined) throw new CoracleError('SANDBOX_FAILED', `the tap ${tap} was not offered`)
  return found
}
