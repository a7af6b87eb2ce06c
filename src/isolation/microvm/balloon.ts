import { setTimeout as sleep } from 'node:timers/promises'
import { CoracleError } from '../../errors.js'
import type { GuestMachine } from './guest-machine.js'

/** Nobody need give memory up or get it to the byte: the pages of a balloon are these. */
const PAGE = 4096
const MEBIBYTE = 2 ** 20
/** What a guest keeps of the memory that it could give, so that nothing in it is killed for want of some. */
const RESERVE = 16 * MEBIBYTE
/** How often the guest is asked, in ms. */
const POLL = 50
/** A guest that gives nothing more for so long has nothing to give, in ms. */
const PATIENCE = 15_000

/**
 * Has the guest give up memory or take it back, and waits until it has.
 * @param guest bytes that it was started with, and that it could give up now
 * @param wanted bytes that it is to have, no more than it was started with
 * @throws CoracleError CONFLICT where it gives up less; it has what it had before then
 */
export async function resizeGuest(
  machine: Pick<GuestMachine, 'balloon'>,
  { size, available }: { readonly size: number; readonly available: number },
  wanted: number,
  patience = PATIENCE,
): Promise<void> {
  const refused = (least: number): CoracleError => {
    const mebibytes = Math.min(size, Math.ceil(least / MEBIBYTE) * MEBIBYTE) / MEBIBYTE
    return new CoracleError('CONFLICT', `the guest uses its memory: leave it ${mebibytes} MiB or more`)
  }
  const before = await machine.balloon()
  const target = Math.floor((size - wanted) / PAGE) * PAGE
  const most = before + Math.max(0, available - RESERVE)
  if (target > most && target > before) throw refused(size - most)
  let taken = await machine.balloon(target)
  for (let since = Date.now(); taken !== target;) {
    if (Date.now() - since > patience) {
      await machine.balloon(before)
      throw refused(size - taken)
    }
    await sleep(POLL)
    const now = await machine.balloon()
    if (now !== taken) since = Date.now()
    taken = now
  }
}
