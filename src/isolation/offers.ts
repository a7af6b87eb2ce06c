import { Fd, O_RDWR, Tap, accept, connectUnix } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { Handover, receiveHandover, sendHandover } from './handover.js'

/*
 * How a contained monitor gets descriptors while it runs: who wants something of it offers them at a socket of its own
 * (`offers.sock`) first, and then asks over the control socket, which makes it look there.
 */

/** How long an offer may be on its way, in ms: it was sent before. */
const PATIENCE = 1000

const tapName = (tap: string): string => `tap.${tap}`
const vhostName = (tap: string): string => `vhost.${tap}`

/** What an adapter stands on, open. */
export interface AdapterFiles extends Disposable {
  readonly tap: Fd
  readonly vhost?: Fd
}

/**
 * Opens a tap in this process's network namespace and offers it, with /dev/vhost-net where that is wanted and opens.
 * @param path of the socket
 * @throws CoracleError NOT_RUNNING where nobody listens there, SysError EBUSY where somebody has the tap open
 */
export function offerAdapter(path: string, tap: string, vhost: string | undefined): void {
  using handover = new Handover()
  handover.add(tapName(tap), Tap.open(tap).fd)
  const carrier = vhost === undefined ? undefined : openVhost(vhost)
  if (carrier) handover.add(vhostName(tap), carrier)
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
export function takeAdapter(listener: Fd, tap: string): AdapterFiles {
  let found: AdapterFiles | undefined
  for (let socket; (socket = accept(listener)) !== undefined;) {
    using _socket = socket
    using handover = receiveHandover(socket, PATIENCE)
    if (handover?.has(tapName(tap)) !== true) continue
    found?.[Symbol.dispose]()
    found = filesOf(handover, tap)
  }
  if (found === undefined) throw new CoracleError('SANDBOX_FAILED', `the tap ${tap} was not offered`)
  return found
}

function filesOf(handover: Handover, name: string): AdapterFiles {
  const tap = handover.take(tapName(name))
  const vhost = handover.has(vhostName(name)) ? handover.take(vhostName(name)) : undefined
  return {
    tap,
    ...(vhost && { vhost }),
    [Symbol.dispose]: () => {
      tap.close()
      vhost?.close()
    },
  }
}

/** For the kernel to carry a machine's frames, where it can: else the machine carries them itself. */
export function openVhost(path: string): Fd | undefined {
  try {
    return Fd.open(path, O_RDWR)
  } catch {
    return undefined
  }
}
