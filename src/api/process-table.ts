import { deviceNumber } from '../device-number.js'
import { CoracleError } from '../errors.js'
import type { ProcessInfo, ProcessList } from '../isolation/processes.js'

/*
 * Processes as ps(1) of procps shows them: what `docker top CONTAINER ARGUMENTS` passes on. Docker runs ps on its host;
 * a guest's processes are not there, so the columns are made here, of what the kernel tells of each process.
 */

/** What a column is made of, beside the process. */
interface Where {
  /** Milliseconds since 1970. */
  readonly now: number
  /** Bytes of the machine. */
  readonly memory: number
}

interface Column {
  readonly title: string
  readonly of: (process: ProcessInfo, where: Where) => string | number
}

const KIB = 1024
const DAY = 86_400_000
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']

const two = (value: number): string => String(value).padStart(2, '0')

/** `[DD-]HH:MM:SS`, of milliseconds. */
function clock(time: number): string {
  const seconds = Math.max(0, Math.floor(time / 1000))
  const days = Math.floor(seconds / 86_400)
  const rest = [Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, seconds % 60]
    .map(two)
    .join(':')
  return days > 0 ? `${two(days)}-${rest}` : rest
}

/** `MM:SS`, with hours and days where there are some. */
const elapsed = (time: number): string => clock(time).replace(/^00:/, '')

/** `M:SS`, of milliseconds. */
const minutes = (time: number): string => `${Math.floor(time / 60_000)}:${two(Math.floor(time / 1000) % 60)}`

/** The time of today, the day of this year, or the year. */
function began({ started }: ProcessInfo, { now }: Where, day: string): string {
  const date = new Date(started)
  if (now - started < DAY && date.getDate() === new Date(now).getDate())
    return `${two(date.getHours())}:${two(date.getMinutes())}`
  if (date.getFullYear() === new Date(now).getFullYear())
    return `${MONTHS[date.getMonth()]}${day}${two(date.getDate())}`
  return String(date.getFullYear())
}

/** Percent of a processor since its start. */
const share = ({ time, started }: ProcessInfo, { now }: Where): number =>
  time / 1e4 / Math.max(1, now - started)

/** The names of a container's users stand in its own files; only the first is the same everywhere. */
const user = ({ uid }: ProcessInfo): string => (uid === 0 ? 'root' : String(uid))

const command = ({ args, name, state }: ProcessInfo): string =>
  args.length > 0 ? args.join(' ') : `[${name}]${state === 'Z' ? ' <defunct>' : ''}`

/** Device numbers of stat(2): `?` for none. */
function terminal({ tty }: ProcessInfo): string {
  if (tty === 0) return '?'
  const { major, minor } = deviceNumber(tty >>> 0)
  return major >= 136 && major <= 143 ? `pts/${minor + (major - 136) * 256}` : `tty${minor}`
}

/** The state with ps's signs: of its priority, a session's leader, threads, the foreground. */
const state = ({ state: letter, nice, session, pid, threads, foreground, group }: ProcessInfo): string =>
  [
    letter,
    nice < 0 ? '<' : nice > 0 ? 'N' : '',
    session === pid ? 's' : '',
    threads > 1 ? 'l' : '',
    foreground === group && foreground > 0 ? '+' : '',
  ].join('')

const COLUMNS: readonly (readonly [names: string, title: string, of: Column['of']])[] = [
  ['pid tgid', 'PID', ({ pid }) => pid],
  ['ppid', 'PPID', ({ parent }) => parent],
  ['pgid pgrp', 'PGID', ({ group }) => group],
  ['sid sess session', 'SID', ({ session }) => session],
  ['uid euid', 'UID', ({ uid }) => uid],
  ['user euser uname', 'USER', user],
  ['comm ucmd ucomm', 'COMMAND', ({ name }) => name],
  ['args command', 'COMMAND', command],
  ['cmd', 'CMD', command],
  ['stat', 'STAT', state],
  ['s state', 'S', ({ state: letter }) => letter],
  ['tty tt tname', 'TT', terminal],
  ['time cputime', 'TIME', ({ time }) => clock(time / 1e6)],
  ['etime', 'ELAPSED', ({ started }, { now }) => elapsed(now - started)],
  ['etimes', 'ELAPSED', ({ started }, { now }) => Math.max(0, Math.floor((now - started) / 1000))],
  ['stime', 'STIME', (process, where) => began(process, where, '')],
  ['start_time', 'START', (process, where) => began(process, where, '')],
  ['c', 'C', (process, where) => Math.min(99, Math.floor(share(process, where)))],
  ['pcpu %cpu', '%CPU', (process, where) => share(process, where).toFixed(1)],
  ['pmem %mem', '%MEM', ({ resident }, { memory }) => ((100 * resident) / Math.max(1, memory)).toFixed(1)],
  ['rss rssize rsz', 'RSS', ({ resident }) => Math.floor(resident / KIB)],
  ['vsz vsize', 'VSZ', ({ virtual }) => Math.floor(virtual / KIB)],
  ['ni nice', 'NI', ({ nice }) => nice],
  ['pri', 'PRI', ({ priority }) => 39 - priority],
  ['nlwp thcount', 'NLWP', ({ threads }) => threads],
]

