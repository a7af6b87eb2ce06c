import { join } from 'node:path'
import { type Instruction, problem } from '../../image/dockerfile/parse.js'
import type { BuildContext } from './context.js'
import { type CopiedTree, type CopySource, contextSource, copyDigest } from './copy.js'
import { Repository, isRepository, parseRepository } from './repository.js'
import { remoteTree, textTree, unpackedTree } from './trees.js'

/** A tree that is made only where the cache does not know it. */
export interface LateTree {
  /** What the cache knows it by. */
  readonly known: unknown
  load(): Promise<CopiedTree>
}

export type FoundTree = CopiedTree | LateTree

/** What the cache knows sources by. */
export const sourcesDigest = (trees: readonly FoundTree[]): unknown =>
  trees.map((tree) => ('load' in tree ? tree.known : copyDigest([tree])))

export interface SourcesInit {
  readonly context: BuildContext
  /** A folder of the build on a disk, which goes with it. */
  readonly scratch: string
  /** Of the build: none, host, or a network's name. */
  readonly network: string | undefined
  readonly say: (text: string) => void
  readonly signal: AbortSignal
}

export interface SourceOptions {
  readonly target: string
  /** Of `--checksum`. */
  readonly checksum: string | undefined
  /** `.git` of a repository is wanted too. */
  readonly keepGit: boolean
  /** In place of the context: another image's files. */
  readonly other: CopySource | undefined
  /** Expands a here-document. */
  readonly expand: (text: string) => string
}

/** What COPY and ADD take: here-documents, files of the context or an image, archives, addresses, repositories. */
export class Sources implements Disposable {
  readonly #init: SourcesInit
  readonly #context: CopySource
  /** Files that are open until the build is over. */
  readonly #opened: Disposable[] = []
  #downloads = 0

  constructor(init: SourcesInit) {
    this.#init = init
    this.#context = contextSource(init.context)
  }

  /**
   * Finds the sources of a step, whose words are expanded.
   * @throws CoracleError DOCKERFILE, INVALID_ARGUMENT, BUILD_FAILED, IMAGE_ARCHIVE, IMAGE_TOO_LARGE, HOST_TOOL
   */
  async find(step: Instruction, words: readonly string[], options: SourceOptions): Promise<FoundTree[]> {
    const { target, keepGit, other = this.#context, expand } = options
    const checksum = checksumOf(step, options.checksum, words)
    const isFolder = words.length > 1 || isFolderName(target)
    const trees: FoundTree[] = []
    for (const word of words) {
      const heredoc = step.heredocs.find(
        ({ name }) => /^<<-?/.test(word) && word.replace(/^<<-?/, '') === name,
      )
      if (heredoc)
        trees.push(textTree(heredoc.name, heredoc.expand ? expand(heredoc.content) : heredoc.content))
      else if (step.word === 'ADD' && isAddress(word))
        trees.push(await this.#fetched(step, word, { checksum, isFolder, keepGit }))
      else if (step.word === 'ADD') trees.push(...(await this.#unpacked(other.match(word))))
      else trees.push(...other.match(word))
    }
    return trees
  }

  async #fetched(
    step: Instruction,
    address: string,
    { checksum, isFolder, keepGit }: Pick<SourceOptions, 'checksum' | 'keepGit'> & { isFolder: boolean },
  ): Promise<FoundTree> {
    const { network, signal, scratch, say } = this.#init
    if (network === 'none')
      throw problem(step.line, `ADD of ${address.slice(0, 128)}: this build has no network (--network none)`)
    say(`Fetching ${address}\n`)
    const options = { anywhere: network === 'host', signal }
    if (isRepository(address)) {
      if (checksum !== undefined) throw problem(step.line, '--checksum is for files, a commit is its own')
      const name = parseRepository(address)
      const repository = new Repository(name, { ...options, scratch })
      const commit = await repository.commit()
      say(` commit ${commit}\n`)
      return {
        known: ['git', commit, name.folder, 'submodules', keepGit],
        load: async () => this.#kept(await repository.tree(commit, keepGit)),
      }
    }
    const file = join(scratch, `add-${this.#downloads++}`)
    return this.#kept(await remoteTree(address, { ...options, checksum, isFolder, scratch: file }))
  }

  /** What ADD takes: archives as what is in them. */
  async #unpacked(trees: readonly CopiedTree[]): Promise<CopiedTree[]> {
    const found: CopiedTree[] = []
    for (const tree of trees) {
      const unpacked = await unpackedTree(tree, this.#init.scratch, this.#init.signal)
      found.push(unpacked ? this.#kept(unpacked) : tree)
    }
    return found
  }

  #kept<T extends Disposable>(tree: T): T {
    this.#opened.push(tree)
    return tree
  }

  [Symbol.dispose](): void {
    for (const each of this.#opened.splice(0)) each[Symbol.dispose]()
  }
}

/** @throws CoracleError DOCKERFILE for a checksum that is none, or of what is not one address */
function checksumOf(
  step: Instruction,
  text: string | undefined,
  words: readonly string[],
): string | undefined {
  if (text === undefined) return undefined
  const checksum = text.toLowerCase()
  if (!/^sha256:[0-9a-f]{64}$/.test(checksum))
    throw problem(step.line, '--checksum takes sha256: and 64 digits')
  if (words.length !== 1 || !isAddress(words[0]!)) throw problem(step.line, '--checksum is for one address')
  return checksum
}

const isAddress = (word: string): boolean => /^(https?|git|ssh):\/\/|^git@/.test(word)
/** Whether a destination says that it is a folder. */
const isFolderName = (target: string): boolean => /(^|\/)\.?$/.test(target)
