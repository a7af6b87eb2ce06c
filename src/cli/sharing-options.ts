import type { Argv } from 'yargs'
import { CoracleError } from '../errors.js'
import { listOf } from './command.js'
import { pairOf } from './pair.js'

const MODE = { type: 'string', requiresArg: true } as const
const LIST = { type: 'string', array: true, requiresArg: true } as const

/** The options about what of the host a container may see and do. */
export const sharingOptions = <T>(yargs: Argv<T>) =>
  yargs
    .option('privileged', {
      type: 'boolean',
      describe:
        "Everything: in a microVM the guest's own kernel, with process isolation the host's devices too",
    })
    .option('device', {
      ...LIST,
      describe:
        'sriov=ADAPTER[,mac=..][,vlan=..][,ip=ADDRESS/BITS][,gateway=..][,name=..] or pci=ADDRESS for a microVM; PATH[:PATH][:rwm] for process isolation',
    })
    .option('device-cgroup-rule', {
      ...LIST,
      describe: "'c 1:3 rwm': what else it may do with devices (process isolation)",
    })
    .option('pid', {
      ...MODE,
      describe: 'host, or container:NAME: see its processes (process isolation)',
    })
    .option('ipc', {
      ...MODE,
      describe: 'none, private; shareable, container:NAME or host (process isolation)',
    })
    .option('uts', { ...MODE, describe: "host: have the host's name (process isolation)" })
    .option('cgroupns', { ...MODE, describe: 'private, or host (process isolation)' })
    .option('userns', { ...MODE, describe: 'host: without a map of users, which is how all run' })
    .option('cgroup-parent', { ...MODE, describe: 'The cgroup of the host that its own lies in: /a/b' })
    .option('group-add', { ...LIST, describe: 'A further group of its user, a name or a number' })
    .option('oom-score-adj', {
      ...MODE,
      describe: 'Who is killed first where memory is short, -1000 to 1000',
    })
    .option('storage-opt', { ...LIST, describe: "size=20g: what a microVM's own disk takes at most" })

type SharingOptions = ReturnType<typeof sharingOptions<object>> extends Argv<infer T> ? T : never

/** Their part of HostConfig. @throws CoracleError USAGE */
export function sharingBody(options: SharingOptions): object {
  const score = options['oom-score-adj']
  if (score !== undefined && !/^-?\d{1,4}$/.test(score))
    throw new CoracleError('USAGE', `--oom-score-adj is -1000 to 1000, not '${score}'`)
  const storage = listOf(options['storage-opt'])
  return {
    ...(options.privileged === true && { Privileged: true }),
    PidMode: options.pid ?? '',
    IpcMode: options.ipc ?? '',
    UTSMode: options.uts ?? '',
    CgroupnsMode: options.cgroupns ?? '',
    UsernsMode: options.userns ?? '',
    CgroupParent: options['cgroup-parent'] ?? '',
    GroupAdd: listOf(options['group-add']),
    ...(score !== undefined && { OomScoreAdj: Number(score) }),
    ...(storage.length > 0 && { StorageOpt: Object.fromEntries(storage.map(pairOf)) }),
    DeviceCgroupRules: listOf(options['device-cgroup-rule']),
    Devices: listOf(options.device).map(deviceOf),
  }
}

/** A device file has its place in the container and its access behind colons; ours have commas. */
function deviceOf(text: string): object {
  if (!text.startsWith('/')) return { PathOnHost: text }
  const [source, ...rest] = text.split(':')
  const access = rest.length > 0 && /^[rwm]+$/.test(rest.at(-1)!) ? rest.pop() : undefined
  const [destination = source, ...more] = rest
  if (more.length > 0)
    throw new CoracleError('USAGE', `--device is PATH[:PATH][:rwm] of a device file, not '${text}'`)
  return { PathOnHost: source, PathInContainer: destination, CgroupPermissions: access ?? 'rwm' }
}
