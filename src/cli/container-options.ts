import { readFileSync } from 'node:fs'
import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import { CONTENT_TRUST, listOf, type Refused } from './command.js'
import { healthBody, healthOptions } from './health-options.js'
import { limitBody, limitOptions, linesOf } from './limit-options.js'
import { mountBody, mountOptions } from './mount-options.js'
import { networkBody, networkOptions } from './network-options.js'
import { PLATFORM } from './platform.js'
import { pairOf } from './pair.js'
import { rateBody, rateOptions } from './rate-options.js'
import { sharingBody, sharingOptions } from './sharing-options.js'
import { parseSize } from './size.js'

/** The option of `run`, `create` and `update`. */
export const CPU_SHARES = {
  alias: 'c',
  type: 'string',
  requiresArg: true,
  describe: 'Share of CPU time where it is scarce, 2 to 262144 (default 1024)',
} as const

const WINDOWS = 'it is for Windows alone'
const REAL_TIME = 'shares of real-time scheduling are not built yet'

/** What `run` and `create` do not take of Docker's. */
export const CONTAINER_REFUSED: Refused = {
  ...CONTENT_TRUST,
  'blkio-weight-device': 'weights of single devices are not built yet; --blkio-weight is for all of them',
  'cgroup-parent': 'each container has a cgroup where the engine makes it',
  'cpu-count': `${WINDOWS}: --cpus says how many`,
  'cpu-percent': `${WINDOWS}: --cpus says how much`,
  'io-maxbandwidth': `${WINDOWS}: there are --device-read-bps and --device-write-bps`,
  'io-maxiops': `${WINDOWS}: there are --device-read-iops and --device-write-iops`,
  'cpu-rt-period': REAL_TIME,
  'cpu-rt-runtime': REAL_TIME,
  gpus: '--device pci=ADDRESS gives a microVM a GPU of the host, whole',
  'kernel-memory': 'Linux has no such limit any more: -m is for all of it',
  'link-local-ip': 'addresses are given by --ip and --ip6',
  'use-api-socket': "the engine's socket is not for containers",
}

/** The options that `run` and `create` share. */
export const containerOptions = (yargs: Argv) =>
  limitOptions(sharingOptions(healthOptions(mountOptions(rateOptions(networkOptions(yargs))))))
    .option('attach', {
      alias: 'a',
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'stdin, stdout or stderr, and no other (default stdout and stderr; with -i stdin too)',
    })
    .option('interactive', { alias: 'i', type: 'boolean', describe: 'Keep stdin open' })
    .option('tty', { alias: 't', type: 'boolean', describe: 'Give the container a terminal' })
    .option('init', {
      type: 'boolean',
      describe: 'Run an init in front of the command, which passes signals on and reaps processes',
    })
    .option('rm', { type: 'boolean', describe: 'Remove the container when it exits' })
    .option('name', { type: 'string', requiresArg: true, describe: 'Name of the container' })
    .option('env', {
      alias: 'e',
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'NAME=VALUE, or NAME to pass this one on',
    })
    .option('env-file', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'A file of lines as --env has them',
    })
    .option('workdir', {
      alias: 'w',
      type: 'string',
      requiresArg: true,
      describe: 'Working directory inside',
    })
    .option('user', {
      alias: 'u',
      type: 'string',
      requiresArg: true,
      describe: 'USER[:GROUP], names or numbers',
    })
    .option('hostname', { alias: 'h', type: 'string', requiresArg: true, describe: 'Host name inside' })
    .option('label', { alias: 'l', type: 'string', array: true, requiresArg: true, describe: 'KEY=VALUE' })
    .option('label-file', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'A file of lines as --label has them',
    })
    .option('annotation', { type: 'string', array: true, requiresArg: true, describe: 'KEY=VALUE, for OCI' })
    .option('cidfile', { type: 'string', requiresArg: true, describe: 'A new file for the id' })
    .option('memory', { alias: 'm', type: 'string', requiresArg: true, describe: 'Memory, such as 512m' })
    .option('cpus', { type: 'string', requiresArg: true, describe: 'CPUs, such as 1.5' })
    .option('cpu-shares', CPU_SHARES)
    .option('entrypoint', {
      type: 'string',
      requiresArg: true,
      describe: "In place of the image's entrypoint",
    })
    .option('read-only', { type: 'boolean', describe: 'Make the root file system read-only' })
    .option('cap-add', { type: 'string', array: true, requiresArg: true, describe: 'Add a capability' })
    .option('cap-drop', { type: 'string', array: true, requiresArg: true, describe: 'Drop a capability' })
    .option('security-opt', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'no-new-privileges, seccomp=unconfined, seccomp=FILE, or systempaths=unconfined',
    })
    .option('stop-signal', { type: 'string', requiresArg: true, describe: 'Signal that stops it' })
    .option('restart', {
      type: 'string',
      requiresArg: true,
      describe: 'When it ends: no, on-failure[:COUNT], always or unless-stopped (by the daemon)',
    })
    .option('log-driver', { type: 'string', requiresArg: true, describe: 'json-file (default) or none' })
    .option('log-opt', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'max-size=10m, and max-file=3: so many files of such a size are kept',
    })
    .option('isolation', { type: 'string', requiresArg: true, describe: 'microvm (default) or process' })
    .option('runtime', { type: 'string', requiresArg: true, describe: "Docker's word for --isolation" })
    .option('from', {
      type: 'string',
      requiresArg: true,
      describe: 'Go on from a snapshot, in place of an image and a command: coracle snapshot --help',
    })
    .option('pull', {
      type: 'string',
      requiresArg: true,
      describe: 'Fetch the image: missing (default), always or never',
    })
    .option('quiet', { alias: 'q', type: 'boolean', describe: 'Say nothing of a pull' })
    .option('platform', PLATFORM)
    .option('kernel', {
      type: 'string',
      requiresArg: true,
      describe: "The guest's kernel: cloud or generic (default: cloud, unless a device needs the other)",
    })
    .option('hypervisor', { type: 'string', requiresArg: true, describe: 'auto (default), kvm or qemu' })
    .option('cold', {
      type: 'boolean',
      describe: 'Boot a kernel of its own, in place of starting as a clone of a booted guest',
    })

