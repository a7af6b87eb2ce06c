import { closeSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs'
import { replaceFile } from '../durable.js'
import { CoracleError } from '../errors.js'
import { claimDevices, releaseDevices } from '../sriov/index.js'
import { SandboxClient, request } from './client.js'
import { sandboxFiles } from './files.js'
import { type BoxSource, launchBox } from './launch-box.js'
import { readOwner } from './liveness.js'
import { type MonitorProcess, type MonitorSource, startMonitor } from './monitor-pool.js'
import { makeParents } from './process/cgroup-parents.js'
import { hierarchies } from './process/cgroup.js'
import { restoreError } from './protocol.js'
import type { Sandbox, SandboxSpec } from './sandbox.js'

/** The line that a monitor writes into descriptor 3 when its control socket answers, or could not be made to. */
export type Ready = { pid: number } | { error: { code: string; message: string } }

/**
 * Starts a sandbox's monitor and, in the background, whatever can be made ready before the workload starts. The
 * folders of `spec` are made where they are missing; the writable layer and the log of an earlier run are kept.
 * Resolves when the control socket answers: streams can be attached before {@link Sandbox.start}.
 * @param sources where its process comes from: that of a contained microVM, and any other
 * @throws CoracleError CONFLICT where a monitor of this sandbox lives, SANDBOX_FAILED where it ended at once
 */
export async function launchSandbox(
  spec: SandboxSpec,
  { boxes, monitors }: { readonly boxes?: BoxSource; readonly monitors?: MonitorSource } = {},
): Promise<Sandbox> {
  const files = sandboxFiles(spec)
  mkdirSync(spec.stateDirectory, { recursive: true, mode: 0o700 })
  mkdirSync(spec.runDirectory, { recursive: true, mode: 0o700 })
  replaceFile(files.spec, JSON.stringify(spec))
  if (spec.cgroupParent) makeParents(spec.cgroupParent, hierarchies())
  const launch = (it: SandboxSpec): Promise<Sandbox> =>
    isContained(it) ? launchBox(it, boxes) : launchMonitor(it, monitors)
  if (!spec.devices?.length) return launch(spec)
  await claimDevices(spec.runDirectory, spec.devices)
  try {
    return await launch(spec)
  } catch (error) {
    await releaseDevices(spec.runDirectory)
    throw error
  }
}

async function launchMonitor(spec: SandboxSpec, source: MonitorSource = startMonitor): Promise<Sandbox> {
  const files = sandboxFiles(spec)
  const log = openSync(files.monitorLog, 'w', 0o600)
  let ready: Ready | undefined
  try {
    // Those that wait have a PID namespace.
    const started = sharesProcesses(spec) ? startMonitor(files.spec, log, true) : source(files.spec, log)
    ready = await readyOf(started)
  } finally {
    closeSync(log)
  }
  if (ready === undefined) {
    const lines = readFileSync(files.monitorLog, 'utf8').trim().split('\n')
    const reason = lines.find((line) => /error/i.test(line)) ?? lines.at(-1)
    rmSync(spec.runDirectory, { recursive: true, force: true })
    throw new CoracleError(
      'SANDBOX_FAILED',
      `the sandbox's monitor did not start: ${reason ?? 'no reason given'}`,
    )
  }
  if ('error' in ready) throw restoreError(ready.error)
  return new SandboxClient(spec, ready.pid)
}

/**
 * The sandbox of `spec` where its monitor lives, whoever launched it.
 * @returns undefined where none does: then `readExit` tells how it ended and `reap` releases what it left
 */
export async function openSandbox(spec: SandboxSpec): Promise<Sandbox | undefined> {
  try {
    await request(spec, { op: 'state' })
    // Not by its own word: one that is contained has another number where it is, and need not tell the truth.
    const owner = readOwner(sandboxFiles(spec).lock)
    return owner && new SandboxClient(spec, owner.pid)
  } catch (error) {
    if (error instanceof CoracleError && error.code === 'NOT_RUNNING') return undefined
    throw error
  }
}

/**
 * Whether the monitor runs in a box (box/): with our own VMM in it. QEMU confines itself, and for process isolation
 * crun does. Namespaces with a user of their own, and files opened on its behalf, are root's to make.
 */
function isContained(spec: SandboxSpec): boolean {
  return spec.isolation === 'microvm' && spec.hypervisor !== 'qemu' && process.getuid?.() === 0
}

/**
 * Whether the monitor is in the host's PID namespace: the container is, or joins others by their numbers there.
 */
function sharesProcesses({ isolation, bundle, joins = {} }: SandboxSpec): boolean {
  if (Object.keys(joins).length > 0) return true
  const namespaces = bundle.linux?.['namespaces'] as readonly { readonly type: string }[] | undefined
  return isolation === 'process' && namespaces?.some(({ type }) => type === 'pid') === false
}

/** Resolves with a monitor's word that it is ready; undefined where it ended without one. */
function readyOf({ ready, failed }: MonitorProcess): Promise<Ready | undefined> {
  const told = new Promise<Ready | undefined>((resolve) => {
    let text = ''
    ready.ref().setEncoding('utf8')
    // `unshare` keeps its copy of the descriptor, so the end of the line counts, not the end of the stream.
    const done = (): void => {
      ready.destroy()
      resolve(text === '' ? undefined : (JSON.parse(text) as Ready))
    }
    ready.on('data', (chunk: string) => {
      text += chunk
      if (text.endsWith('\n')) done()
    })
    ready.on('end', done)
  })
  return Promise.race([told, failed])
}
