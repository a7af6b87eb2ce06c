import type { HistoryEntry, RawConfig } from '../../image/compose.js'
import type { Image } from '../../image/image.js'

const DEFAULT_SHELL = ['/bin/sh', '-c']
const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** One stage of a build as far as it has come: an image, and what is said of it since. */
export class Stage {
  /** Of which later stages may copy. */
  readonly name: string | undefined
  /** Undefined for `FROM scratch` before its first layer. */
  image: Image | undefined
  config: RawConfig
  /** Said since {@link image}: they become lines of the next one's history. */
  pending: HistoryEntry[] = []
  /** Arguments that are declared, with their values. */
  readonly args = new Map<string, string>()
  /** What the next step's key in the cache begins with. */
  key: string
  /** A step was not in the cache: none behind it is looked for. */
  missed = false

  constructor(name: string | undefined, image: Image | undefined, config: RawConfig) {
    this.name = name
    this.image = image
    this.config = { ...config }
    this.key = image?.id ?? 'scratch'
  }

  get env(): readonly string[] {
    return (this.config['Env'] as string[] | undefined) ?? []
  }

  setEnv(name: string, value: string): void {
    const others = this.env.filter((entry) => !entry.startsWith(`${name}=`))
    // In its old place, as Docker has it.
    const at = this.env.findIndex((entry) => entry.startsWith(`${name}=`))
    const entry = `${name}=${value}`
    this.config['Env'] = at < 0 ? [...others, entry] : this.env.map((each, i) => (i === at ? entry : each))
  }

  /** A variable's value: the environment's, else an argument's. */
  readonly lookup = (name: string): string | undefined => {
    const entry = this.env.find((each) => each.startsWith(`${name}=`))
    return (
      entry?.slice(name.length + 1) ?? this.args.get(name) ?? (name === 'PATH' ? DEFAULT_PATH : undefined)
    )
  }

  get shell(): readonly string[] {
    return (this.config['Shell'] as string[] | undefined) ?? DEFAULT_SHELL
  }

  get workingDirectory(): string {
    return (this.config['WorkingDir'] as string | undefined) || '/'
  }

  get user(): string {
    return (this.config['User'] as string | undefined) ?? ''
  }

  note(text: string): void {
    this.pending.push({ created: new Date().toISOString(), created_by: text })
  }
}