export type ContainerOptions = ReturnType<typeof containerOptions> extends Argv<infer T> ? T : never

export const choose = (
  option: string,
  value: string | undefined,
  choices: readonly string[],
): string | undefined => {
  if (value === undefined || choices.includes(value)) return value
  throw new CoracleError('USAGE', `${option} is one of ${choices.join(', ')}, not '${value}'`)
}

/** Which of a container's streams a command joins. */
export interface Streams {
  readonly stdin: boolean
  readonly stdout: boolean
  readonly stderr: boolean
}

/** What `--attach` says, and `-i` where it says nothing. @throws CoracleError USAGE */
export function streamsOf({ attach, interactive = false }: ContainerOptions): Streams {
  if (attach === undefined) return { stdin: interactive, stdout: true, stderr: true }
  const names = listOf(attach).map((name) =>
    choose('--attach', name.toLowerCase(), ['stdin', 'stdout', 'stderr']),
  )
  const has = (name: string): boolean => names.includes(name)
  return { stdin: has('stdin') && interactive, stdout: has('stdout'), stderr: has('stderr') }
}

/** Of a command that joins none. */
export const NO_STREAMS: Streams = { stdin: false, stdout: false, stderr: false }

/**
 * The body of ContainerCreate.
 * @param streams those that are joined at once
 * @throws CoracleError USAGE
 */
