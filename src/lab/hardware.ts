import { accessSync, constants, readFileSync } from 'node:fs'

/** Whether this machine runs virtual machines with the processor's help. */
export function hasHardwareKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return /^flags\s*:.* (?:vmx|svm)(?: |$)/m.test(readFileSync('/proc/cpuinfo', 'utf8'))
  } catch {
    return false
  }
}
