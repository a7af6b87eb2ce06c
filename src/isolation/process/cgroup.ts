import { existsSync, mkdirSync, readFileSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CoracleError } from '../../errors.js'
import type { CgroupFiles, SandboxLimits, SandboxSpec } from '../sandbox.js'
import { removeParents } from './cgroup-parents.js'

const ROOT = '/sys/fs/cgroup'
/** How long the kernel may take to end what was killed, in ms. */
const PATIENCE = 10_000

/** Whose cgroups are meant. */
export type CgroupMember = Pick<SandboxSpec, 'id' | 'cgroupParent'>

/** The cgroup of a sandbox, as OCI's `linux.cgroupsPath` names it: the same path below every hierarchy. */
export const cgroupPath = ({ id, cgroupParent = '' }: CgroupMember): string => `${cgroupParent}/coracle-${id}`

/**
 * Every hierarchy that has a cgroup of this sandbox: one with cgroup v2, one a controller with v1. With both, v2 is
 * hidden from crun (monitor/main.ts), so nothing of ours is there.
 */
export function cgroupFolders(it: CgroupMember): string[] {
  const path = cgroupPath(it)
  return hierarchies()
    .map((root) => join(root, path))
    .filter((folder) => existsSync(folder))
}

/** The folders below which cgroups of ours are. */
export const hierarchies = (): string[] =>
  isUnified() ? [ROOT] : list(ROOT).flatMap((name) => (name === 'unified' ? [] : [join(ROOT, name)]))

/** Whether the host has cgroup v2 alone. */
export const isUnified = (): boolean => existsSync(join(ROOT, 'cgroup.controllers'))

/** Microseconds; the kernel's own default for a CFS period. */
const PERIOD = 100_000
/** Controllers of v1 that have a say in a sandbox, by the names of their hierarchies. */
const CONTROLLERS = ['memory', 'cpu', 'pids', 'freezer']

/**
 * Puts a process into cgroups of this sandbox, made here, with these limits. What the host's cgroups do not have
 * (a controller that is not mounted) limits nothing.
 * @param pid 0 for the process that calls
 * @throws Error where a cgroup cannot be made or joined
 */
export function joinCgroup(it: CgroupMember, pid: number, limits: SandboxLimits): void {
  const above = (it.cgroupParent ?? '').split('/').map((_, i, parts) => parts.slice(0, i + 1).join('/'))
  for (const path of isUnified() ? above : [])
    for (const name of ['memory', 'cpu', 'pids'])
      quietly(() => writeFileSync(join(ROOT, path, 'cgroup.subtree_control'), `+${name}`))
  const roots = isUnified()
    ? [ROOT]
    : list(ROOT)
        .filter((name) => name.split(',').some((part) => CONTROLLERS.includes(part)))
        .map((name) => join(ROOT, name))
  for (const root of roots) {
    const folder = join(root, cgroupPath(it))
    mkdirSync(folder, { recursive: true })
    writeLimits(folder, limits)
    // Nothing of a microVM is worth its being swapped out.
    const swap = join(folder, 'memory.swap.max')
    if (limits.memory !== undefined && existsSync(swap)) writeFileSync(swap, '0')
    writeFileSync(join(folder, 'cgroup.procs'), String(pid))
  }
}

/**
 * Makes every process in the sandbox's cgroups stand still, those to come too; {@link thawCgroups} ends it.
 * @throws CoracleError NOT_IMPLEMENTED where the host has no freezer, SANDBOX_FAILED where they do not stand still
 */
export async function freezeCgroups(it: CgroupMember): Promise<void> {
  const freezers = cgroupFolders(it).filter((folder) => freezerOf(folder) !== undefined)
  if (freezers.length === 0)
    throw new CoracleError('NOT_IMPLEMENTED', "this host's cgroups have no freezer, so nothing can be paused")
  for (const folder of freezers) writeFileSync(freezerOf(folder)!.file, freezerOf(folder)!.freeze)
  const deadline = Date.now() + PATIENCE
  while (!freezers.every(isFrozen)) {
    if (Date.now() > deadline) {
      thawCgroups(it)
      throw new CoracleError('SANDBOX_FAILED', 'the processes cannot be paused: one of them does not stop')
    }
    await sleep(1)
  }
}

