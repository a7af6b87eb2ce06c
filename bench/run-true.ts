import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CLONE_NEWNS, MS_PRIVATE, MS_RDONLY, MS_REC, mount, unmount, unshare } from '@coracle/sys'
import { type Command, toolCommand } from '../src/debian/index.js'
import { busyboxImage } from '../src/image/busybox.js'
import { ImageStore } from '../src/image/store.js'
import { type Bench, type BenchResult, Skip, median } from './bench.js'

const CLI = fileURLToPath(new URL('../src/cli/main.js', import.meta.url))
const ROUNDS = 5

/** What crun needs to run `true` the way the process driver runs it; the root file system is read-only. */
const CONFIG = {
  ociVersion: '1.0.2',
  process: { user: { uid: 0, gid: 0 }, args: ['true'], env: ['PATH=/bin'], cwd: '/' },
  root: { path: 'rootfs', readonly: true },
  mounts: [
    { destination: '/proc', type: 'proc', source: 'proc' },
    { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
  ],
  linux: { namespaces: ['pid', 'mount', 'network', 'ipc', 'uts'].map((type) => ({ type })) },
}

function time(words: readonly string[], env: NodeJS.ProcessEnv, cwd: string): number {
  const from = process.hrtime.bigint()
  const { status, stderr } = spawnSync(words[0]!, words.slice(1), {
    cwd,
    env,
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  if (status !== 0) throw new Error(`${words.join(' ')}: status ${status}: ${String(stderr)}`)
  return Number(process.hrtime.bigint() - from)
}

const UNIFIED = '/sys/fs/cgroup/unified'

/** crun refuses a host with cgroups of both versions: what this thread starts from now on sees version 1 alone. */
function hideUnified(): void {
  if (!existsSync(`${UNIFIED}/cgroup.procs`)) return
  unshare(CLONE_NEWNS)
  mount('none', '/', '', MS_REC | MS_PRIVATE)
  mount('tmpfs', UNIFIED, 'tmpfs')
}

/** @param isolation flags of `coracle run` */
async function measure(isolation: readonly string[]): Promise<BenchResult> {
  if (process.getuid?.() !== 0) throw new Skip('needs root')
  hideUnified()
  const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
  const env = { ...process.env, CORACLE_ROOT: join(folder, 'state'), CORACLE_RUN: join(folder, 'run') }
  const rootfs = join(folder, 'bundle/rootfs')
  let mounted = false
  try {
    const image = await busyboxImage(await ImageStore.open(join(folder, 'state/images')))
    mkdirSync(rootfs, { recursive: true })
    writeFileSync(join(folder, 'bundle/config.json'), JSON.stringify(CONFIG))
    try {
      mount(image.layers[0]!.path, rootfs, 'erofs', MS_RDONLY)
      mounted = true
    } catch (error) {
      throw new Skip(`this kernel does not mount EROFS from a file: ${(error as Error).message}`)
    }
    const crun: Command = await toolCommand('crun')
    const peer = (round: number): number =>
      time(
        [...crun.argv, '--root', join(folder, 'crun'), '--cgroup-manager=cgroupfs', 'run', `bench-${round}`],
        { ...process.env, ...crun.env },
        join(folder, 'bundle'),
      )
    const ours = (): number =>
      time([process.execPath, CLI, 'run', '--rm', ...isolation, 'busybox', 'true'], env, folder)
    ours()
    peer(-1)
    const ratios = Array.from({ length: ROUNDS }, (_, round) => ours() / peer(round))
    return { ratio: median(ratios), note: `median of ${ROUNDS} rounds` }
  } finally {
    if (mounted) unmount(rootfs)
    rmSync(folder, { recursive: true, force: true })
  }
}

const bench = (name: string, isolation: readonly string[], why?: () => string | undefined): Bench => ({
  name: `run-true-${name}`,
  what: `run --rm busybox true, ${name} / crun run of the same image`,
  aim: 'none',
  async run() {
    const missing = why?.()
    if (missing !== undefined) throw new Skip(missing)
    return measure(isolation)
  },
})

function noHardwareKvm(): string | undefined {
  const doctor = spawnSync(process.execPath, [CLI, 'doctor', '--json'], { encoding: 'utf8' })
  const { hypervisor } = JSON.parse(doctor.stdout) as { hypervisor: string }
  return hypervisor === 'kvm' ? undefined : 'no hardware KVM here: npm run lab -- npm run bench run-true-kvm'
}

export const runTrueProcess = bench('process', ['--isolation', 'process'])
export const runTrueQemu = bench('qemu', ['--hypervisor', 'qemu'])
export const runTrueKvm = bench('kvm', ['--hypervisor', 'kvm'], noHardwareKvm)
