import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'

const TIMES = {
  'health-interval': 'Interval',
  'health-timeout': 'Timeout',
  'health-start-period': 'StartPeriod',
  'health-start-interval': 'StartInterval',
} as const

/** Docker's options of a health check, which the daemon carries out. */
export const healthOptions = <T>(yargs: Argv<T>) =>
  yargs
    .option('health-cmd', {
      type: 'string',
      requiresArg: true,
      describe: 'Command for a shell that says by status 0 that all is well (run by the daemon)',
    })
    .option('health-interval', { type: 'string', requiresArg: true, describe: 'Between checks (30s)' })
    .option('health-timeout', { type: 'string', requiresArg: true, describe: 'Of one check (30s)' })
    .option('health-retries', { type: 'string', requiresArg: true, describe: 'Failures in a row (3)' })
    .option('health-start-period', {
      type: 'string',
      requiresArg: true,
      describe: 'Time to start in, when failures do not count (0s)',
    })
    .option('health-start-interval', {
      type: 'string',
      requiresArg: true,
      describe: 'Between checks in that time (5s)',
    })
    .option('no-healthcheck', { type: 'boolean', describe: "Without the image's check" })

type HealthOptions = ReturnType<typeof healthOptions<object>> extends Argv<infer T> ? T : never

/** `Healthcheck` of ContainerCreate. @throws CoracleError USAGE */
export function healthBody(options: HealthOptions): { readonly Healthcheck?: object } {
  const times = Object.entries(TIMES).flatMap(([option, name]): [string, number][] => {
    const text = options[option as keyof typeof TIMES]
    return text === undefined ? [] : [[name, nanoseconds(text, option)]]
  })
  const { 'health-cmd': command, 'health-retries': retries, 'no-healthcheck': none } = options
  if (retries !== undefined && !/^\d{1,9}$/.test(retries))
    throw new CoracleError('USAGE', `--health-retries is a whole number, not '${retries}'`)
  const given = {
    ...(command !== undefined && { Test: ['CMD-SHELL', command] }),
    ...Object.fromEntries(times),
    ...(retries !== undefined && { Retries: Number(retries) }),
  }
  if (none !== true) return Object.keys(given).length > 0 ? { Healthcheck: given } : {}
  if (Object.keys(given).length > 0)
    throw new CoracleError('USAGE', '--no-healthcheck conflicts with --health-* options')
  return { Healthcheck: { Test: ['NONE'] } }
}

const UNITS: Readonly<Record<string, number>> = { ms: 1e6, s: 1e9, m: 60e9, h: 3600e9 }

function nanoseconds(text: string, option: string): number {
  if (!/^((\d+(\.\d+)?)(ms|s|m|h))+$/.test(text))
    throw new CoracleError('USAGE', `--${option} is a time such as 1m30s or 500ms, not '${text}'`)
  return [...text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h)/g)].reduce(
    (sum, [, count, unit]) => sum + Math.round(Number(count) * UNITS[unit!]!),
    0,
  )
}
