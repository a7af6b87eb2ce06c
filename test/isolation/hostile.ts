// eslint-disable-next-line no-restricted-imports -- what it tries, no wrapper of ours would do
import koffi from 'koffi'
import { readFileSync, readdirSync, writeSync } from 'node:fs'
import { constants } from 'node:os'
import { Fd, addressOf, forbidSystemCalls } from '@coracle/sys'

/*
 * A VMM that its guest has taken over, as the program of a box: it begins as ours does, takes a hand-over, and then
 * tries what such a program would try, by system calls of its own. It answers with the outcome of each, and whoever
 * started it judges.
 */

interface Modules {
  forbidden: typeof import('../../src/isolation/box/forbidden.js')
  handover: typeof import('../../src/isolation/handover.js')
}

/** By their paths in the box, where this file's own is another. */
const load = async <N extends keyof Modules>(path: string): Promise<Modules[N]> =>
  (await import(`/app/dist/isolation/${path}`)) as Modules[N]

const { FORBIDDEN } = await load<'forbidden'>('box/forbidden.js')
const { receiveHandover } = await load<'handover'>('handover.js')
forbidSystemCalls(FORBIDDEN)
const handover = receiveHandover(new Fd(3))
if (handover === undefined) process.exit(0)

const libc = koffi.load('libc.so.6')
const call = libc.func(
  'int64_t syscall(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)',
)
// Of two names for one number, the first.
const names = new Map(
  Object.entries(constants.errno)
    .map(([name, number]) => [number, name] as const)
    .reverse(),
)
const kept: Uint8Array[] = []
/** The address of a string, or of so many zero bytes. */
const at = (value: string | number): bigint => {
  const bytes = typeof value === 'string' ? Buffer.from(`${value}\0`) : new Uint8Array(value)
  kept.push(bytes)
  return addressOf(bytes)
}

type Word = number | bigint
/** @returns errno's name, or `done` */
function attempt(number: number, ...words: Word[]): string {
  const six = [...words, 0, 0, 0, 0, 0, 0].slice(0, 6)
  const result = Number(call(number, ...six) as number | bigint)
  if (result !== -1) return 'done'
  const errno = koffi.errno()
  return names.get(errno) ?? String(errno)
}

const O_RDWR = 2
const O_CREAT = 0o100
const AT_FDCWD = -100
const open = (path: string, flags = 0): string => attempt(257, AT_FDCWD, at(path), flags, 0o600)
const folder = handover.path('folder')
const EPERM = 'EPERM'
const ABSENT = 'ENOENT'
const SIGCHLD = 17
const INITIAL = 1

