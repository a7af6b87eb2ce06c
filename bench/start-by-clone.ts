import { randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { busyboxImage } from '../src/image/busybox.js'
import { ImageStore } from '../src/image/store.js'
import { BoxPool, type Sandbox, type SandboxSpec, launchSandbox } from '../src/isolation/index.js'
import { chooseHypervisor, readHost } from '../src/engine/host.js'
import { type Bench, Skip, median } from './bench.js'

const ROUNDS = 3
const MEMORY = 256 << 20

/** Microvms of one image, one after another or side by side, and where they are kept. */
class Guests implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
  readonly #runs = mkdtempSync('/run/coracle-bench-')
  readonly #layers: SandboxSpec['layers']
  readonly #live: Sandbox[] = []

  readonly #images: string
  /** Where pools may have their files. */
  readonly pool = join(this.#runs, 'pool')

  private constructor(images: string, layers: SandboxSpec['layers']) {
    this.#images = images
    this.#layers = layers
  }

  static async open(): Promise<Guests> {
    if (process.getuid?.() !== 0) throw new Skip('needs root')
    const { hypervisor, reason } = chooseHypervisor('auto', readHost())
    if (hypervisor !== 'kvm') throw new Skip(`${reason}: npm run lab -- npm run bench start-by-clone`)
    const images = mkdtempSync(join(tmpdir(), 'coracle-bench-images-'))
    const { layers } = await busyboxImage(await ImageStore.open(images))
    return new Guests(images, layers)
  }

  /**
   * Starts one, from `pool` where there is one.
   * @returns it, and how long its first byte of output took, in ms
   */
  async start(cold: boolean, pool?: BoxPool): Promise<{ sandbox: Sandbox; time: number }> {
    const id = randomBytes(32).toString('hex')
    const from = performance.now()
    const spec: SandboxSpec = {
      id,
      isolation: 'microvm',
      hypervisor: 'kvm',
      cold,
      layers: this.#layers,
      bundle: {
        ociVersion: '1.0.2',
        process: {
          user: { uid: 0, gid: 0 },
          args: ['sh', '-c', 'echo here; read line'],
          env: ['PATH=/bin'],
          cwd: '/',
        },
        mounts: [{ destination: '/proc', type: 'proc', source: 'proc' }],
      },
      tty: false,
      openStdin: true,
      stdinOnce: true,
      memory: MEMORY,
      cpus: 1,
      hostname: 'bench',
      diskSize: 64 << 20,
      stateDirectory: join(this.#folder, id),
      runDirectory: join(this.#runs, id.slice(0, 8)),
    }
    const sandbox = await launchSandbox(spec, pool ? { boxes: pool.take } : {})
    this.#live.push(sandbox)
    const stream = await sandbox.attach({ stdin: true, stdout: true, stderr: true })
    const first = new Promise<void>((resolve, reject) => {
      stream.once('data', () => resolve())
      stream.once('close', () => reject(new Error('the guest ended without output')))
    })
    await sandbox.start()
    await first
    return { sandbox, time: performance.now() - from }
  }

  async end(sandbox: Sandbox): Promise<void> {
    await sandbox.destroy()
    await sandbox.wait()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const sandbox of this.#live) await this.end(sandbox).catch(() => undefined)
    for (const folder of [this.#folder, this.#runs, this.#images])
      rmSync(folder, { recursive: true, force: true })
  }
}

/** Sums of /proc/PID/smaps_rollup in KiB, by name. */
function memoryOf(pid: number): (name: string) => number {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1')
  return (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? 0)
}

/** @param pooled clones have a process that waits, as the daemon's have; else one of their own, as the command's */
const startBench = (name: string, what: string, pooled: boolean): Bench => ({
  name,
  what: `from launching a microVM to its container's first byte, ${what} / a cold boot`,
  aim: { atMost: 0.25 },
  async run() {
    await using guests = await Guests.open()
    // Of one, which nothing fills again while we measure.
    await using pool = new BoxPool({ size: pooled ? 1 : 0, folder: guests.pool, pause: 600_000 })
    const once = async (cold: boolean): Promise<number> => {
      await pool.filled()
      const { sandbox, time } = await guests.start(cold, cold ? undefined : pool)
      await guests.end(sandbox)
      return time
    }
    // The first makes the template, of which the pool then has a guest; and both warm the page cache.
    await once(false)
    await once(true)
    const ratios: number[] = []
    for (let i = 0; i < ROUNDS; i++) ratios.push((await once(false)) / (await once(true)))
    return { ratio: median(ratios), note: `median of ${ROUNDS} rounds` }
  },
})

export const startByClone = startBench('start-by-clone', 'a clone of the template', false)
export const startFromPool = startBench(
  'start-from-pool',
  "a clone in a waiting process of the daemon's pool",
  true,
)

export const cloneMemory: Bench = {
  name: 'clone-memory',
  what: "private memory of a further clone's process / all memory of the first one's",
  aim: { atMost: 0.35 },
  async run() {
    await using guests = await Guests.open()
    const first = memoryOf((await guests.start(false)).sandbox.pid)('Rss')
    await guests.start(false)
    const further = memoryOf((await guests.start(false)).sandbox.pid)
    return {
      ratio: (further('Private_Clean') + further('Private_Dirty')) / first,
      note: 'the third of three',
    }
  },
}
