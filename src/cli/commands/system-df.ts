import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'
import { FORMAT, listing } from '../listing.js'
import { showSize } from '../size.js'

const help = {
  usage: 'system df [OPTIONS]',
  summary: 'Shows what images, containers and volumes take of the disk.',
  options: (yargs) => yargs.option('format', FORMAT),
  examples: [["system df --format '{{.Type}} {{.Size}}'", 'for a script']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

const COLUMNS = { Type: 'TYPE', TotalCount: 'TOTAL', Active: 'ACTIVE', Size: 'SIZE' }

interface Usage {
  readonly LayersSize: number
  readonly Images: readonly { readonly Containers: number }[]
  readonly Containers: readonly { readonly State: string; readonly SizeRw?: number }[]
  readonly Volumes: readonly { readonly UsageData: { readonly Size: number; readonly RefCount: number } }[]
}

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  return withClient(invocation, async (client) => {
    const { LayersSize, Images, Containers, Volumes } = await client.json<Usage>('GET', '/system/df')
    const row = (
      Type: string,
      total: number,
      active: number,
      size: number,
    ): Record<keyof typeof COLUMNS, string> => ({
      ...{ Type, TotalCount: String(total) },
      ...{ Active: String(active), Size: showSize(size) },
    })
    const sum = (sizes: readonly number[]): number => sizes.reduce((all, each) => all + each, 0)
    const used = Images.filter((each) => each.Containers > 0).length
    const running = Containers.filter(({ State }) => State === 'running').length
    const mounted = Volumes.filter(({ UsageData }) => UsageData.RefCount > 0).length
    const rows = [
      row('Images', Images.length, used, LayersSize),
      row('Containers', Containers.length, running, sum(Containers.map(({ SizeRw = 0 }) => SizeRw))),
      row('Local Volumes', Volumes.length, mounted, sum(Volumes.map(({ UsageData }) => UsageData.Size))),
    ]
    process.stdout.write(listing(COLUMNS, rows, options.format))
    return 0
  })
}