/** What is tried, what must come of it, and how. Numbers are those of asm/unistd_64.h. */
const attempts: [what: string, expected: string | RegExp, () => string][] = [
  // Files of the host, and of other containers.
  ...[
    '/etc/passwd',
    '/root',
    '/work',
    '/home',
    '/var/lib/coracle',
    '/run',
    '/sys',
    '/usr/bin/sh',
    '/bin/sh',
  ].map((path): [string, string, () => string] => [`open ${path}`, ABSENT, () => open(path)]),
  ['open the host by the root of the first process', ABSENT, () => open('/proc/1/root/etc/passwd')],
  ['open the host by the working folder', ABSENT, () => open('/proc/1/cwd/../../../etc/passwd')],
  [
    'open a neighbour from the folder that was handed over',
    ABSENT,
    () => open(`${folder}/../neighbour/secret`),
  ],
  [
    'open one by its descriptor',
    ABSENT,
    () => attempt(257, handover.get('folder').number, at('../neighbour/secret')),
  ],
  ['open a file of root in it', 'EACCES', () => open(`${folder}/root-only`)],
  [
    'write a file that was handed over for reading',
    'EBADF',
    () => attempt(1, handover.get('readable').number, at('x'), 1),
  ],
  ['open that anew for writing', 'EACCES', () => open(handover.path('readable'), O_RDWR)],
  ['shorten it', 'EINVAL', () => attempt(77, handover.get('readable').number, 0)],
  ['give its owner away', EPERM, () => attempt(93, handover.get('readable').number, 0, 0)],
  ['change its mode', EPERM, () => attempt(91, handover.get('readable').number, 0o777)],
  ['make a file in the folder that is its own', 'done', () => open(`${folder}/made`, O_RDWR | O_CREAT)],
  // Writing anywhere.
  ...['/x', '/app/x', '/app/dist/x', '/lib/x', '/bin/x'].map((path): [string, string, () => string] => [
    `make ${path}`,
    'EROFS',
    () => open(path, O_RDWR | O_CREAT),
  ]),
  ['write our own program', 'EACCES', () => open('/app/dist/isolation/box/main.js', O_RDWR)],
  ['write a file of Node', 'EACCES', () => open('/bin/node', O_RDWR)],
  ['remove a file', 'EROFS', () => attempt(87, at('/app/package.json'))],
  ...['/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/kernel/modprobe'].map(
    (path): [string, RegExp, () => string] => [
      `write ${path}`,
      /^(EACCES|EPERM|EROFS|ENOENT)$/,
      () => open(path, O_RDWR),
    ],
  ),
  // Devices.
  ...[
    '/dev/kvm',
    '/dev/mem',
    '/dev/vda',
    '/dev/sda',
    '/dev/net/tun',
    '/dev/fuse',
    '/dev/vfio/vfio',
    '/dev/loop-control',
  ].map((path): [string, string, () => string] => [`open ${path}`, ABSENT, () => open(path, O_RDWR)]),
  ['make a device node', EPERM, () => attempt(133, at('/tmp/mem'), 0o20600, 0x101)],
  ['make one by folder', EPERM, () => attempt(259, AT_FDCWD, at('/tmp/kvm'), 0o20600, 0xae8)],
  ['type into a terminal', EPERM, () => attempt(16, 0, 0x5412, at('x'))],
  // Processes.
  ['trace itself', EPERM, () => attempt(101, 0, 0, 0, 0)],
  ['trace the first process', EPERM, () => attempt(101, 16, INITIAL, 0, 0)],
  ['kill the first process', EPERM, () => attempt(62, INITIAL, 9)],
  ['kill everybody', EPERM, () => attempt(62, -1, 9)],
  ['open a process', EPERM, () => attempt(434, INITIAL, 0)],
  ['read the memory of a process', EPERM, () => attempt(310, INITIAL, 0, 0, 0, 0, 0)],
  ['write the memory of a process', EPERM, () => attempt(311, INITIAL, 0, 0, 0, 0, 0)],
  ['compare processes', EPERM, () => attempt(312, 1, 2, 0, 0, 0)],
  ['fork', EPERM, () => attempt(57)],
  ['vfork', EPERM, () => attempt(58)],
  ['clone a process', EPERM, () => attempt(56, SIGCHLD)],
  ['clone into a user namespace', EPERM, () => attempt(56, 0x10000000 | SIGCHLD)],
  ['clone3', 'ENOSYS', () => attempt(435, at(88), 88)],
  ['exec', EPERM, () => attempt(59, at('/bin/node'), 0, 0)],
  ['exec by folder', EPERM, () => attempt(322, AT_FDCWD, at('/bin/node'), 0, 0, 0)],
  ['replace the filter', EPERM, () => attempt(317, 1, 0, at(16))],
  ['replace it by prctl', EPERM, () => attempt(157, 22, 2, at(16))],
  ['take the fence off', EPERM, () => attempt(157, 4, 1)],
  // Mounts and namespaces.
  ['mount', EPERM, () => attempt(165, at('none'), at('/tmp'), at('tmpfs'), 0, 0)],
  ['mount again, writable', EPERM, () => attempt(165, at('none'), at('/app'), 0, 32 | 4096, 0)],
  ['unmount', EPERM, () => attempt(166, at('/proc'), 2)],
  ['pivot_root', EPERM, () => attempt(155, at('/tmp'), at('/tmp'))],
  ['chroot', EPERM, () => attempt(161, at('/tmp'))],
  ['open_tree', EPERM, () => attempt(428, AT_FDCWD, at('/'), 1)],
  ['move_mount', EPERM, () => attempt(429, 0, at(''), 0, at(''), 0)],
  ['fsopen', EPERM, () => attempt(430, at('tmpfs'), 0)],
  ['mount_setattr', EPERM, () => attempt(442, AT_FDCWD, at('/'), 0, 0, 0)],
  ...[0x20000, 0x40000000, 0x10000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000].map(
    (flag): [string, string, () => string] => [
      `unshare ${flag.toString(16)}`,
      EPERM,
      () => attempt(272, flag),
    ],
  ),
  ['setns', EPERM, () => attempt(308, 0, 0)],
  ['open by handle', EPERM, () => attempt(304, AT_FDCWD, at(128), 0)],
  ['name to handle', EPERM, () => attempt(303, AT_FDCWD, at('/'), at(128), at(8), 0)],
  // Sockets: Unix, inet, inet6, netlink, packet, ALG, vsock, XDP.
  ...[1, 2, 10, 16, 17, 38, 40, 44].map((family): [string, string, () => string] => [
    `socket of family ${family}`,
    EPERM,
    () => attempt(41, family, family === 16 || family === 17 ? 3 : 1, 0),
  ]),
  ['a pair of another family', EPERM, () => attempt(53, 2, 1, 0, at(8))],
  ['connect', EPERM, () => attempt(42, 0, at(16), 16)],
  ['bind', EPERM, () => attempt(49, 0, at(16), 16)],
  // The kernel's larger doors.
  ['init_module', EPERM, () => attempt(175, 0, 0, 0)],
  ['finit_module', EPERM, () => attempt(313, 0, 0, 0)],
  ['delete_module', EPERM, () => attempt(176, at('kvm'), 0)],
  ['kexec_load', EPERM, () => attempt(246, 0, 0, 0, 0)],
  ['bpf', EPERM, () => attempt(321, 0, 0, 0)],
  ['io_uring_setup', EPERM, () => attempt(425, 8, at(120))],
  ['io_uring_enter', EPERM, () => attempt(426, 0, 0, 0, 0, 0, 0)],
  ['io_uring_register', EPERM, () => attempt(427, 0, 0, 0, 0)],
  ['keyctl', EPERM, () => attempt(250, 0, -3, 0)],
  ['add_key', EPERM, () => attempt(248, at('user'), at('x'), at('y'), 1, -3)],
  ['request_key', EPERM, () => attempt(249, at('user'), at('x'), 0, -3)],
  ['perf_event_open', EPERM, () => attempt(298, at(128), 0, -1, -1, 0)],
  ['userfaultfd', EPERM, () => attempt(323, 0)],
  ['fanotify_init', EPERM, () => attempt(300, 0, 0)],
  ['inotify_init1', EPERM, () => attempt(294, 0)],
  ['syslog', EPERM, () => attempt(103, 3, at(64), 64)],
  ['reboot', EPERM, () => attempt(169, 0xfee1dead, 672274793, 0x1234567, 0)],
  ['swapon', EPERM, () => attempt(167, at('/tmp/x'), 0)],
  ['iopl', EPERM, () => attempt(172, 3)],
  ['ioperm', EPERM, () => attempt(173, 0x70, 1, 1)],
  ['sethostname', EPERM, () => attempt(170, at('x'), 1)],
  ['set the clock', EPERM, () => attempt(227, 0, at(16))],
  ['personality', EPERM, () => attempt(135, 0x0040000)],
  ['memory of System V', EPERM, () => attempt(29, 0, 4096, 0o1600)],
  ['message queue', EPERM, () => attempt(240, at('q'), 0o102, 0o600, 0)],
  ['secret memory', EPERM, () => attempt(447, 0)],
  // Identity and limits.
  ['setuid', EPERM, () => attempt(105, 1)],
  ['setgroups', EPERM, () => attempt(116, 0, 0)],
  ['capset', EPERM, () => attempt(126, at(8), at(24))],
  ['raise a limit', EPERM, () => attempt(302, 0, 7, at(16), 0)],
  ['setrlimit', EPERM, () => attempt(160, 7, at(16))],
  ['setpriority', EPERM, () => attempt(141, 0, 0, -20)],
  ['sched_setscheduler', EPERM, () => attempt(144, 0, 1, at(4))],
  [
    'write its map of users',
    /^(EACCES|EPERM|EROFS)$/,
    () => attempt(1, openNumber('/proc/self/uid_map'), at('0 0 1'), 5),
  ],
  // At last, as many threads as it can get: they sleep.
  ['threads without end', 'EAGAIN', threads],
]