/** Lets what stands still by {@link freezeCgroups} go on. Idempotent. */
export function thawCgroups(it: CgroupMember): void {
  for (const folder of cgroupFolders(it)) {
    const freezer = freezerOf(folder)
    if (freezer) quietly(() => writeFileSync(freezer.file, freezer.thaw))
  }
}

/** cgroup v2's file, or the freezer controller's of v1 (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst). */
function freezerOf(folder: string): { file: string; freeze: string; thaw: string } | undefined {
  const [v2, v1] = [join(folder, 'cgroup.freeze'), join(folder, 'freezer.state')]
  if (existsSync(v2)) return { file: v2, freeze: '1', thaw: '0' }
  return existsSync(v1) ? { file: v1, freeze: 'FROZEN', thaw: 'THAWED' } : undefined
}

function isFrozen(folder: string): boolean {
  if (isUnified()) return /^frozen 1$/m.test(readFileSync(join(folder, 'cgroup.events'), 'latin1'))
  const file = join(folder, 'freezer.state')
  if (readFileSync(file, 'latin1').trim() === 'FROZEN') return true
  // v1 tries again only when it is asked again.
  writeFileSync(file, 'FROZEN')
  return false
}

/**
 * Changes limits of a sandbox that runs; 0 is none.
 * @returns false where it has no cgroup
 * @throws CoracleError CONFLICT where the kernel does not take one: less memory than is in use
 */
export function updateCgroups(it: CgroupMember, limits: SandboxLimits): boolean {
  const folders = cgroupFolders(it)
  for (const folder of folders) writeLimits(folder, limits)
  return folders.length > 0
}

function writeLimits(folder: string, limits: SandboxLimits): void {
  const files = limitFiles(limits).filter(([name]) => existsSync(join(folder, name)))
  // v1 takes no limit of memory above that of memory and swap: the wider one goes first.
  const swap = files.find(([name]) => name === SWAP_V1)
  if (swap && !isWider(folder, swap[1])) files.push(...files.splice(files.indexOf(swap), 1))
  for (const [name, value] of files)
    try {
      writeFileSync(join(folder, name), value)
    } catch (error) {
      const { code = '' } = error as NodeJS.ErrnoException
      throw new CoracleError('CONFLICT', `the kernel does not take ${value} for ${name} (${code})`)
    }
}

const SWAP_V1 = 'memory.memsw.limit_in_bytes'

const isWider = (folder: string, value: string): boolean =>
  value === '-1' || Number(value) > Number(readFileSync(join(folder, SWAP_V1), 'latin1'))

/** The files of what a cgroup alone can limit. @param memory the limit that goes with it in v2, which counts swap alone */
function cgroupFiles(
  { memoryReservation, memorySwap, cpusetCpus, cpusetMems, blkioWeight }: CgroupFiles,
  memory: number,
): [string, string][] {
  const v2 = isUnified()
  const files: [string, string | undefined][] = [
    [v2 ? 'memory.low' : 'memory.soft_limit_in_bytes', memoryReservation?.toString()],
    v2
      ? ['memory.swap.max', memorySwap === -1 ? 'max' : (memorySwap && memorySwap - memory)?.toString()]
      : [SWAP_V1, memorySwap?.toString()],
    ['cpuset.cpus', cpusetCpus],
    ['cpuset.mems', cpusetMems],
    // As crun and runc do it, 10 to 1000 becomes 1 to 10000 in v2.
    v2
      ? ['io.weight', blkioWeight && String(1 + Math.floor(((blkioWeight - 10) * 9999) / 990))]
      : ['blkio.bfq.weight', blkioWeight?.toString()],
  ].map(([name, value]): [string, string | undefined] => [String(name), value ? String(value) : undefined])
  return files.filter((each): each is [string, string] => each[1] !== undefined)
}

/** Whether the host's kernel has weights of block devices for cgroups. */
export const canWeighBlocks = (): boolean =>
  isUnified()
    ? readFileSync(join(ROOT, 'cgroup.controllers'), 'latin1').trim().split(' ').includes('io')
    : ['blkio.weight', 'blkio.bfq.weight'].some((name) => existsSync(join(ROOT, 'blkio', name)))

