#!/usr/bin/env node
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { STEPS } from './steps.js'

const HELP = `npm run setup [-- --lab]

Fetches and builds what Coracle needs, into ${paths.cache} and ${paths.state}.
Nothing is installed on the system; what is there is left as it is.

  --lab   also what only "npm run lab" needs
`

async function main(words: readonly string[]): Promise<void> {
  if (words.includes('--help')) {
    process.stdout.write(HELP)
    return
  }
  const unknown = words.find((word) => word !== '--lab')
  if (unknown !== undefined)
    throw new CoracleError(
      'USAGE',
      `unknown option ${unknown}: 'npm run setup -- --help' shows what there is`,
    )
  const steps = STEPS.filter(({ lab }) => !lab || words.includes('--lab'))
  const width = Math.max(...steps.map(({ title }) => title.length))
  for (const { title, make } of steps) {
    const started = performance.now()
    const made = await make()
    const seconds = (performance.now() - started) / 1000
    process.stderr.write(
      `setup: ${title.padEnd(width)}  ${made}${seconds < 1 ? '' : ` (${seconds.toFixed(1)} s)`}\n`,
    )
  }
}

main(process.argv.slice(2)).catch((error: unknown) => {
  if (!(error instanceof CoracleError)) throw error
  process.stderr.write(`setup: ${error.message}\n`)
  process.exitCode = error.exit
})
