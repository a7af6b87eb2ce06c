import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import { run } from './run.js'
import { chooseSource, readSources, type Source } from './source.js'
import type { PackageSet } from './sets.js'

/** One package that apt chose. */
export interface Package {
  readonly name: string
  readonly version: string
  /** Bytes of the .deb file. */
  readonly size: number
}

const DAY = 24 * 3600 * 1000

/**
 * apt for one suite, with configuration, lists, status and archives in a folder of ours: what the machine has
 * installed plays no part (the status file is empty), so that dependencies are resolved down to the C library.
 * The machine's mirror, keyring and proxy are used; its signatures are checked by apt as always.
 */
export class Apt {
  readonly #folder: string
  readonly #suite: string
  readonly #security: boolean

  /** @param folder ours alone, made where it is missing */
  constructor(folder: string, set: Pick<PackageSet, 'suite' | 'security'>) {
    this.#folder = folder
    this.#suite = set.suite
    this.#security = set.security
  }

  /** Where {@link download} puts the .deb files. */
  get archives(): string {
    return join(this.#folder, 'archives')
  }

  /** Writes the configuration and fetches the lists where they are missing or older than a day. */
  async update(force: boolean): Promise<void> {
    await this.#configure()
    if (!force && this.#age() < DAY) return
    const { status, stderr, stdout } = await this.#apt([
      'apt-get',
      'update',
      '-o',
      'APT::Update::Error-Mode=any',
    ])
    if (status !== 0)
      throw new CoracleError(
        'HOST_TOOL',
        `cannot read Debian's package lists for ${this.#suite}: ${complaint(stderr || stdout)}; check the network and ` +
          `the mirror in /etc/apt, then run 'npm run setup' again`,
      )
    writeFileSync(this.#stamp, '')
  }

  /** The packages of `set` in the versions the archive has now. */
  async resolve(set: PackageSet): Promise<Package[]> {
    const options = set.suite.endsWith('-backports') ? ['-t', set.suite] : []
    const { status, stdout, stderr } = await this.#apt([
      'apt-get',
      'install',
      '--yes',
      '--print-uris',
      '--no-install-recommends',
      ...options,
      ...set.packages,
    ])
    if (status !== 0)
      throw new CoracleError(
        'HOST_TOOL',
        `apt cannot resolve ${set.packages.join(', ')} of ${set.suite}: ${complaint(stderr)}`,
      )
    const all = parsePrintUris(stdout)
    if (set.dependencies) return all.filter(({ name }) => !set.except?.includes(name))
    // A kernel's metapackage stands for the image of the current version: linux-image-6.1.0-56-cloud-amd64.
    const stems = set.packages.map(
      (name) => new RegExp(`^${name.replace(/^linux-image-/, 'linux-image-[0-9].*-')}$`),
    )
    const chosen = all.filter(({ name }) => stems.some((stem) => stem.test(name)))
    // `amd64` is also the end of `cloud-amd64`: the shortest is the one without a flavour.
    return chosen.sort((a, b) => a.name.length - b.name.length).slice(0, set.packages.length)
  }

  /** Downloads into {@link archives}, verified by apt's hashes. @returns the .deb files */
  async download(packages: readonly Package[]): Promise<string[]> {
    mkdirSync(this.archives, { recursive: true })
    const names = packages.map(({ name, version }) => `${name}=${version}`)
    const { status, stderr } = await this.#apt(['apt-get', 'download', ...names], this.archives)
    if (status !== 0)
      throw new CoracleError(
        'HOST_TOOL',
        `cannot download Debian packages: ${complaint(stderr)}; check the network, then run 'npm run setup' again`,
      )
    const wanted = new Set(packages.map(({ name, version }) => `${name}_${version.replaceAll(':', '%3a')}_`))
    return readdirSync(this.archives)
      .filter((file) => [...wanted].some((start) => file.startsWith(start)))
      .map((file) => join(this.archives, file))
  }

  get #stamp(): string {
    return join(this.#folder, 'lists.stamp')
  }

  #age(): number {
    try {
      return Date.now() - statSync(this.#stamp).mtimeMs
    } catch {
      return Infinity
    }
  }

  async #configure(): Promise<void> {
    const folder = this.#folder
    for (const part of ['lists/partial', 'cache/archives/partial', 'empty'])
      mkdirSync(join(folder, part), { recursive: true })
    writeFileSync(join(folder, 'status'), '')
    writeFileSync(join(folder, 'sources.list'), this.#sources())
    // Only how to reach the mirror is taken over: hooks and pins of the machine are not for our sysroots.
    const dump = (await run(['apt-config', 'dump'])).stdout
    const acquire = dump.split('\n').filter((line) => /^Acquire::(?!IndexTargets)/.test(line))
    const own = {
      'Dir::Etc::main': '/dev/null',
      'Dir::Etc::parts': join(folder, 'empty'),
      'Dir::Etc::sourcelist': join(folder, 'sources.list'),
      'Dir::Etc::sourceparts': join(folder, 'empty'),
      'Dir::Etc::preferences': '/dev/null',
      'Dir::Etc::preferencesparts': join(folder, 'empty'),
      'Dir::State': folder,
      'Dir::State::lists': join(folder, 'lists'),
      'Dir::State::status': join(folder, 'status'),
      'Dir::Cache': join(folder, 'cache'),
      'Dir::Cache::pkgcache': '',
      'Dir::Cache::srcpkgcache': '',
      'APT::Architecture': 'amd64',
      'APT::Sandbox::User': '',
      'Acquire::Languages': 'none',
      'Acquire::GzipIndexes': 'true',
      'Acquire::Retries': '3',
    }
    const lines = Object.entries(own).map(([key, value]) => `${key} "${value}";`)
    writeFileSync(
      join(folder, 'apt.conf'),
      [...acquire, '#clear APT::Architectures;', 'APT::Architectures:: "amd64";', ...lines, ''].join('\n'),
    )
  }

  #sources(): string {
    const entries = readSources()
    const line = ({ uri, signedBy }: Source, suite: string): string =>
      `deb [arch=amd64${signedBy ? ` signed-by=${signedBy}` : ''}] ${uri} ${suite} main\n`
    const main = chooseSource(entries, false)
    let text = line(main, this.#suite)
    if (this.#suite.endsWith('-backports')) text += line(main, this.#suite.replace('-backports', ''))
    if (this.#security) text += line(chooseSource(entries, true), `${this.#suite}-security`)
    return text
  }

  #apt(argv: string[], cwd = this.#folder): ReturnType<typeof run> {
    return run(argv, {
      cwd,
      env: { ...process.env, APT_CONFIG: join(this.#folder, 'apt.conf'), LC_ALL: 'C' },
    })
  }
}

/** Parses `apt-get --print-uris`: lines `'URI' name_version_arch.deb size hash`. */
export function parsePrintUris(text: string): Package[] {
  const packages: Package[] = []
  for (const line of text.split('\n')) {
    const match = /^'[^']*' (\S+)_(\S+)_[a-z0-9]+\.deb (\d+)/.exec(line)
    if (match)
      packages.push({ name: match[1]!, version: decodeURIComponent(match[2]!), size: Number(match[3]) })
  }
  return packages
}

/** The line of apt's output that says what is wrong. */
function complaint(stderr: string): string {
  const lines = stderr.split('\n').filter((line) => /^[EW]:/.test(line))
  return (
    lines.find((line) => line.startsWith('E: Failed')) ??
    lines[0] ??
    stderr.trim().split('\n').at(-1) ??
    ''
  )
    .replace(/^[EW]:\s*/, '')
    .trim()
}
