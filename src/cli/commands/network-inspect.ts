import { networkPath } from '../client.js'
import { inspectEach } from '../inspect-each.js'

const help = {
  usage: 'network inspect [OPTIONS] NETWORK...',
  summary: 'Shows all about networks, and who is on them, as JSON.',
  examples: [['network inspect bridge', 'the default network']],
} as const

export const run = inspectEach(help, networkPath, (yargs) =>
  yargs.option('verbose', {
    alias: 'v',
    type: 'boolean',
    describe: "As without: it is of a swarm's networks",
  }),
)
