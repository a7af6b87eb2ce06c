import { existsSync, rmSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { CoracleError } from '../errors.js'
import { releaseDevices } from '../sriov/index.js'
import { readExit, sandboxFiles, timestamp, writeExit } from './files.js'
import { gone, isAlive, readOwner, takeLock, type ProcessIdentity } from './liveness.js'
import { killCgroups, removeCgroups, thawCgroups } from './process/cgroup.js'
import type { SandboxSpec } from './sandbox.js'

/** How long the kernel may take to end processes that were killed, in ms. */
const PATIENCE = 10_000

/**
 * Kills whatever lives of a sandbox, its monitor first, and releases what it held: processes, cgroups, mounts,
 * sockets, the run folder. Where the workload had not ended by then, its exit status becomes 137. Idempotent, and
 * safe while others do the same. The state folder stays.
 * @throws CoracleError SANDBOX_FAILED where a process cannot be killed
 */
export async function reap(spec: SandboxSpec): Promise<void> {
  const files = sandboxFiles(spec)
  const deadline = Date.now() + PATIENCE
  for (let pause = 1; ; pause = Math.min(pause * 2, 50)) {
    const lock = takeLock(files.lock, true)
    if (lock !== undefined) {
      try {
        await releaseHeld(spec)
      } finally {
        lock.close()
      }
      return
    }
    const owner = readOwner(files.lock)
    if (owner !== undefined && isAlive(owner)) {
      try {
        process.kill(owner.pid, 'SIGKILL')
      } catch {
        // It ended just now.
      }
    }
    if (Date.now() > deadline)
      throw new CoracleError('SANDBOX_FAILED', `the monitor of ${spec.id.slice(0, 12)} cannot be killed`)
    await sleep(pause)
  }
}

/**
 * As {@link reap}, but leaves a living monitor alone.
 * @param ended a monitor that is known to have ended: its lock is waited for, since its last threads hold it still
 */
export async function release(spec: SandboxSpec, ended: readonly ProcessIdentity[] = []): Promise<void> {
  const path = sandboxFiles(spec).lock
  const isEnded = (owner: ProcessIdentity | undefined): boolean =>
    ended.some(({ pid, startTime }) => pid === owner?.pid && startTime === owner.startTime)
  const deadline = Date.now() + PATIENCE
  let lock = takeLock(path, false)
  while (lock === undefined && isEnded(readOwner(path)) && Date.now() < deadline) {
    await sleep(2)
    lock = takeLock(path, false)
  }
  if (lock === undefined) {
    if (existsSync(spec.runDirectory)) return
    // Its monitor ended in good order, and could not remove what it was in.
    await removeCgroups(spec)
    await giveBackDevices(spec)
    return
  }
  try {
    await releaseHeld(spec)
  } finally {
    lock.close()
  }
}

/** Called with the lock held: the monitor is dead or dying, and nobody else cleans up. */
async function releaseHeld(spec: SandboxSpec): Promise<void> {
  const owner = readOwner(sandboxFiles(spec).lock)
  // A process gives its locks back before its namespaces' processes are gone: wait for its very end. Frozen processes
  // would keep it from that.
  if (spec.isolation === 'process') thawCgroups(spec)
  if (owner !== undefined) await gone([owner], PATIENCE)
  await killCgroups(spec)
  await removeCgroups(spec)
  if (readExit(spec) === undefined && existsSync(sandboxFiles(spec).spec))
    writeExit(spec, {
      exitCode: 137,
      error: "the sandbox's monitor was killed",
      finishedAt: timestamp(),
    })
  await giveBackDevices(spec)
  rmSync(spec.runDirectory, { recursive: true, force: true })
}

/** The host's devices, which no process of the sandbox has open any more: also those that its networks gave it. */
async function giveBackDevices(spec: SandboxSpec): Promise<void> {
  for (const line of await releaseDevices(spec.runDirectory)) console.error(`coracle: ${line}`)
}
