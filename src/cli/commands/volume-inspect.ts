import { volumePath } from '../client.js'
import type { CommandHelp } from '../command.js'
import { inspectEach } from '../inspect-each.js'

const help = {
  usage: 'volume inspect VOLUME...',
  summary: 'Shows all about volumes, as JSON.',
  options: (yargs) => yargs,
  examples: [['volume inspect data', 'where it is on the host, its labels']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = inspectEach(help, volumePath)
