import { closeSync, existsSync, readFileSync, readlinkSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import {
  CLONE_NEWNS,
  Fd,
  MS_PRIVATE,
  MS_REC,
  O_CREAT,
  O_RDONLY,
  O_TRUNC,
  O_WRONLY,
  mount,
  unshare,
} from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import { NO_EXIT, logFiles, sandboxFiles, writeExit } from '../files.js'
import type { Ready } from '../launch.js'
import { identify, signLock, takeLock } from '../liveness.js'
import { describeError } from '../protocol.js'
import { TO_COME } from '../monitor-pool.js'
import type { SandboxSpec } from '../sandbox.js'
import { serveControl } from './control.js'
import { Monitor } from './monitor.js'
import type { Workload } from './workload.js'

/*
 * The process of one container: `main.js SPEC [--namespaces]`. Descriptor 3 takes one line that tells whether it
 * got so far that its control socket answers. Imports are few, since every container waits for them; but not for those
 * of one that was started before (monitor-pool.ts): for SPEC it has `-`, and the path comes on its stdin.
 */

const READY = 3
/** How long another's hold on the lock is waited for, in ms: it may be cleaning up after an earlier run. */
const LOCK_PATIENCE = 2_000

function tell(ready: Ready): void {
  writeSync(READY, `${JSON.stringify(ready)}\n`)
  closeSync(READY)
}

/** Our id as the host counts: its /proc still shows here until we mount our own. */
const pid = Number(readlinkSync('/proc/self'))

/** This thread, and what it starts: those of Node's pool are left as they are, and touch nothing that is mounted here. */
function enterNamespaces(): void {
  // Not when the process was started: it may have waited, and what is mounted now counts.
  unshare(CLONE_NEWNS)
  mount('none', '/', '', MS_REC | MS_PRIVATE)
  mount('proc', '/proc', 'proc')
  // crun declines hybrid cgroups, v1 with v2 beside it, once a controller lives in v2. Behind a tmpfs it sees v1
  // alone; what it then writes there, as if it were a hierarchy, goes with the tmpfs.
  if (existsSync('/sys/fs/cgroup/unified/cgroup.procs')) mount('tmpfs', '/sys/fs/cgroup/unified', 'tmpfs')
}

function holdLock(spec: SandboxSpec): void {
  const { lock } = sandboxFiles(spec)
  const deadline = Date.now() + LOCK_PATIENCE
  for (;;) {
    if (takeLock(lock, true)) return
    if (Date.now() > deadline)
      throw new CoracleError('CONFLICT', `container ${spec.id.slice(0, 12)} is running already`)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
  }
}

async function loadWorkload(spec: SandboxSpec): Promise<Workload> {
  if (spec.isolation === 'microvm') {
    const [{ VmWorkload }, { guestParts }] = await Promise.all([
      import('../microvm/vm-workload.js'),
      import('../microvm/guest-parts.js'),
    ])
    if (spec.hypervisor === 'qemu') {
      const [{ QemuMachine }, { joinMachineCgroup }] = await Promise.all([
        import('../qemu/qemu-machine.js'),
        import('../update.js'),
      ])
      // QEMU inherits it.
      if (process.getuid?.() === 0) joinMachineCgroup(spec, 0)
      return new VmWorkload(spec, async () => QemuMachine.create(spec, await guestParts(spec)))
    }
    const { KvmMachine } = await import('../microvm/kvm-machine.js')
    return new VmWorkload(spec, async () => {
      const { console } = sandboxFiles(spec)
      const parts = await guestParts(spec)
      const devices = parts.devices.map(({ address, group }) => ({ address, group: `/dev/vfio/${group}` }))
      if (spec.mounts?.length)
        throw new CoracleError('INVALID_ARGUMENT', 'volumes and bind mounts need root: run as root')
      return KvmMachine.create(spec, { ...parts, devices, console })
    })
  }
  const { CrunWorkload } = await import('../process/crun-workload.js')
  return new CrunWorkload(spec)
}

/** Waits for the specification's path with all loaded that most containers need; ends where none comes. */
async function told(): Promise<string> {
  const loading = import('../process/crun-workload.js')
  let text = ''
  for await (const chunk of process.stdin.setEncoding('utf8')) text += chunk as string
  await loading
  if (!text.endsWith('\n')) process.exit(0)
  return text.trim()
}

/** Standard streams as its starter would have given it, had it known: nothing to read, and the sandbox's log. */
function openStreams(log: string): void {
  place('/dev/null', O_RDONLY, [0])
  place(log, O_WRONLY | O_CREAT | O_TRUNC, [1, 2])
}

function place(path: string, flags: number, numbers: readonly number[]): void {
  const fd = Fd.open(path, flags)
  for (const number of numbers) if (number !== fd.number) fd.placeAt(number)
  if (!numbers.includes(fd.number)) fd.close()
}

try {
  const isSpare = process.argv[2] === TO_COME
  const spec = JSON.parse(readFileSync(isSpare ? await told() : process.argv[2]!, 'utf8')) as SandboxSpec
  if (isSpare) openStreams(sandboxFiles(spec).monitorLog)
  if (process.argv.includes('--namespaces')) enterNamespaces()
  // Held until this process ends.
  holdLock(spec)
  const files = sandboxFiles(spec)
  signLock(files.lock, { pid, startTime: identify('self')!.startTime })
  writeFileSync(files.exit, NO_EXIT, { mode: 0o600 })
  rmSync(files.control, { force: true })
  // Nothing is made ready while the socket is: that has a umask of its own, which is the whole process's.
  const loading = loadWorkload(spec)
  loading.catch(() => undefined)
  let serving!: () => void
  const served = new Promise<void>((resolve) => (serving = resolve))
  const workload = served.then(() => loading)
  const monitor = new Monitor(spec, pid, workload, {
    log: logFiles(spec),
    saveExit: (exit) => writeExit(spec, exit),
    leave: () => rmSync(spec.runDirectory, { recursive: true, force: true }),
  })
  monitor.server = await serveControl(files.control, monitor)
  serving()
  process.on('SIGTERM', () => void monitor.stop())
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGPIPE'] as const) process.on(signal, () => undefined)
  tell({ pid })
} catch (error) {
  tell({ error: describeError(error) })
  process.exit(1)
}
