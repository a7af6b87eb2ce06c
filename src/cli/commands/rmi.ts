import { imagePath } from '../client.js'
import { PLATFORM, platformQuery } from '../platform.js'
import { eachOf, type CommandHelp } from '../command.js'

const help = {
  usage: 'rmi [OPTIONS] IMAGE...',
  summary: 'Removes images: a name, and with the last name the image.',
  options: (yargs) =>
    yargs
      .option('force', { alias: 'f', type: 'boolean', describe: 'By its id though it has several names' })
      .option('no-prune', { type: 'boolean', describe: 'As without: no parents without names go along' })
      .option('platform', PLATFORM),
  examples: [['rmi debian:test', 'one name']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { force, platform }) => {
  const removals = await client.json<Record<string, string>[]>('DELETE', imagePath(name), {
    query: { force: force ? 1 : 0, platforms: platformQuery(platform) },
  })
  return removals.flatMap((each) => Object.entries(each).map(([what, id]) => `${what}: ${id}`)).join('\n')
})
