import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import { listOf } from './command.js'
import { parseSize } from './size.js'

const DEVICE = { type: 'string', array: true, requiresArg: true } as const

/** The options that hold disks and networks back. */
export const rateOptions = <T>(yargs: Argv<T>) =>
  yargs
    .option('device-read-bps', {
      ...DEVICE,
      describe: 'Bytes a second read from a device, as PATH:1mb; a microVM: from its disk, whatever PATH',
    })
    .option('device-write-bps', { ...DEVICE, describe: 'Bytes a second written to it' })
    .option('device-read-iops', { ...DEVICE, describe: 'Reads a second, as PATH:1000' })
    .option('device-write-iops', { ...DEVICE, describe: 'Writes a second' })
    .option('network-receive-bps', {
      type: 'string',
      requiresArg: true,
      describe: 'Bytes a second that each interface receives, such as 10m (a microVM on kvm)',
    })
    .option('network-send-bps', {
      type: 'string',
      requiresArg: true,
      describe: 'Bytes a second that each interface sends',
    })

type RateOptions = ReturnType<typeof rateOptions<object>> extends Argv<infer T> ? T : never

/** Their parts of HostConfig. @throws CoracleError USAGE */
export function rateBody(options: RateOptions): {
  readonly HostConfig: object
  readonly Annotations: Record<string, string>
} {
  const rates = (option: keyof RateOptions & `device-${string}`, operations: boolean): object[] =>
    listOf(options[option]).map((text) => deviceRate(`--${option}`, text, operations))
  const bytes = (option: 'network-receive-bps' | 'network-send-bps'): Record<string, string> => {
    const text = options[option]
    return text === undefined ? {} : { [`coracle.${option}`]: String(parseSize(text, `--${option}`)) }
  }
  return {
    HostConfig: {
      BlkioDeviceReadBps: rates('device-read-bps', false),
      BlkioDeviceWriteBps: rates('device-write-bps', false),
      BlkioDeviceReadIOps: rates('device-read-iops', true),
      BlkioDeviceWriteIOps: rates('device-write-iops', true),
    },
    Annotations: { ...bytes('network-receive-bps'), ...bytes('network-send-bps') },
  }
}

function deviceRate(option: string, text: string, operations: boolean): { Path: string; Rate: number } {
  const [, path, rate = ''] = /^(\/[^:]*):(.+)$/.exec(text) ?? []
  if (path === undefined || (operations && !/^[1-9]\d{0,11}$/.test(rate)))
    throw new CoracleError('USAGE', `${option} is PATH:RATE, such as /dev/sda:${operations ? '1000' : '1mb'}`)
  return { Path: path, Rate: operations ? Number(rate) : parseSize(rate, option) }
}