function openNumber(path: string): number {
  return Number(call(257, AT_FDCWD, at(path), O_RDWR, 0, 0, 0) as number | bigint)
}

function threads(): string {
  const symbol = libc.func('void *dlsym(void *handle, const char *name)')
  const create = libc.func(
    'int pthread_create(void *thread, void *attributes, void *routine, int64_t argument)',
  )
  const routine = symbol(null, 'sleep') as bigint
  for (let i = 0; i < 1000; i++) {
    const error = create(new BigUint64Array(1), null, routine, 1000) as number
    if (error !== 0) return names.get(error) ?? String(error)
  }
  return 'done'
}

const status = readFileSync('/proc/self/status', 'latin1')
const report = {
  tried: attempts.map(([what, expected, go]) => {
    const got = go()
    const right = typeof expected === 'string' ? got === expected : expected.test(got)
    return { what, got, expected: String(expected), right }
  }),
  processes: readdirSync('/proc').filter((name) => /^\d+$/.test(name)),
  interfaces: readFileSync('/proc/net/dev', 'latin1')
    .split('\n')
    .slice(2)
    .map((line) => line.split(':')[0]!.trim())
    .filter(Boolean),
  devices: readdirSync('/dev').sort(),
  root: readdirSync('/').sort(),
  status: Object.fromEntries(
    ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters'].map(
      (name) => [name, new RegExp(`^${name}:\\s*(\\S+)$`, 'm').exec(status)?.[1]],
    ),
  ),
}
writeSync(3, `${JSON.stringify(report)}\n`)
process.exit(0)
