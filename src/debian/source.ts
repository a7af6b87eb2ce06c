import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

/** Where a Debian archive is and who signs it. */
export interface Source {
  /** Such as `http://deb.debian.org/debian`, without a slash at the end. */
  readonly uri: string
  /** The keyring that must have signed it; undefined leaves it to apt's trusted keys. */
  readonly signedBy?: string
}

/** One source as apt is configured with it (sources.list(5)). */
export interface Entry extends Source {
  readonly suites: readonly string[]
  readonly components: readonly string[]
}

const KEYRINGS = [
  '/usr/share/keyrings/debian-archive-keyring.gpg',
  '/usr/share/keyrings/debian-archive-keyring.pgp',
]
const CODENAMES =
  /^(?:buster|bullseye|bookworm|trixie|forky|sid|oldoldstable|oldstable|stable|testing|unstable)(?:-updates|-security|-backports)?$/

/** Parses the one-line form of sources.list(5). Lines it does not understand are left out, as is `deb-src`. */
export function parseOneLine(text: string): Entry[] {
  const entries: Entry[] = []
  for (const line of text.split('\n')) {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)([^#]*)/.exec(line)
    if (!match) continue
    const [, options = '', uri, suite, components] = match
    const signedBy = /(?:^|\s)signed-by=(\S+)/i.exec(options)?.[1]
    entries.push(entry(uri!, [suite!], words(components!), signedBy))
  }
  return entries
}

/** Parses the deb822 form of sources.list(5). */
export function parseDeb822(text: string): Entry[] {
  const entries: Entry[] = []
  const lines = text.split('\n').filter((line) => !line.startsWith('#'))
  for (const stanza of lines.join('\n').split(/\n\s*\n/)) {
    const fields = new Map<string, string>()
    let last = ''
    for (const line of stanza.split('\n')) {
      const field = /^([A-Za-z0-9-]+)\s*:\s*(.*)$/.exec(line)
      if (field) fields.set((last = field[1]!.toLowerCase()), field[2]!)
      else if (last && /^\s/.test(line)) fields.set(last, `${fields.get(last)!}\n${line.trim()}`)
    }
    if (!words(fields.get('types')).includes('deb')) continue
    if (/^(?:no|false|0|off|disable|without)$/i.test(fields.get('enabled')?.trim() ?? '')) continue
    for (const uri of words(fields.get('uris')))
      entries.push(
        entry(uri, words(fields.get('suites')), words(fields.get('components')), fields.get('signed-by')),
      )
  }
  return entries
}

const words = (text = ''): string[] => text.split(/\s+/).filter(Boolean)

function entry(uri: string, suites: string[], components: string[], signedBy?: string): Entry {
  // A key in the file itself, or several, cannot be carried over to a source of ours.
  const usable = signedBy !== undefined && /^\/\S+$/.test(signedBy.trim())
  return { uri: uri.replace(/\/+$/, ''), suites, components, ...(usable && { signedBy: signedBy!.trim() }) }
}

/**
 * The machine's own Debian mirror among `entries`, so that a proxy or a mirror nearby is used.
 * @param security the archive of security updates
 */
export function chooseSource(entries: readonly Entry[], security: boolean): Source {
  const found = entries.find(
    ({ uri, suites, components }) =>
      /^https?:/.test(uri) &&
      components.includes('main') &&
      suites.some((suite) => CODENAMES.test(suite) && suite.endsWith('-security') === security),
  )
  const signedBy = found?.signedBy ?? KEYRINGS.find((path) => existsSync(path))
  const uri = found?.uri ?? `http://deb.debian.org/debian${security ? '-security' : ''}`
  return { uri, ...(signedBy !== undefined && { signedBy }) }
}

/** Reads the machine's sources. @param folder apt's configuration, normally /etc/apt */
export function readSources(folder = '/etc/apt'): Entry[] {
  const read = (path: string): string => {
    try {
      return readFileSync(path, 'utf8')
    } catch {
      return ''
    }
  }
  const entries = parseOneLine(read(join(folder, 'sources.list')))
  let names: string[] = []
  try {
    names = readdirSync(join(folder, 'sources.list.d')).sort()
  } catch {
    // no folder, no sources in it
  }
  for (const name of names) {
    const text = (): string => read(join(folder, 'sources.list.d', name))
    if (name.endsWith('.list')) entries.push(...parseOneLine(text()))
    if (name.endsWith('.sources')) entries.push(...parseDeb822(text()))
  }
  return entries
}
