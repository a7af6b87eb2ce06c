import { mkdirSync, writeFileSync } from 'node:fs'
import { join, posix } from 'node:path'
import { CoracleError } from '../../errors.js'
import { BuildContext } from './context.js'
import { Git, type GitOptions } from './git.js'
import { gitFolder } from './git-folder.js'
import { repositoryAddress } from './repository-address.js'
import { RepositoryParts } from './repository-parts.js'
import { type Submodule, submodulesOf } from './submodules.js'
import type { OpenTree } from './trees.js'

/*
 * ADD of a Git repository, by the host's own `git`. What it reads is a stranger's, so it has a user of its own, a bare
 * repository that is gone afterwards, no configuration but ours, no hooks, and nobody to ask for credentials. Nothing is
 * checked out: what it says is in the tree comes as a tar, which is read as any other. A submodule is another repository,
 * and no more is believed of it.
 */

/** A repository as a Dockerfile names it: `ADDRESS[#REF[:FOLDER]]`. */
export interface RepositoryName {
  readonly url: URL
  /** A branch, a tag or a commit; undefined for the repository's own choice. */
  readonly ref: string | undefined
  /** Without a slash at either end; empty for all. */
  readonly folder: string
}

/** A part of what is asked for. */
interface Wanted {
  readonly commit: string
  readonly folder: string
  /** Where it lies in what is asked for; empty for the whole. */
  readonly at: string
  /** How many repositories it is within. */
  readonly depth: number
  readonly keepGit: boolean
}

/** Over what the repository's own .gitattributes say: all of it is wanted, as it is. */
const ATTRIBUTES = '* -export-ignore -export-subst\n'

/** Whether a source of ADD is meant as a repository (Dockerfile reference, "Adding files from a Git repository"). */
export const isRepository = (word: string): boolean =>
  /^(git|ssh):\/\/|^git@/.test(word) || /^https?:\/\/[^#]*\.git(#|$)/.test(word)

/** @throws CoracleError INVALID_ARGUMENT */
export function parseRepository(word: string): RepositoryName {
  const refuse = (why: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', `ADD ${word.slice(0, 128)}: ${why}`)
  }
  const [address = '', fragment = ''] = word.split(/#(.*)/s)
  const url = repositoryAddress(address, refuse)
  const [ref = '', inside = ''] = fragment.split(/:(.*)/s)
  if (ref !== '' && (!/^[\w][\w./+-]{0,254}$/.test(ref) || /\.\.|\/\/|\/$|\.$/.test(ref)))
    return refuse(`'${ref.slice(0, 64)}' is no branch, tag or commit`)
  const folder = posix.normalize(`/${inside}`).replace(/^\/|\/$/g, '')
  if (/[\0\n]/.test(folder) || folder.length > 4096) return refuse('it names no folder')
  return { url, ref: ref || undefined, folder }
}

/** A repository's commit, which can be looked up before it is fetched. */
export class Repository {
  readonly #name: RepositoryName
  readonly #options: GitOptions

  constructor(name: RepositoryName, options: GitOptions) {
    this.#name = name
    this.#options = options
  }

  /**
   * The commit that is meant, in hexadecimal: the server is asked.
   * @throws CoracleError BUILD_FAILED, HOST_TOOL where there is no git
   */
  async commit(): Promise<string> {
    const { ref } = this.#name
    if (ref !== undefined && /^[0-9a-f]{40}$/.test(ref)) return ref
    using git = await this.#open()
    // An annotated tag's commit comes before the tag.
    const wanted =
      ref === undefined ? ['HEAD'] : [`refs/heads/${ref}`, `refs/tags/${ref}^{}`, `refs/tags/${ref}`, ref]
    const text = await git.run([
      'ls-remote',
      '--quiet',
      '--',
      git.address,
      ...wanted.map((each) => each.replace('^{}', '*')),
    ])
    const found = new Map([...text.matchAll(/^([0-9a-f]{40})\t(.+)$/gm)].map(([, id, name]) => [name!, id!]))
    const commit = wanted.map((each) => found.get(each)).find((id) => id !== undefined)
    return commit ?? git.fail(`it has no branch or tag ${ref ?? 'HEAD'}`)
  }

  /**
   * What is in a folder of it, its submodules among that.
   * @param keepGit with `.git`, where it is the whole
   * @throws CoracleError BUILD_FAILED, HOST_TOOL where there is no git, IMAGE_ARCHIVE, IMAGE_TOO_LARGE
   */
  async tree(commit: string, keepGit = false): Promise<OpenTree> {
    const { folder, url } = this.#name
    const parts = new RepositoryParts()
    try {
      await this.#collect(parts, { commit, folder, at: '', depth: 0, keepGit: keepGit && folder === '' })
    } catch (error) {
      parts[Symbol.dispose]()
      throw error
    }
    return {
      name: posix.basename(folder || url.pathname),
      isFolder: true,
      entries: parts.entries,
      content: (entry) => parts.content(entry),
      [Symbol.dispose]: () => parts[Symbol.dispose](),
    }
  }

  async #collect(parts: RepositoryParts, wanted: Wanted): Promise<void> {
    const { commit, folder, at, depth, keepGit } = wanted
    const read = (tar: AsyncIterable<Uint8Array>): Promise<BuildContext> =>
      BuildContext.read(tar, this.#options.scratch, {
        name: 'the repository',
        strict: true,
        signal: this.#options.signal,
        room: parts.room,
      })
    const modules = await this.#fetched(commit, async (git) => {
      const all = await submodulesOf(git, this.#name.url, commit)
      const outer = all.find(({ path }) => `${folder}/`.startsWith(`${path}/`))
      if (outer) return [outer]
      const found = await git.stream(['archive', '--format=tar', `${commit}:${folder}`], read)
      parts.add(at, found)
      if (keepGit) parts.add(at, await read(await gitFolder(git, this.#name.url, commit)))
      return all.filter(({ path }) => folder === '' || path.startsWith(`${folder}/`))
    })
    for (const module of modules) {
      const inside = `${folder}/`.startsWith(`${module.path}/`)
      parts.enter(module, depth)
      const inner = new Repository({ url: module.url, ref: undefined, folder: '' }, this.#options)
      await inner.#collect(parts, {
        commit: module.commit,
        folder: inside ? folder.slice(module.path.length + 1) : '',
        at: inside ? at : posix.join(at, posix.relative(folder, module.path)),
        depth: depth + 1,
        keepGit,
      })
    }
  }

  /** Calls `work` with the commit. */
  async #fetched(commit: string, work: (git: Git) => Promise<Submodule[]>): Promise<Submodule[]> {
    using git = await this.#open()
    await git.run([
      'fetch',
      '--quiet',
      '--depth=1',
      '--no-tags',
      '--no-write-fetch-head',
      '--',
      git.address,
      commit,
    ])
    return await work(git)
  }

  async #open(): Promise<Git> {
    const git = await Git.open(this.#name.url, this.#options)
    try {
      await git.run(['init', '--quiet', '--bare', '--template='])
      mkdirSync(join(git.folder, 'info'), { recursive: true })
      writeFileSync(join(git.folder, 'info/attributes'), ATTRIBUTES)
      return git
    } catch (error) {
      git[Symbol.dispose]()
      throw error
    }
  }
}
