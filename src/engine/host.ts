import { closeSync, openSync, readFileSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { CoracleError } from '../errors.js'
import type { HypervisorName } from '../isolation/sandbox.js'

/** What the engine asks of the machine. */
export interface Host {
  /** Bytes. */
  readonly memory: number
  readonly cpus: number
  /** `vmx` (Intel), `svm` (AMD), or undefined where the processor shows neither. */
  readonly virtualization: 'vmx' | 'svm' | undefined
  /** Errno's name from opening /dev/kvm for reading and writing, or undefined where it opens. */
  readonly kvmError: string | undefined
}

/** Looks at the machine now. */
export function readHost(): Host {
  return {
    memory: totalmem(),
    cpus: availableParallelism(),
    virtualization: virtualizationOf(cpuInfo()),
    kvmError: openKvm(),
  }
}

function cpuInfo(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'latin1')
  } catch {
    return ''
  }
}

/** @param cpuInfo the text of /proc/cpuinfo */
export function virtualizationOf(cpuInfo: string): 'vmx' | 'svm' | undefined {
  const flags = /^flags\s*:(.*)$/m.exec(cpuInfo)?.[1]?.split(/\s+/) ?? []
  return flags.includes('vmx') ? 'vmx' : flags.includes('svm') ? 'svm' : undefined
}

function openKvm(): string | undefined {
  try {
    closeSync(openSync('/dev/kvm', 'r+'))
    return undefined
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? 'EIO'
  }
}

/** Who runs a microVM, and one line that says why. */
export interface HypervisorChoice {
  readonly hypervisor: HypervisorName
  readonly reason: string
}

/**
 * Settles `auto`: kvm where the processor has vmx or svm and /dev/kvm opens, else qemu.
 * @throws CoracleError KVM_UNAVAILABLE where kvm was asked for and /dev/kvm does not open
 */
export function chooseHypervisor(wanted: HypervisorName | 'auto', host: Host): HypervisorChoice {
  if (wanted === 'qemu') return { hypervisor: 'qemu', reason: 'asked for' }
  if (wanted === 'kvm') {
    if (host.kvmError !== undefined) throw new CoracleError('KVM_UNAVAILABLE', kvmMessage(host.kvmError))
    return { hypervisor: 'kvm', reason: 'asked for' }
  }
  if (host.virtualization === undefined)
    return { hypervisor: 'qemu', reason: 'the processor shows neither vmx nor svm' }
  if (host.kvmError !== undefined)
    return { hypervisor: 'qemu', reason: `/dev/kvm does not open (${host.kvmError})` }
  return { hypervisor: 'kvm', reason: `the processor has ${host.virtualization} and /dev/kvm opens` }
}

function kvmMessage(code: string): string {
  if (code === 'ENOENT')
    return 'this host has no /dev/kvm: load the module kvm-intel or kvm-amd, or use --hypervisor qemu'
  if (code === 'EACCES' || code === 'EPERM')
    return 'no permission on /dev/kvm: join its group (usually kvm), or use --hypervisor qemu'
  return `/dev/kvm does not open (${code}): use --hypervisor qemu`
}
