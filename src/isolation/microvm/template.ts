import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Fd, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import type { Firmware } from '../../firmware/index.js'
import { Kvm } from '../../kvm/index.js'
import { paths } from '../../paths.js'
import { programFile } from '../../programs.js'
import { hostIdentity } from '../../vmm/snapshot/host.js'
import { Snapshot, type SnapshotFiles, snapshotFiles } from '../../vmm/snapshot/snapshot.js'

/** The code that a template depends on, beside its own checks: another build makes templates of its own. */
const CODE = ['../../vmm/', '../../kvm/', './'].map((path) => fileURLToPath(new URL(path, import.meta.url)))
/** What the folder holds at most; whatever was not used for the longest time goes first. */
const MAX_TEMPLATES = 8
const MAX_BYTES = 4 * 2 ** 30
const LOCK_POLL = 20
/** From here on a wait is told, in ms. */
const NOTABLE = 1000

/** A guest's size. */
export interface GuestSize {
  /** Bytes. */
  readonly memory: number
  readonly cpus: number
}

/** What the maker is told, as JSON. */
export interface MakerOrder extends GuestSize {
  readonly kernel: string
  readonly initramfs: string
  readonly tools: string
  /** The folder to make; it appears whole or not at all. */
  readonly folder: string
}

/**
 * The template for a guest: a machine of this size that was booted until its agent had said hello and mounted the
 * tools, and was saved then. It is made on first use, by a process that runs nothing of anybody's; whoever else needs
 * it waits. It lasts until the host reboots, the build changes, or others need the room.
 *
 * @returns undefined where there can be none: then a guest is booted
 */
export async function findTemplate(parts: Firmware, size: GuestSize): Promise<SnapshotFiles | undefined> {
  const store = join(paths.cache, 'templates')
  try {
    const folder = join(store, templateKey(parts, size))
    return use(folder) ?? (await make(store, folder, parts, size))
  } catch (error) {
    console.error(`a template could not be used, so the guest boots: ${(error as Error).message}`)
    return undefined
  }
}

/** One that cannot be used is thrown away. */
function use(folder: string): SnapshotFiles | undefined {
  if (!existsSync(folder)) return undefined
  const files = snapshotFiles(folder)
  try {
    Snapshot.open(files).close()
    const now = new Date()
    utimesSync(folder, now, now)
    return files
  } catch (error) {
    if (!(error instanceof CoracleError)) throw error
    rmSync(folder, { recursive: true, force: true })
    return undefined
  }
}

async function make(
  store: string,
  folder: string,
  { kernel, initramfs, tools }: Firmware,
  size: GuestSize,
): Promise<SnapshotFiles | undefined> {
  mkdirSync(store, { recursive: true, mode: 0o700 })
  const told = setTimeout(() => {
    console.error('booting a guest once, to start others from it…')
  }, NOTABLE)
  try {
    using lock = Fd.open(join(store, '.lock'), O_RDWR | O_CREAT)
    let waited = false
    for (; !lock.lock(LOCK_EX | LOCK_NB); waited = true) await sleep(LOCK_POLL)
    const found = use(folder)
    // Who made it meanwhile has failed, and so would we: that is no reason to fail one after another.
    if (found || waited) return found
    clean(store)
    let failure: unknown
    try {
      await runMaker({ ...size, kernel: kernel.vmlinux, initramfs, tools: tools.path, folder }, lock)
    } catch (error) {
      failure = error
    }
    // Whatever became of the maker: a template that is there is whole.
    const made = use(folder)
    if (!made && failure !== undefined) throw failure
    return made
  } finally {
    clearTimeout(told)
  }
}

/** The maker inherits the lock, so nobody begins the same before it has ended; it ends when we do, by its stdin. */
async function runMaker(order: MakerOrder, lock: Fd): Promise<void> {
  const child = spawn(
    process.execPath,
    ['--no-warnings', programFile('template-maker'), JSON.stringify(order)],
    {
      cwd: '/',
      stdio: ['pipe', 'ignore', 'pipe', lock.number],
    },
  )
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-4096)))
  const [status] = (await once(child, 'close')) as [number | null]
  if (status !== 0)
    throw new CoracleError('GUEST_FAILED', said.trim().split('\n').at(-1) || `its maker ended with ${status}`)
}

/** Under the lock: what a killed maker left, and what is too much. Clones keep what they have mapped. */
function clean(store: string): void {
  const kept: { path: string; used: number; bytes: number }[] = []
  for (const name of readdirSync(store)) {
    if (name.startsWith('.')) continue
    const path = join(store, name)
    try {
      if (name.endsWith('.new')) rmSync(path, { recursive: true, force: true })
      else
        kept.push({ path, used: statSync(path).mtimeMs, bytes: statSync(join(path, 'memory')).blocks * 512 })
    } catch {
      rmSync(path, { recursive: true, force: true })
    }
  }
  kept.sort((a, b) => b.used - a.used)
  let bytes = 0
  kept.forEach((each, i) => {
    bytes += each.bytes
    // One more comes right after this.
    if (i + 1 >= MAX_TEMPLATES || bytes > MAX_BYTES) rmSync(each.path, { recursive: true, force: true })
  })
}

/** Of all that a template depends on. A boot of the host among them, so it need not reach the disk to be good. */
function templateKey({ kernel, initramfs, tools }: Firmware, { memory, cpus }: GuestSize): string {
  using kvm = Kvm.open()
  const code = CODE.flatMap((folder) =>
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith('.js'))
      .map((entry) => {
        const { size, mtimeMs } = statSync(join(entry.parentPath, entry.name))
        return [entry.name, size, mtimeMs]
      }),
  )
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  const all = [kernel.vmlinux, initramfs, tools.path, memory, cpus, hostIdentity(kvm), boot, code]
  return createHash('sha256').update(JSON.stringify(all)).digest('hex').slice(0, 32)
}
