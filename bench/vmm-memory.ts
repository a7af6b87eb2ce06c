import { randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chooseHypervisor, readHost } from '../src/engine/host.js'
import { busyboxImage } from '../src/image/busybox.js'
import { ImageStore } from '../src/image/store.js'
import { type SandboxSpec, launchSandbox } from '../src/isolation/index.js'
import { type Bench, Skip } from './bench.js'

const MEMORY = 192 * 2 ** 20
const DISK = 64 * 2 ** 20
const MIB = 2 ** 20
/** The guest's RAM, as /proc/PID/smaps names it: ours and QEMU's memory files. */
const GUEST_RAM = /memfd:(guest-ram|memory-backend-memfd)/
/** What a VMM process may take for itself, in bytes. */
const AIM = 40 * MIB

/** Bytes that a process alone has, its guest's RAM left out. */
export function privateMemory(pid: number): number {
  let sum = 0
  let counts = true
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'latin1').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) counts = !GUEST_RAM.test(line)
    const size = /^(?:Private_Clean|Private_Dirty):\s+(\d+) kB$/.exec(line)?.[1]
    if (counts && size !== undefined) sum += Number(size) * 1024
  }
  return sum
}

/** QEMU is a child of its monitor. */
function qemuBelow(monitor: number): number {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)))
    try {
      const parent = Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1])
      const isQemu = readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('qemu-system')
      if (parent === monitor && isQemu) return Number(pid)
    } catch {
      // It went while we looked.
    }
  throw new Error('QEMU is not there')
}

export const vmmMemory: Bench = {
  name: 'vmm-memory',
  what: "private memory beyond the guest's RAM: our monitor and machine in one process / QEMU's process alone",
  aim: 'none',
  async run() {
    if (process.getuid?.() !== 0) throw new Skip('needs root')
    const { hypervisor, reason } = chooseHypervisor('auto', readHost())
    if (hypervisor !== 'kvm') throw new Skip(`${reason}: use npm run lab -- npm run bench vmm-memory`)
    const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
    try {
      const { layers } = await busyboxImage(await ImageStore.open(join(folder, 'images')))
      const measure = async (name: 'kvm' | 'qemu'): Promise<number> => {
        const id = randomBytes(32).toString('hex')
        const spec: SandboxSpec = {
          id,
          isolation: 'microvm',
          hypervisor: name,
          layers,
          bundle: {
            ociVersion: '1.0.2',
            process: { user: { uid: 0, gid: 0 }, args: ['sleep', '1000'], env: ['PATH=/bin'], cwd: '/' },
          },
          tty: false,
          openStdin: false,
          stdinOnce: false,
          memory: MEMORY,
          cpus: 1,
          hostname: 'bench',
          diskSize: DISK,
          // A clone's memory is a private mapping, which would be taken for the process's own.
          cold: true,
          stateDirectory: join(folder, id),
          runDirectory: join(folder, id.slice(0, 12)),
        }
        const sandbox = await launchSandbox(spec)
        try {
          await sandbox.start()
          return privateMemory(name === 'kvm' ? sandbox.pid : qemuBelow(sandbox.pid))
        } finally {
          await sandbox.destroy()
        }
      }
      const [ours, theirs] = [await measure('kvm'), await measure('qemu')]
      const says = ours <= AIM ? 'met' : 'falls short'
      return {
        ratio: ours / theirs,
        note: `ours ${(ours / MIB).toFixed(1)} MiB, aim ≤ ${AIM / MIB}: ${says}; QEMU ${(theirs / MIB).toFixed(1)} MiB`,
      }
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  },
}
