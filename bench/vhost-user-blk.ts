import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { EventFd, memfd } from '@coracle/sys'
import { VhostUserFrontend } from 'vhost-user-ts'
import { sysroot } from '../src/debian/index.js'
import { type Bench, type BenchResult, Skip, median } from './bench.js'

const MIB = 2 ** 20
const SERVE = fileURLToPath(new URL('../src/vmm/serve.js', import.meta.url))
const SOURCE = fileURLToPath(new URL('../../bench/vhost-user-blk.c', import.meta.url))
/** Of the file, which the page cache holds: what is compared is the way to it. */
const CAPACITY = 256 * MIB
/** The client's memory and its layout, as the C source says. */
const MEMORY = 34 * MIB
const QUEUE = 128
const AVAIL = 0x1000
const USED = 0x2000
/** Where the frontend claims to have mapped it: any address will do, since only the backend translates it. */
const USER_ADDRESS = 0x10_0000_0000
const FEATURES = (1n << 32n) | (1n << 29n)
const ROUNDS = 7

interface Load {
  readonly order: 'random' | 'sequential'
  readonly depth: number
  readonly bytes: number
  readonly count: number
}

/** Runs `load` once against who listens at `path`. @returns nanoseconds */
function drive(client: string, path: string, { order, depth, bytes, count }: Load): number {
  using memory = memfd('bench', MEMORY)
  using kick = EventFd.create()
  using call = EventFd.create()
  using frontend = VhostUserFrontend.connect(path)
  frontend.setFeatures(FEATURES & frontend.features)
  frontend.setMemory([{ guestAddress: 0, size: MEMORY, userAddress: USER_ADDRESS, offset: 0, fd: memory }])
  frontend.startVring(0, {
    size: QUEUE,
    base: 0,
    descriptorTable: USER_ADDRESS,
    availableRing: USER_ADDRESS + AVAIL,
    usedRing: USER_ADDRESS + USED,
    kick,
    call,
  })
  const words = [order, depth, bytes, count, CAPACITY].map(String)
  const stdio = ['ignore', 'pipe', 'pipe', memory.number, kick.number, call.number] as const
  const { status, stdout, stderr } = spawnSync(client, words, { stdio: [...stdio], encoding: 'utf8' })
  if (status !== 0) throw new Error(`the client ended with ${status}: ${stderr}`)
  frontend.stopVring(0)
  return Number(stdout)
}

async function listening(child: ChildProcess, path: string): Promise<void> {
  while (!existsSync(path)) {
    if (child.exitCode !== null) throw new Error(`${child.spawnfile} ended with ${child.exitCode}`)
    await sleep(10)
  }
}

async function measure(load: Load): Promise<BenchResult> {
  const daemon = (await sysroot('qemu')).command('qemu-storage-daemon')
  const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
  const children: ChildProcess[] = []
  try {
    const client = join(folder, 'client')
    try {
      execFileSync('cc', ['-O2', '-o', client, SOURCE])
    } catch (error) {
      throw new Skip(`no C compiler: ${(error as Error).message}`)
    }
    const file = join(folder, 'disk')
    const fd = openSync(file, 'w')
    for (let at = 0; at < CAPACITY; at += MIB) writeSync(fd, randomFillSync(Buffer.alloc(MIB)))
    closeSync(fd)
    const start = async (name: string, argv: readonly string[], env = {}): Promise<string> => {
      const path = join(folder, name)
      const child = spawn(
        argv[0]!,
        argv.slice(1).map((word) => word.replace('SOCKET', path)),
        {
          stdio: ['ignore', 'ignore', 'inherit'],
          env: { ...process.env, ...env },
        },
      )
      children.push(child)
      await listening(child, path)
      return path
    }
    const ours = await start('ours', [
      ...[process.execPath, SERVE, 'blk', '--socket', 'SOCKET', '--file', file, '--read-only'],
    ])
    const peer = await start(
      'peer',
      [
        ...daemon.argv,
        ...['--blockdev', `driver=file,node-name=disk,read-only=on,filename=${file}`],
        ...['--export', 'type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path=SOCKET'],
      ],
      daemon.env,
    )
    drive(client, ours, load)
    drive(client, peer, load)
    const ratios = Array.from({ length: ROUNDS }, () => drive(client, peer, load) / drive(client, ours, load))
    return { ratio: median(ratios), note: `median of ${ROUNDS} rounds of ${load.count} reads` }
  } finally {
    for (const child of children) if (child.kill('SIGTERM')) await once(child, 'exit')
    rmSync(folder, { recursive: true })
  }
}

export const vhostUserRandom: Bench = {
  name: 'vhost-user-blk-random',
  what: "reads of 4 KiB a second, 32 at once, our vhost-user-blk's / qemu-storage-daemon's",
  aim: { atLeast: 0.5 },
  run: () => measure({ order: 'random', depth: 32, bytes: 4096, count: 50_000 }),
}

export const vhostUserSequential: Bench = {
  name: 'vhost-user-blk-sequential',
  what: "bytes a second in reads of 1 MiB, one at a time, our vhost-user-blk's / qemu-storage-daemon's",
  aim: { atLeast: 0.9 },
  run: () => measure({ order: 'sequential', depth: 1, bytes: MIB, count: 1000 }),
}
