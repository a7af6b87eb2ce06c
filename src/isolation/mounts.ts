import { bindFile } from './network.js'
import type { OciConfig, SandboxFile, SandboxMount } from './sandbox.js'

type Mount = NonNullable<OciConfig['mounts']>[number]

/** What of the host a container sees, and where crun finds it. */
export interface SharedSource {
  readonly mount: SandboxMount
  readonly source: string
  readonly isFolder: boolean
}

/**
 * All mounts of a container in the order in which they are made: what others lie in comes first. What the user puts
 * somewhere wins over a file of ours at the same place.
 * @param bundle those of its bundle
 * @param shared what of the host it sees
 * @param files ours, and where crun finds them
 */
export function mountsInOrder(
  bundle: OciConfig['mounts'] = [],
  shared: readonly SharedSource[],
  files: readonly { readonly file: SandboxFile; readonly source: string }[],
): Mount[] {
  const taken = new Set(shared.map(({ mount }) => mount.destination))
  return [
    ...bundle,
    ...shared.map(bindMount),
    ...files
      .filter(({ file }) => !taken.has(file.path))
      .map(({ file, source }) => bindFile(source, file.path)),
  ].sort((a, b) => depth(a.destination) - depth(b.destination))
}

const depth = (path: string): number => path.split('/').length

function bindMount({ mount, source, isFolder }: SharedSource): Mount {
  const { destination, readOnly, nonRecursive } = mount
  const kind = nonRecursive ? 'bind' : 'rbind'
  // Read-only all the way down; of a file there is no way down, and crun takes `rro` for folders alone.
  const access = readOnly ? ['ro', ...(isFolder && !nonRecursive ? ['rro'] : [])] : ['rw']
  return { destination, type: 'bind', source, options: [kind, 'rprivate', ...access] }
}
