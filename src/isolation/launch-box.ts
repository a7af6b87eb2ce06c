import { openSync, closeSync, readFileSync, chmodSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { join } from 'node:path'
import {
  Fd,
  RLIMIT_MEMLOCK,
  O_APPEND,
  O_CREAT,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  SysError,
  listenUnix,
  setLimit,
  Tap,
} from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { Box, type BoxOptions } from './box/box.js'
import type { TemplateParts } from './box/pool.js'
import { SandboxClient } from './client.js'
import { NO_EXIT, logFiles, sandboxFiles } from './files.js'
import { Handover } from './handover.js'
import { signLock, takeLock } from './liveness.js'
import { openVhost } from './offers.js'
import { type GuestParts, guestParts, guestSize } from './microvm/guest-parts.js'
import { startShares } from './microvm/shares.js'
import { restoreError } from './protocol.js'
import { release } from './reap.js'
import type { Sandbox, SandboxSpec } from './sandbox.js'
import { OVERHEAD, joinMachineCgroup } from './update.js'

/** How long another's hold on the lock is waited for, in ms: it may be cleaning up after an earlier run. */
const LOCK_PATIENCE = 2_000
/** Connections that may wait for a monitor which has not got so far. */
const BACKLOG = 128
/** Threads at most, beyond one for each vCPU: Node's own, the devices'. */
const THREADS = 48
/** Processes and threads of a virtiofsd. */
const SHARE_THREADS = 16

/** Where started, empty boxes come from. */
export type BoxSource = (
  folder: string,
  log: number,
  options: BoxOptions,
  template: Promise<TemplateParts | undefined>,
) => Promise<Box>

/**
 * Starts a microVM's monitor in a sandbox of its own. All that it touches is opened here, with the rights that we
 * have and it has not, and handed over under these names:
 *
 * | name | what |
 * | --- | --- |
 * | `spec` | the specification, read-only |
 * | `lock`, `user` | locks that tell whether it lives, and on its user id; read-only |
 * | `control` | the listening control socket |
 * | `offers` | a listening socket for further descriptors (offers.ts) |
 * | `log.N`, `log.turns` | the files of the container's log, and which of them is written |
 * | `console`, `errors`, `exit` | the guest's console, what went wrong, the exit status |
 * | `kvm`, `kernel`, `initramfs`, `tools`, `layer.N` | the hypervisor, and what the guest reads |
 * | `disk` | the writable layer |
 * | `template.state`, `template.memory` | where there is a template, its files; read-only |
 * | `saved.state`, `saved.memory` | of a snapshot to go on from; read-only |
 * | `tap.N`, `vhost.N` | of interface N, and where it is asked for and there, /dev/vhost-net |
 * | `share.N.folder`, `share.N.file` | the connection to the virtiofsd of mount N, which runs outside |
 * | `vfio`, `vfio.GROUP.ADDRESS` | VFIO, and a device's IOMMU group; `-` stands for `:` |
 *
 * @throws CoracleError CONFLICT where a monitor of this sandbox lives, SANDBOX_FAILED where it ended at once
 */
export async function launchBox(spec: SandboxSpec, source: BoxSource = Box.start): Promise<Sandbox> {
  const files = sandboxFiles(spec)
  using handover = new Handover()
  const lock = await holdLock(spec)
  handover.add('lock', lock)
  writeFileSync(files.exit, NO_EXIT, { mode: 0o600 })
  const log = openSync(files.monitorLog, 'w', 0o600)
  let box: Box | undefined
  try {
    const parts = guestParts(spec)
    const starting = source(
      join(spec.runDirectory, 'box'),
      log,
      { hold: lock.number },
      templateOf(spec, parts),
    )
    starting.catch(() => undefined)
    try {
      open(handover, spec, await parts)
    } finally {
      box = await starting
    }
    const { identity } = box
    signLock(files.lock, identity)
    // All of a guest's memory is pinned for its devices; in the box nobody may do so without limit.
    const { memory, cpus } = guestSize(spec)
    if (spec.devices?.length) setLimit(identity.pid, RLIMIT_MEMLOCK, memory + OVERHEAD)
    const pids = THREADS + cpus + SHARE_THREADS * (spec.mounts?.length ?? 0)
    const limits = { memory: memory + OVERHEAD, pids }
    joinMachineCgroup(spec, identity.pid, limits)
    // They are in the sandbox's cgroup, where whoever cleans up finds them, and end with the connection.
    for (const [i, share] of (await startShares(spec)).entries()) {
      handover.add(`share.${i}.${share.isFolder ? 'folder' : 'file'}`, share.connection)
      joinMachineCgroup(spec, share.pid, limits)
      share.go()
    }
    const answer = await box.fill(handover)
    if (answer === undefined) throw new CoracleError('SANDBOX_FAILED', reason(files.monitorLog))
    const { error } = JSON.parse(answer) as { error?: { code: string; message: string } }
    if (error) throw restoreError(error)
    return new SandboxClient(spec, identity.pid)
  } catch (error) {
    await box?.end()
    handover[Symbol.dispose]()
    await release(spec)
    throw error
  } finally {
    closeSync(log)
  }
}

/** Of a container that goes on from its template's memory as it is: one with shares needs a copy. */
async function templateOf(spec: SandboxSpec, parts: Promise<GuestParts>): Promise<TemplateParts | undefined> {
  const { template, tools } = await parts
  return template && !spec.mounts?.length ? { template, tools: tools.path } : undefined
}

function open(handover: Handover, spec: SandboxSpec, parts: GuestParts): void {
  const files = sandboxFiles(spec)
  const add = (name: string, path: string, flags: number): void => handover.add(name, Fd.open(path, flags))
  add('spec', files.spec, O_RDONLY)
  handover.add('control', listenUnix(files.control, BACKLOG))
  chmodSync(files.control, 0o600)
  handover.add('offers', listenUnix(files.offers))
  chmodSync(files.offers, 0o600)
  const log = logFiles(spec)
  log.files.forEach((path, i) => add(`log.${i}`, path, O_RDWR | O_APPEND | O_CREAT))
  if (log.turns !== undefined) add('log.turns', log.turns, O_RDWR | O_CREAT)
  add('console', files.console, O_WRONLY | O_CREAT | O_TRUNC)
  add('errors', files.monitorLog, O_WRONLY | O_APPEND)
  add('exit', files.exit, O_WRONLY)
  try {
    add('kvm', '/dev/kvm', O_RDWR)
  } catch (error) {
    const why = error instanceof SysError ? error.code : String(error)
    throw new CoracleError('KVM_UNAVAILABLE', `/dev/kvm does not open (${why}): use --hypervisor qemu`)
  }
  add('kernel', parts.kernel.vmlinux, O_RDONLY)
  add('initramfs', parts.initramfs, O_RDONLY)
  add('tools', parts.tools.path, O_RDONLY)
  spec.layers.forEach(({ path }, i) => add(`layer.${i}`, path, O_RDONLY))
  add('disk', parts.disk, O_RDWR)
  if (parts.template) {
    add('template.state', parts.template.state, O_RDONLY)
    add('template.memory', parts.template.memory, O_RDONLY)
  }
  if (parts.saved) {
    add('saved.state', parts.saved.state, O_RDONLY)
    add('saved.memory', parts.saved.memory, O_RDONLY)
  }
  openDevices(handover, parts.devices)
  spec.network?.interfaces.forEach(({ tap, vhost }, i) => {
    if (tap !== undefined) handover.add(`tap.${i}`, openTap(tap))
    const carrier = vhost === undefined ? undefined : openVhost(vhost)
    if (carrier) handover.add(`vhost.${i}`, carrier)
  })
}

/** @throws CoracleError VFIO_UNAVAILABLE, DEVICE_IN_USE */
function openDevices(handover: Handover, devices: GuestParts['devices']): void {
  if (devices.length === 0) return
  const opened = (path: string, code: 'VFIO_UNAVAILABLE' | 'DEVICE_IN_USE'): Fd => {
    try {
      return Fd.open(path, O_RDWR)
    } catch (error) {
      const why = error instanceof SysError ? error.code : String(error)
      throw new CoracleError(code, `${path} does not open (${why})`, { cause: error })
    }
  }
  handover.add('vfio', opened('/dev/vfio/vfio', 'VFIO_UNAVAILABLE'))
  const groups = new Map<number | undefined, Fd>()
  for (const { address, group } of devices) {
    const known = groups.get(group)
    const fd = known ? known.duplicate() : opened(`/dev/vfio/${group}`, 'DEVICE_IN_USE')
    groups.set(group, fd)
    handover.add(`vfio.${group}.${address.replaceAll(':', '-')}`, fd)
  }
}

/** The taps are in our network namespace, and not in the box's. */
function openTap(name: string): Fd {
  try {
    return Tap.open(name).fd
  } catch (error) {
    const why = error instanceof SysError ? error.code : String(error)
    throw new CoracleError('SANDBOX_FAILED', `cannot open the tap ${name} (${why})`, { cause: error })
  }
}

async function holdLock(spec: SandboxSpec): Promise<Fd> {
  const { lock } = sandboxFiles(spec)
  const deadline = Date.now() + LOCK_PATIENCE
  for (;;) {
    const held = takeLock(lock, true, O_RDONLY)
    if (held) return held
    if (Date.now() > deadline)
      throw new CoracleError('CONFLICT', `container ${spec.id.slice(0, 12)} is running already`)
    await sleep(10)
  }
}

/** What the end of a monitor that did not answer was due to, by its own words. */
function reason(log: string): string {
  const lines = readFileSync(log, 'utf8').trim().split('\n')
  const line = lines.find((each) => /error/i.test(each)) ?? lines.at(-1)
  return `the sandbox's monitor did not start: ${line || 'no reason given'}`
}
