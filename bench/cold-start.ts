import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { EPOLLIN, Epoll, type Fd, SysError, accept, listenVsock } from '@coracle/sys'
import { toolCommand } from '../src/debian/index.js'
import { firmware } from '../src/firmware/index.js'
import { NODE_FLAGS } from '../src/isolation/box/config.js'
import { BASE_COMMAND_LINE, type MachineStatistics } from '../src/vmm/machine.js'
import { PROGRAMS } from '../src/programs.js'
import { bundle } from '../src/setup/bundle.js'
import { type Bench, type BenchResult, Skip, median } from './bench.js'

/** Even, since who of the two begins a round changes from one to the next. */
const ROUNDS = 4
const MEMORY_MIB = 256
const CID = 77
/** Where the agent says hello. */
const PORT = 1024
/** Seconds until a guest that says nothing is given up. */
const PATIENCE = 120

/** Our process as a microVM's is: bundled, and its threads beside it. */
const MODULES = {
  'cold-start-guest': 'cold-start-guest.js',
  'device-worker': `../src/${PROGRAMS['device-worker']}`,
  'processor-worker': `../src/${PROGRAMS['processor-worker']}`,
}
const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const GUEST = Object.fromEntries(Object.entries(MODULES).map(([name, path]) => [name, here(path)]))

/** A box has none of ours, in which there may be certificates that each Node would read first. */
const ENVIRONMENT = { OPENSSL_CONF: '/dev/null' }

interface Sources {
  readonly kernel: string
  readonly initramfs: string
}

/** What the process of ours prints when its guest's agent has said hello. */
export type ColdStartResult = MachineStatistics

/** Our VMM as a process of its own, from its start to the hello. Milliseconds. */
async function ours(program: string, sources: Sources): Promise<{ time: number; result: ColdStartResult }> {
  const from = performance.now()
  const words = [program, sources.kernel, sources.initramfs, String(MEMORY_MIB)]
  const child = spawn(process.execPath, [...NODE_FLAGS, ...words], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: ENVIRONMENT,
  })
  const ended = once(child, 'close')
  let text = ''
  let time: number | undefined
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    time ??= performance.now() - from
    text += part
  })
  await ended
  if (time === undefined) throw new Error('our guest said no hello')
  return { time, result: JSON.parse(text) as ColdStartResult }
}

/** QEMU's machine without legacy hardware, from its start to the hello. Milliseconds. */
async function peer({ kernel, initramfs }: Sources): Promise<number> {
  const { argv, env } = await toolCommand('qemu-system-x86_64')
  using listener = listenVsock(PORT)
  const words = [
    ...argv.slice(1),
    ...['-accel', 'kvm', '-cpu', 'host', '-M', 'microvm', '-m', String(MEMORY_MIB), '-smp', '1'],
    ...['-nodefaults', '-no-user-config', '-nographic', '-no-reboot', '-serial', 'stdio'],
    ...['-device', `vhost-vsock-device,guest-cid=${CID}`],
    ...['-kernel', kernel, '-initrd', initramfs, '-append', `${BASE_COMMAND_LINE} reboot=t`],
  ]
  const from = performance.now()
  const child = spawn(argv[0]!, words, {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, ...env },
  })
  try {
    using connection = acceptOne(listener, child)
    waitReadable(connection)
    return performance.now() - from
  } finally {
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'close')
  }
}

/** Blocks, since nothing else is to be done meanwhile. */
function acceptOne(listener: Fd, child: ChildProcess): Fd {
  waitReadable(listener)
  const fd = accept(listener)
  if (!fd) throw new Error(`QEMU (process ${child.pid}) has no guest that says hello`)
  return fd
}

function waitReadable(fd: Fd): void {
  using loop = new Epoll()
  loop.add(fd, EPOLLIN, () => undefined)
  if (loop.wait(PATIENCE * 1000) === 0) throw new Error(`no hello within ${PATIENCE} seconds`)
}

function missing(): string | undefined {
  if (!existsSync('/dev/vhost-vsock'))
    return 'QEMU needs /dev/vhost-vsock to hear the guest: use npm run lab -- npm run bench'
  try {
    listenVsock(PORT).close()
    return undefined
  } catch (error) {
    if (error instanceof SysError) return `no vsock on this host (${error.code})`
    throw error
  }
}

/** One round to warm the page cache, then in turns: what else the host does then falls on both. */
async function measure(program: string, sources: Sources): Promise<BenchResult> {
  let { result } = await ours(program, sources)
  await peer(sources)
  const ratios: number[] = []
  for (let i = 0; i < ROUNDS; i++) {
    const before = i % 2 === 1 ? await peer(sources) : undefined
    const own = await ours(program, sources)
    result = own.result
    ratios.push(own.time / (before ?? (await peer(sources))))
  }
  const exits = (counts: Readonly<Record<string, number>>): string =>
    Object.entries(counts)
      .filter(([, count]) => count > 0)
      .map(([name, count]) => `${name} ${count}`)
      .join(', ')
  const all = Object.values(result.exits).reduce((sum, count) => sum + count, 0)
  return {
    ratio: median(ratios),
    note:
      `rounds of ${ratios.map((ratio) => ratio.toFixed(2)).join(', ')}; ` +
      `${all} exits to user space (${exits(result.exits)}; ${exits(result.accesses)}), ` +
      `${result.consoleBytes} bytes on the console`,
  }
}

export const coldStart: Bench = {
  name: 'cold-start',
  what: "from starting the VMM process to the agent's hello, ours / qemu -accel kvm -M microvm",
  aim: { atMost: 0.9 },
  async run() {
    const why = missing()
    if (why !== undefined) throw new Skip(why)
    const { kernel, initramfs } = await firmware()
    // Below our own folder, where packages are found.
    const folder = mkdtempSync(here('bundled-'))
    try {
      await bundle(GUEST, folder)
      return await measure(join(folder, 'cold-start-guest.js'), { kernel: kernel.vmlinux, initramfs })
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  },
}
