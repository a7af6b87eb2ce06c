import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { sysroot } from '../src/debian/index.js'
import { chooseHypervisor, readHost } from '../src/engine/host.js'
import { ImageStore } from '../src/image/store.js'
import { guestKernel } from '../src/kernel/index.js'
import { Machine } from '../src/vmm/machine.js'
import { type Bench, Skip, median } from './bench.js'
import { busyboxGuest } from './busybox-guest.js'

const MIB = 2 ** 20
const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_pmem', 'nd_pmem', 'erofs']
const SOURCE = fileURLToPath(new URL('../../bench/read-files.c', import.meta.url))

/** Reads every file of a folder; what it took stands on the console, in nanoseconds. */
const SCRIPT = `
mkdir /pmem /blk
mount -t erofs -o ro,dax=always /dev/pmem0p1 /pmem || echo failed=pmem
mount -t erofs -o ro /dev/vda /blk || echo failed=blk
pass() { echo "$1-$2=$(read-files $1 /$2)"; }
pass read pmem
case "$(cat /proc/cmdline)" in *measure*)
  for i in 1 2 3; do pass read blk; pass read pmem; done
  for i in 1 2; do pass map pmem; pass map blk; done
esac
echo ready=
sleep 100000
`

/** Debian's files as a layer of an image, as the store keeps it: an EROFS file. */
async function debianLayer(folder: string): Promise<string> {
  const { root } = await sysroot('tools')
  const tar = spawn('tar', ['--sort=name', '-C', root, '-c', '.'], { stdio: ['ignore', 'pipe', 'inherit'] })
  const store = await ImageStore.open(join(folder, 'images'))
  const history = [{ created: new Date().toISOString(), created_by: 'bench' }] as const
  const image = await store.compose({ base: undefined, layer: tar.stdout, config: {}, history })
  return image.layers[0]!.path
}

/** Bytes of the mappings of `path` in this process: those that are there, and those that nobody else has. */
function mapped(path: string): { readonly all: number; readonly alone: number } {
  let [all, alone] = [0, 0]
  let counts = false
  for (const line of readFileSync('/proc/self/smaps', 'latin1').split('\n')) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) counts = line.endsWith(path)
    const [, key, size] = /^(Rss|Private_Clean|Private_Dirty):\s+(\d+) kB$/.exec(line) ?? []
    if (!counts || size === undefined) continue
    if (key === 'Rss') all += Number(size) * 1024
    else alone += Number(size) * 1024
  }
  return { all, alone }
}

export const readFiles: Bench = {
  name: 'read-files',
  what: 'a guest that reads every file of a Debian image again: the speed from pmem by DAX / from its own page cache (virtio-blk)',
  aim: { atLeast: 0.95 },
  async run() {
    const { hypervisor, reason } = chooseHypervisor('auto', readHost())
    if (hypervisor !== 'kvm') throw new Skip(`${reason}: use npm run lab -- npm run bench read-files`)
    const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
    try {
      const kernel = await guestKernel('cloud')
      const reader = join(folder, 'read-files')
      execFileSync('cc', ['-O2', '-static', '-o', reader, SOURCE])
      const initramfs = await busyboxGuest(kernel, MODULES, SCRIPT, join(folder, 'initramfs'), {
        'read-files': reader,
      })
      const path = await debianLayer(folder)
      /** Resolves when its guest has read everything, once or as often as is measured; it stays. */
      const boot = async (append: string): Promise<{ machine: Machine; said: [string, number][] }> => {
        let ready = (): void => undefined
        const done = new Promise<void>((resolve) => (ready = resolve))
        let text = ''
        const machine = await Machine.create({
          kernel: kernel.vmlinux,
          initramfs,
          memory: 256 * MIB,
          cpus: 1,
          append,
          devices: [
            { kind: 'pmem', name: 'image', blobs: [{ name: 'image', path }] },
            { kind: 'blk', name: 'image', path, readOnly: true },
          ],
          onConsole: (bytes) => {
            text += Buffer.from(bytes).toString('latin1')
            if (text.includes('ready=')) ready()
          },
        })
        machine.start()
        const ended = await Promise.race([done, machine.exited])
        if (ended) throw new Error(`the guest ended: ${JSON.stringify(ended)}\n${machine.console}`)
        return {
          machine,
          said: [...text.matchAll(/^(\w+-\w+)=(\d+) \d+\r?$/gm)].map(([, name, time]) => [
            name!,
            Number(time),
          ]),
        }
      }
      const first = await boot('measure')
      await using _first = first.machine
      const second = await boot('')
      await using _second = second.machine
      const of = (name: string): number[] =>
        first.said.filter((each) => each[0] === name).map((each) => each[1])
      const again = (name: string): number => median(of(name).slice(1))
      const { all, alone } = mapped(path)
      const cold = of('read-blk')[0]! / of('read-pmem')[0]!
      const pages = again('map-blk') / again('map-pmem')
      const shared = (100 * (all - alone)) / all
      return {
        ratio: again('read-blk') / again('read-pmem'),
        note:
          `read for the first time: ${cold.toFixed(2)}; looked at again page by page in mappings: ` +
          `${pages.toFixed(2)}; two machines share ${shared.toFixed(0)} % of the pages that they have mapped`,
      }
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  },
}
