import { readFileSync } from 'node:fs'
import { CoracleError } from '../errors.js'
import { sandboxFiles } from './files.js'
import { guestSize } from './microvm/guest-parts.js'
import { cgroupMemory, joinCgroup, updateCgroups } from './process/cgroup.js'
import type { SandboxLimits, SandboxSpec } from './sandbox.js'

/** What the process of a microVM may use beyond its guest's memory, in bytes. */
export const OVERHEAD = 256 * 2 ** 20
const MEBIBYTE = 2 ** 20

/**
 * What the host's cgroup allows the process of a microVM. As many whole processors as the guest has are limited by
 * their number already, and the devices' work may come on top; anything less is all that there is, that work included.
 * @param vcpus of the guest
 */
const machineCpus = (cpus: number, vcpus: number): number => (cpus >= vcpus ? vcpus + 1 : cpus)

/** Puts the process of a microVM into the host's cgroups, with the CPU time that it is to have, and `more` limits. */
export function joinMachineCgroup(spec: SandboxSpec, pid: number, more: SandboxLimits = {}): void {
  const { cpus } = guestSize(spec)
  const { cpuShares } = spec
  const times = { cpus: machineCpus(spec.cpus || cpus, cpus), ...(cpuShares && { cpuShares }) }
  joinCgroup(spec, pid, { ...times, ...more })
}

/**
 * Changes the limits of a microVM that runs: its guest's memory by what runs it (`ask`), the rest by the host's cgroup.
 * What it was started with is known by the file of its launch, not by its own word.
 * @throws CoracleError as Sandbox.update
 */
export async function updateMachine(
  spec: SandboxSpec,
  limits: SandboxLimits,
  ask: (limits: SandboxLimits) => Promise<void>,
): Promise<void> {
  const started = JSON.parse(readFileSync(sandboxFiles(spec).spec, 'utf8')) as SandboxSpec
  const size = guestSize(started)
  const { memory, cpus, cpuShares, pids } = limits
  const more = (what: string): string => `${what} while it runs: stop it, update it, and start it again`
  if (memory !== undefined && memory > size.memory)
    throw new CoracleError(
      'MEMORY_SIZE',
      more(`the microVM was started with ${size.memory / MEBIBYTE} MiB, and cannot get more`),
    )
  if (cpus !== undefined && Math.ceil(cpus) > size.cpus)
    throw new CoracleError(
      'INVALID_ARGUMENT',
      more(`the microVM was started with ${size.cpus} vCPU${size.cpus > 1 ? 's' : ''}, and cannot get more`),
    )
  const times = {
    ...(cpus !== undefined && { cpus: machineCpus(cpus, size.cpus) }),
    ...(cpuShares !== undefined && { cpuShares }),
  }
  if (Object.keys(times).length > 0 && !updateCgroups(spec, times))
    throw new CoracleError(
      'CONFLICT',
      'the microVM is in no cgroup, so its CPU time cannot be limited: run as root',
    )
  if (memory !== undefined) await resizeMemory(started, memory, ask)
  if (pids !== undefined) await ask({ pids })
}

/** The guest's memory must always fit in what the host allows: first the wider of the two, then the narrower. */
async function resizeMemory(
  spec: SandboxSpec,
  memory: number,
  ask: (limits: SandboxLimits) => Promise<void>,
): Promise<void> {
  const before = cgroupMemory(spec)
  const bound = before !== undefined && before < Infinity && spec.hypervisor !== 'qemu'
  if (bound && before < memory + OVERHEAD) updateCgroups(spec, { memory: memory + OVERHEAD })
  try {
    await ask({ memory })
    if (bound) updateCgroups(spec, { memory: memory + OVERHEAD })
  } catch (error) {
    if (bound) updateCgroups(spec, { memory: before })
    if (error instanceof CoracleError) throw error
    throw new CoracleError('CONFLICT', `the host cannot take back the memory: ${(error as Error).message}`)
  }
}
