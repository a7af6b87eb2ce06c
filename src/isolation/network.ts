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
 * The namespaces that the bundle asks for, with some to be joined in place of new ones.
 * @param paths of those to join, by their types
 */
export function namespacesOf(
  bundle: OciConfig,
  paths: Readonly<Partial<Record<'network' | 'pid' | 'ipc', string | undefined>>>,
): Namespace[] {
  const asked = (bundle.linux?.['namespaces'] as Namespace[] | undefined) ?? NAMESPACES
  const joined = Object.entries(paths).flatMap(([type, path]) => (path === undefined ? [] : [{ type, path }]))
  return [...asked.filter(({ type }) => joined.every((each) => each.type !== type)), ...joined]
}
