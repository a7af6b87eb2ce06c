import type { OciConfig } from './sandbox.js'

type Mount = NonNullable<OciConfig['mounts']>[number]
type Namespace = { readonly type: string; readonly path?: string }

/** The namespaces of a container where its bundle names none. */
const NAMESPACES: readonly Namespace[] = ['pid', 'mount', 'network', 'ipc', 'uts'].map((type) => ({ type }))

/** Puts `source` at `path` of the container, in place of the image's own file. */
export function bindFile(source: string, path: string): Mount {
  return { destination: path, type: 'bind', source, options: ['rbind', 'rprivate'] }
}

/**
 * The namespaces that the bundle asks for, with the network's to be joined in place of a new one.
 * @param path of the network namespace; undefined for a new one
 */
export function namespacesOf(bundle: OciConfig, path: string | undefined): Namespace[] {
  const asked = (bundle.linux?.['namespaces'] as Namespace[] | undefined) ?? NAMESPACES
  if (path === undefined) return [...asked]
  return [...asked.filter(({ type }) => type !== 'network'), { type: 'network', path }]
}
