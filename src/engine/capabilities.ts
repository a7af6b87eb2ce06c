import { readFileSync } from 'node:fs'
import { CoracleError } from '../errors.js'
import type { IsolationName } from '../isolation/sandbox.js'

/** All of linux/capability.h, by number. */
const CAPABILITIES =
  'CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE'
    .split(' ')
    .map((name) => `CAP_${name}`)

/** What Docker leaves to the root user of a container. */
const DEFAULT =
  'CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE'
    .split(' ')
    .map((name) => `CAP_${name}`)

/**
 * Docker's defaults plus `add` minus `drop`; `ALL` in either is all of them. Without a machine of its own a container has
 * no more of them than this host itself may have (capabilities(7), the bounding set).
 * @throws CoracleError INVALID_ARGUMENT
 */
export function capabilitySet(
  add: readonly string[],
  drop: readonly string[],
  isolation: IsolationName,
): string[] {
  const added = add.map(canonical)
  const dropped = drop.map(canonical)
  const all = isolation === 'process' ? CAPABILITIES.filter(hostHas()) : CAPABILITIES
  const base = added.includes('ALL') ? all : dropped.includes('ALL') ? [] : DEFAULT
  const result = new Set(base)
  for (const name of dropped) result.delete(name)
  for (const name of added) if (name !== 'ALL') result.add(name)
  return [...result]
}

function hostHas(): (name: string) => boolean {
  const [, bounding = '0'] =
    /^CapBnd:\s+([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? []
  const set = BigInt(`0x${bounding}`)
  return (name) => ((set >> BigInt(CAPABILITIES.indexOf(name))) & 1n) === 1n
}

function canonical(name: string): string {
  const upper = name.toUpperCase()
  if (upper === 'ALL') return upper
  const full = upper.startsWith('CAP_') ? upper : `CAP_${upper}`
  if (!CAPABILITIES.includes(full))
    throw new CoracleError('INVALID_ARGUMENT', `unknown capability: ${name.slice(0, 64)}`)
  return full
}
