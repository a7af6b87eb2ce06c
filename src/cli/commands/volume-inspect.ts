import { volumePath } from '../client.js'
import { inspectEach } from '../inspect-each.js'

const help = {
  usage: 'volume inspect [OPTIONS] VOLUME...',
  summary: 'Shows all about volumes, as JSON.',
  examples: [['volume inspect data', 'where it is on the host, its labels']],
} as const

export const run = inspectEach(help, volumePath)
