import type { Git } from './git.js'
import { repositoryAddress } from './repository-address.js'

/** Another repository's commit within one (gitmodules(5)). */
export interface Submodule {
  /** Without a slash at either end. */
  readonly path: string
  /** In hexadecimal. */
  readonly commit: string
  readonly url: URL
}

/** Bytes of what is kept of a list of submodules. */
const MAX_LIST = 1024 ** 2

/**
 * The submodules of a commit that is there.
 * @param base the repository's own address
 * @throws CoracleError BUILD_FAILED for one that has no address, or none that may be asked
 */
export async function submodulesOf(git: Git, base: URL, commit: string): Promise<Submodule[]> {
  const words = ['ls-tree', '-r', '-z', '--full-tree', commit]
  const links = (await git.stream(words, (output) => linksIn(output, git))).split('\0').slice(0, -1)
  if (links.length === 0) return []
  const settings = settingsIn(
    await git
      .run(['config', '--blob', `${commit}:.gitmodules`, '-z', '--get-regexp', '^submodule[.]'])
      // There is no such file, or it is none: then none has an address.
      .catch(() => ''),
  )
  return links.flatMap((link) => {
    const [id = '', path = ''] = link.split(/\t(.*)/s)
    const { url, update } = settings.get(path) ?? {}
    if (update === 'none') return []
    if (!url) return git.fail(`no url found for submodule path '${shown(path)}' in .gitmodules`)
    return { path, commit: id, url: addressOf(git, base, path, url) }
  })
}

function addressOf(git: Git, base: URL, path: string, text: string): URL {
  const refuse = (why: string): never => git.fail(`its submodule ${shown(path)} is at ${shown(text)}: ${why}`)
  // As if the repository were a folder (git-submodule(1), add); what would climb out stays at its host.
  const address = /^\.\.?\//.test(text) ? new URL(text, `${base.href}/`).href : text
  const url = repositoryAddress(address, refuse)
  return url.hash === '' ? url : refuse('a commit is not named there')
}

const shown = (text: string): string => text.replace(/[^\x20-\x7e]/g, '?').slice(0, 128)

/**
 * Of `MODE TYPE ID\tPATH` with a NUL behind each, those of other repositories' commits (git-ls-tree(1)).
 * @returns `ID\tPATH` with a NUL behind each
 */
async function linksIn(output: AsyncIterable<Uint8Array>, git: Git): Promise<string> {
  let links = ''
  let rest = ''
  for await (const chunk of output) {
    // Bytes, one a character.
    const records = (rest + Buffer.from(chunk).toString('latin1')).split('\0')
    rest = records.pop()!
    for (const record of records)
      if (/^160000 commit [0-9a-f]{40}\t./s.test(record))
        links += `${record.slice('160000 commit '.length)}\0`
    if (rest.length + links.length > MAX_LIST) git.fail('it has too many submodules')
  }
  return Buffer.from(links, 'latin1').toString('utf8')
}

/** What .gitmodules says of each path: `submodule.NAME.KEY\nVALUE` with a NUL behind each (git-config(1), -z). */
function settingsIn(text: string): Map<string, Readonly<Record<string, string>>> {
  const byName = new Map<string, Record<string, string>>()
  for (const record of text.split('\0')) {
    const [, name, key, value] = /^submodule\.(.*)\.(path|url|update)\n(.*)$/s.exec(record) ?? []
    if (name !== undefined) byName.set(name, { ...byName.get(name), [key!]: value! })
  }
  return new Map([...byName.values()].map((each) => [(each['path'] ?? '').replace(/\/+$/, ''), each]))
}