/** @throws CoracleError INVALID_ARGUMENT */
function column(name: string, title?: string): Column {
  const found = COLUMNS.find(([names]) => names.split(' ').includes(name))
  if (!found) throw unknown(`the column '${name.slice(0, 32)}'`)
  return { title: title ?? found[1], of: found[2] }
}

const columns = (...names: string[]): Column[] =>
  names.map((each) => {
    const [name = '', title] = each.split('=')
    return column(name, title)
  })

/** ps's own sets: without an option, -f, u, and those of BSD without u. */
const PLAIN = columns('pid', 'tty=TTY', 'time', 'comm=CMD')
const FULL = columns('user=UID', 'pid', 'ppid', 'c', 'stime', 'tty=TTY', 'time', 'cmd')
const USER: Column[] = [
  ...columns('user', 'pid', '%cpu', '%mem', 'vsz', 'rss', 'tty=TTY', 'stat', 'start_time'),
  { title: 'TIME', of: ({ time }) => minutes(time / 1e6) },
  ...columns('command'),
]
const BSD: Column[] = [
  ...columns('pid', 'tty=TTY', 'stat'),
  { title: 'TIME', of: ({ time }) => minutes(time / 1e6) },
  ...columns('command'),
]

const unknown = (what: string): CoracleError =>
  new CoracleError(
    'INVALID_ARGUMENT',
    `ps_args: ${what} is not known here: use -ef, aux, or -eo with a list of ${COLUMNS.map(([names]) => names.split(' ')[0]).join(', ')}`,
  )

/**
 * The columns that arguments of ps ask for. Which processes they ask for makes no difference, as with Docker: it is all of
 * the container's.
 * @throws CoracleError INVALID_ARGUMENT
 */
function columnsOf(text: string): Column[] {
  const words = text.split(/\s+/).filter(Boolean)
  let chosen: Column[] | undefined
  let own: Column[] | undefined
  for (let word; (word = words.shift()) !== undefined;) {
    const isBsd = !word.startsWith('-')
    const letters = word.replace(/^-/, '')
    if (letters === '' || letters.startsWith('-')) throw unknown(`'${word.slice(0, 32)}'`)
    for (let i = 0; i < letters.length; i++) {
      const letter = letters[i]!
      if (letter === 'o') {
        const list = letters.slice(i + 1) || words.shift() || ''
        own = [...(own ?? []), ...namedColumns(list)]
        break
      }
      if (letter === 'f' && !isBsd) chosen = FULL
      else if (letter === 'u' && isBsd) chosen = USER
      else if (isBsd && 'axw'.includes(letter)) chosen ??= BSD
      else if (!'eAaxww'.includes(letter)) throw unknown(`the option '${letter}'`)
    }
  }
  return own ?? chosen ?? PLAIN
}

/** `pid,ppid,comm`; after an equals sign the rest is the title of that column. */
function namedColumns(list: string): Column[] {
  const at = list.indexOf('=')
  const names = (at < 0 ? list : list.slice(0, at)).split(',').filter(Boolean)
  if (names.length === 0) throw unknown('an empty list of columns')
  return names.map((name, i) =>
    column(name, at >= 0 && i === names.length - 1 ? list.slice(at + 1) : undefined),
  )
}

/**
 * ContainerTopResponse.
 * @param ps arguments of ps(1), such as `-ef` or `aux`
 * @throws CoracleError INVALID_ARGUMENT for arguments that are not known here
 */
export function processTable(
  { processes, memory }: ProcessList,
  ps: string,
): { Titles: string[]; Processes: string[][] } {
  const shown = columnsOf(ps)
  const where = { now: Date.now(), memory }
  return {
    Titles: shown.map(({ title }) => title),
    Processes: processes.map((process) => shown.map(({ of }) => String(of(process, where)))),
  }
}
