import { containerPath } from '../client.js'
import { eachOf, type CommandHelp } from '../command.js'

const LINK = "a link is a line of the container's own /etc/hosts, for as long as it is there"

const help = {
  usage: 'rm [OPTIONS] CONTAINER...',
  summary: 'Removes containers, with what they wrote.',
  options: (yargs) =>
    yargs
      .option('force', { alias: 'f', type: 'boolean', describe: 'Kill what runs' })
      .option('volumes', { alias: 'v', type: 'boolean', describe: 'And their volumes that nobody named' }),
  examples: [
    ['rm -f web', 'whatever it is doing'],
    ['rm $(coracle ps -aq)', 'all that have ended'],
  ],
  words: [1, Infinity],
  refused: { link: LINK, l: LINK },
} satisfies CommandHelp<unknown>

export const run = eachOf(help, async (client, name, { force, volumes }) => {
  await client.json('DELETE', containerPath(name), { query: { force: force ? 1 : 0, v: volumes ? 1 : 0 } })
  return name
})
