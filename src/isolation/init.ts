import type { SharedSource } from './mounts.js'
import type { SandboxSpec } from './sandbox.js'

/** Where a container that asked for one has its init; Docker's place. */
const PATH = '/sbin/docker-init'

/** The command of a container's first process. */
export const withInit = ({ init }: SandboxSpec, args: readonly string[]): string[] => [
  ...(init === true ? [PATH, '--'] : []),
  ...args,
]

/** @param source where crun finds it */
export const initMount = (source: string): SharedSource => ({
  mount: { source, destination: PATH, readOnly: true },
  source,
  isFolder: false,
})
