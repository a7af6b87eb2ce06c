import { networkPath } from '../client.js'
import type { CommandHelp } from '../command.js'
import { inspectEach } from '../inspect-each.js'

const help = {
  usage: 'network inspect NETWORK...',
  summary: 'Shows all about networks, and who is on them, as JSON.',
  options: (yargs) => yargs,
  examples: [['network inspect bridge', 'the default network']],
  words: [1, Infinity],
} satisfies CommandHelp<unknown>

export const run = inspectEach(help, networkPath)