export function createBody(
  options: ContainerOptions,
  [image = '', ...command]: readonly string[],
  streams: Streams,
): { readonly Image: string; readonly [key: string]: unknown } {
  if (options.from === undefined && image === '')
    throw new CoracleError('USAGE', "coracle run needs a word more: an image. See 'coracle run --help'.")
  if (options.from !== undefined && image !== '')
    throw new CoracleError('USAGE', `--from goes without an image and a command: what is ${image} for?`)
  const isolation = choose('--isolation', options.isolation, ['microvm', 'process'])
  const { runtime } = options
  const hypervisor = choose('--hypervisor', options.hypervisor, ['auto', 'kvm', 'qemu'])
  const kernel = choose('--kernel', options.kernel, ['cloud', 'generic'])
  const { tty = false, interactive = false } = options
  const lines = (option: 'env-file' | 'label-file'): string[] =>
    listOf(options[option]).flatMap((path) => linesOf(`--${option}`, path))
  const { HostConfig: limits, ...stop } = limitBody(options)
  const { HostConfig: network, ...networking } = networkBody(options)
  const rates = rateBody(options)
  const { HostConfig: mounts, Volumes } = mountBody(options)
  const size = tty && process.stdout.isTTY ? [process.stdout.rows, process.stdout.columns] : undefined
  return {
    Image: image,
    ...(command.length > 0 ? { Cmd: command } : {}),
    ...(options.entrypoint === undefined ? {} : { Entrypoint: [options.entrypoint] }),
    Env: [...lines('env-file'), ...listOf(options.env)].flatMap(environmentOf),
    WorkingDir: options.workdir ?? '',
    User: options.user ?? '',
    Hostname: options.hostname ?? '',
    Labels: Object.fromEntries([...lines('label-file'), ...listOf(options.label)].map(pairOf)),
    StopSignal: options['stop-signal'] ?? '',
    Tty: tty,
    OpenStdin: interactive,
    StdinOnce: streams.stdin,
    AttachStdin: streams.stdin,
    AttachStdout: streams.stdout,
    AttachStderr: streams.stderr,
    ...networking,
    Volumes,
    ...healthBody(options),
    ...stop,
    HostConfig: {
      ...limits,
      ...network,
      ...mounts,
      ...rates.HostConfig,
      ...sharingBody(options),
      AutoRemove: options.rm ?? false,
      ...(options.restart === undefined ? {} : { RestartPolicy: restartPolicy(options.restart) }),
      ...(options.init === undefined ? {} : { Init: options.init }),
      ReadonlyRootfs: options['read-only'] ?? false,
      CapAdd: listOf(options['cap-add']),
      CapDrop: listOf(options['cap-drop']),
      ...securityBody(listOf(options['security-opt'])),
      ...(isolation === undefined ? {} : { Isolation: isolation }),
      ...(runtime === undefined ? {} : { Runtime: runtime }),
      ...(options.memory === undefined ? {} : { Memory: parseSize(options.memory, '--memory') }),
      ...(options.cpus === undefined ? {} : { NanoCpus: parseCpus(options.cpus) }),
      ...(options['cpu-shares'] === undefined
        ? {}
        : { CpuShares: parseNumber('--cpu-shares', options['cpu-shares']) }),
      LogConfig: {
        Type: options['log-driver'] ?? '',
        Config: Object.fromEntries(listOf(options['log-opt']).map(pairOf)),
      },
      Annotations: {
        ...Object.fromEntries(listOf(options.annotation).map(pairOf)),
        ...rates.Annotations,
        ...(hypervisor === undefined ? {} : { 'coracle.hypervisor': hypervisor }),
        ...(options.cold === true ? { 'coracle.cold': 'true' } : {}),
        ...(kernel === undefined ? {} : { 'coracle.kernel': kernel }),
        ...(options.from === undefined ? {} : { 'coracle.from': options.from }),
      },
      ...(size ? { ConsoleSize: size } : {}),
    },
  }
}

/** @throws CoracleError USAGE */
export function restartPolicy(text: string): object {
  const match = /^(no|always|unless-stopped|on-failure)(?::(\d{1,6}))?$/.exec(text)
  if (!match)
    throw new CoracleError(
      'USAGE',
      `--restart is no, on-failure[:COUNT], always or unless-stopped, not '${text}'`,
    )
  return { Name: match[1], MaximumRetryCount: Number(match[2] ?? 0) }
}

/** What Docker's client makes of its options: one of them is no option of the API. @throws CoracleError USAGE */
function securityBody(options: readonly string[]): object {
  const open = options.includes('systempaths=unconfined')
  return {
    SecurityOpt: options.filter((each) => each !== 'systempaths=unconfined').map(securityOption),
    ...(open && { MaskedPaths: [], ReadonlyPaths: [] }),
  }
}

/** A profile's file is the client's: its text goes to the API. @throws CoracleError USAGE */
function securityOption(option: string): string {
  const [, file] = /^seccomp[=:]([^]*)$/.exec(option) ?? []
  if (file === undefined || file === 'unconfined' || file === 'builtin') return option
  try {
    return `seccomp=${readFileSync(file, 'utf8')}`
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw new CoracleError('USAGE', `--security-opt: cannot read the seccomp profile ${file} (${code})`)
  }
}

/** @throws CoracleError USAGE */
export function parseNumber(option: string, text: string): number {
  if (/^-?\d{1,12}$/.test(text) && Number(text) !== 0) return Number(text)
  throw new CoracleError('USAGE', `${option} must be a whole number other than 0, not '${text}'`)
}

/** To the API 0 is "not given", so it is told apart here. @throws CoracleError USAGE */
export function parseCpus(text: string): number {
  const cpus = /^\d*\.?\d+$/.test(text) ? Number(text) : NaN
  const nano = Math.round(cpus * 1e9)
  if (nano > 0 && Number.isSafeInteger(nano)) return nano
  throw new CoracleError('USAGE', `--cpus must be a number above 0, such as 0.5 or 2, not '${text}'`)
}

/** The value of `--env` as the API has it: of a name alone, this process's value. */
export function environmentOf(entry: string): string[] {
  if (entry.includes('=')) return [entry]
  const value = process.env[entry]
  return value === undefined ? [] : [`${entry}=${value}`]
}
