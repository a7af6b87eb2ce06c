import { cached, type SetName } from '../debian/index.js'
import type { HypervisorName } from '../isolation/sandbox.js'

/** Whether an isolation could run a container now, and which of set-up's things are not there. */
export interface Readiness {
  readonly ready: boolean
  readonly missing: readonly string[]
}

/** What set-up has fetched for each isolation. Nothing is fetched by this. */
export async function readiness(
  hypervisor: HypervisorName,
): Promise<{ readonly microvm: Readiness; readonly process: Readiness }> {
  const of = (...names: SetName[]): Readiness => {
    const missing = names.filter((name) => cached(name) === undefined)
    return { ready: missing.length === 0, missing }
  }
  return {
    microvm: of('tools', 'erofs', 'kernel-cloud', ...(hypervisor === 'qemu' ? ['qemu' as const] : [])),
    process: of('tools', 'erofs'),
  }
}