function limitFiles({ memory, cpus, cpuShares, pids, cgroup }: SandboxLimits): [string, string][] {
  const v2 = isUnified()
  const none = v2 ? 'max' : '-1'
  const files = cgroup ? cgroupFiles(cgroup, memory ?? 0) : []
  if (memory !== undefined) files.push([v2 ? 'memory.max' : 'memory.limit_in_bytes', String(memory || none)])
  if (cpus !== undefined) {
    const quota = cpus > 0 ? String(Math.max(1000, Math.round(cpus * PERIOD))) : none
    if (v2) files.push(['cpu.max', `${quota} ${PERIOD}`])
    else files.push(['cpu.cfs_period_us', String(PERIOD)], ['cpu.cfs_quota_us', quota])
  }
  if (cpuShares !== undefined)
    files.push(v2 ? ['cpu.weight', String(weightOf(cpuShares))] : ['cpu.shares', String(cpuShares)])
  if (pids !== undefined) files.push(['pids.max', String(pids || 'max')])
  return files
}

/** Shares of cgroup v1, 2 to 262144, as weights of v2, 1 to 10000: in a line, as crun and runc do it. */
const weightOf = (shares: number): number => 1 + Math.floor(((shares - 2) * 9999) / 262142)

/** The limit of the sandbox's memory in bytes, undefined where no cgroup limits it. */
export function cgroupMemory(it: CgroupMember): number | undefined {
  for (const folder of cgroupFolders(it))
    for (const name of ['memory.max', 'memory.limit_in_bytes'])
      if (existsSync(join(folder, name))) {
        const bytes = Number(readFileSync(join(folder, name), 'utf8'))
        return Number.isNaN(bytes) ? undefined : bytes
      }
  return undefined
}

/** Every process in the sandbox's cgroups. */
export const cgroupProcesses = (it: CgroupMember): number[] => [
  ...new Set(cgroupFolders(it).flatMap(withChildren).flatMap(processesIn)),
]

/** Kills every process in the sandbox's cgroups, and waits until none is left. */
export async function killCgroups(it: CgroupMember): Promise<void> {
  const deadline = Date.now() + PATIENCE
  for (;;) {
    const folders = cgroupFolders(it).flatMap(withChildren)
    const pids = new Set(folders.flatMap(processesIn))
    if (pids.size === 0 || Date.now() > deadline) return
    for (const folder of folders) {
      const kill = join(folder, 'cgroup.kill')
      if (existsSync(kill)) quietly(() => writeFileSync(kill, '1'))
    }
    // A frozen process would never meet its signal.
    thawCgroups(it)
    for (const pid of pids) quietly(() => process.kill(pid, 'SIGKILL'))
    await sleep(5)
  }
}

/** Removes the sandbox's cgroups. One that is still busy is tried again for a while: zombies leave late. */
export async function removeCgroups(it: CgroupMember): Promise<void> {
  const deadline = Date.now() + PATIENCE
  for (;;) {
    const folders = cgroupFolders(it)
    if (folders.length === 0 && it.cgroupParent) removeParents(it.cgroupParent, hierarchies())
    if (folders.length === 0 || Date.now() > deadline) return
    for (const folder of folders.flatMap(withChildren).reverse()) quietly(() => rmdirSync(folder))
    if (cgroupFolders(it).length > 0) await sleep(5)
  }
}

/** How often the kernel killed a process of this sandbox for want of memory. */
export function oomKills(it: CgroupMember): number {
  for (const folder of cgroupFolders(it))
    for (const file of ['memory.events', 'memory.oom_control'])
      try {
        const kills = /^oom_kill (\d+)$/m.exec(readFileSync(join(folder, file), 'utf8'))
        if (kills) return Number(kills[1])
      } catch {
        // This hierarchy has another controller.
      }
  return 0
}

/** A folder and those below it, parents first. */
function withChildren(folder: string): string[] {
  const children = list(folder, true).flatMap((name) => withChildren(join(folder, name)))
  return [folder, ...children]
}

function list(folder: string, onlyFolders = false): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() || (!onlyFolders && entry.isSymbolicLink()))
      .map((entry) => entry.name)
  } catch {
    return []
  }
}

function processesIn(folder: string): number[] {
  try {
    return readFileSync(join(folder, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number)
  } catch {
    return []
  }
}

function quietly(action: () => void): void {
  try {
    action()
  } catch {
    // It went by itself in the meantime.
  }
}
