import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, openSync, closeSync, readFileSync, readSync, statSync, writeFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { toolCommand } from '../../debian/index.js'
import { CoracleError } from '../../errors.js'
import { VsockServer } from '../../vmm/vsock-server.js'
import { sandboxFiles } from '../files.js'
import { type GuestParts, guestSize } from '../microvm/guest-parts.js'
import type { GuestDevices, GuestEnd, GuestMachine } from '../microvm/guest-machine.js'
import { type StartedShare, shareTag, startShares } from '../microvm/shares.js'
import type { SandboxInterface, SandboxSpec } from '../sandbox.js'
import { type MachineUsage, processMemory } from '../stats.js'
import { Qmp } from './qmp.js'

/** A clock tick of proc(5) (USER_HZ), in ms. */
const TICK = 10
/** In nanoseconds. */
const MILLISECOND = 1_000_000
const MEBIBYTE = 2 ** 20
/** Of the console, this much is kept from its end, in bytes. */
const CONSOLE_TAIL = 16 * 1024
/** Functions of one PCI slot. */
const FUNCTIONS = 8
/** The first PCI slot for disks; the vsock device and the balloon are before it. */
const FIRST_DISK_SLOT = 2
const VSOCK_SLOT = 1
/** The PCI slot of the ports into which network adapters are plugged later, one each. */
const PORT_SLOT = 19
/** So many: each costs the guest's boot a moment. */
const PORTS = 4
/** How long a guest may take to let go of what is pulled out, in ms. */
const EJECTION = 5_000
/** The first PCI slot for network adapters: behind as many disks as a container can have. */
const FIRST_NIC_SLOT = 20
/** The first PCI slot for shares of the host, and how many fit: slot 31 is the chipset's. */
const FIRST_SHARE_SLOT = 26
const MAX_SHARES = (31 - FIRST_SHARE_SLOT) * FUNCTIONS
/** The first descriptor behind the standard streams. */
const FIRST_FD = 3
const PANIC = 'Kernel panic - not syncing'

/**
 * A guest in QEMU: emulated, or by KVM where the processor can. It gets the same kernel, initramfs and images as in
 * our own VMM, the images as virtio-blk; its vsock is served from a thread of this process (vhost-user).
 */
export class QemuMachine implements GuestMachine {
  readonly devices: GuestDevices
  readonly exited: Promise<GuestEnd>
  readonly #spec: SandboxSpec
  readonly #command: readonly string[]
  readonly #env: Readonly<Record<string, string>>
  readonly #vsock: VsockServer
  readonly #shares: readonly StartedShare[]
  /** The adapters of the start, by their names: those that are gone are undefined. */
  readonly #adapters: (string | undefined)[]
  /** Those that came later, by their ports. */
  readonly #plugged = new Map<number, string>()
  #child: ChildProcess | undefined
  #resolveExited!: (end: GuestEnd) => void
  #closing: Promise<void> | undefined

  private constructor(
    spec: SandboxSpec,
    parts: {
      devices: GuestDevices
      command: readonly string[]
      env: Readonly<Record<string, string>>
      vsock: VsockServer
      shares: readonly StartedShare[]
    },
  ) {
    this.#spec = spec
    this.#adapters = (spec.network?.interfaces ?? []).map(({ name }) => name)
    this.devices = parts.devices
    this.#command = parts.command
    this.#env = parts.env
    this.#vsock = parts.vsock
    this.#shares = parts.shares
    this.exited = new Promise((resolve) => (this.#resolveExited = resolve))
  }

  /** @throws CoracleError HOST_TOOL where there is no QEMU */
  static async create(spec: SandboxSpec, parts: GuestParts): Promise<QemuMachine> {
    const socket = join(spec.runDirectory, 'vsock.sock')
    if ((spec.mounts?.length ?? 0) > MAX_SHARES)
      throw new CoracleError('INVALID_ARGUMENT', `a microVM on qemu has at most ${MAX_SHARES} volumes`)
    const shares = await startShares(spec)
    const [{ argv, env }, vsock] = await Promise.all([
      toolCommand('qemu-system-x86_64'),
      VsockServer.start({ path: socket, log: (line) => console.error(`vsock: ${line}`) }),
    ])
    const disks = [parts.tools.path, ...spec.layers.map((layer) => layer.path), parts.disk]
    const devices: GuestDevices = {
      tools: { device: diskName(0), type: 'erofs' },
      layers: spec.layers.map((_, i) => ({ device: diskName(i + 1), type: 'erofs' })),
      upper: { device: diskName(disks.length - 1), type: 'ext4' },
      shares,
    }
    const command = [...argv, ...qemuArguments(spec, parts, disks, socket)]
    return new QemuMachine(spec, { devices, command, env, vsock, shares })
  }

  get console(): string {
    const { console } = sandboxFiles(this.#spec)
    if (!existsSync(console)) return ''
    const size = statSync(console).size
    const tail = Buffer.alloc(Math.min(size, CONSOLE_TAIL))
    const fd = openSync(console, 'r')
    try {
      readSync(fd, tail, 0, tail.length, size - tail.length)
    } finally {
      closeSync(fd)
    }
    return tail.toString('latin1')
  }

  listen(port: number, handler: (socket: Socket) => void): void {
    this.#vsock.host.listen(port, handler)
  }

  start(): void {
    const files = sandboxFiles(this.#spec)
    writeFileSync(files.console, '', { mode: 0o600 })
    const log = join(this.#spec.runDirectory, 'qemu.log')
    const fd = openSync(log, 'w', 0o600)
    const child = spawn(this.#command[0]!, this.#command.slice(1), {
      cwd: '/',
      env: { ...process.env, ...this.#env },
      stdio: ['ignore', fd, fd, ...this.#shares.map(({ connection }) => connection.number)],
    })
    closeSync(fd)
    for (const { connection, go } of this.#shares) {
      go()
      // QEMU's is the only one now: they end with it.
      connection.close()
    }
    this.#child = child
    child.on('error', (error) => this.#resolveExited({ reason: `QEMU cannot be started: ${error.message}` }))
    child.on('exit', (status, signal) => this.#resolveExited(this.#endOf(status, signal, log)))
  }

  work(): number {
    try {
      const stat = readFileSync(`/proc/${this.#child?.pid}/stat`, 'latin1')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      return (Number(fields[11]) + Number(fields[12])) * TICK
    } catch {
      return 0
    }
  }

  async usage(): Promise<MachineUsage> {
    const pid = this.#child?.pid
    const { own, shared } = pid === undefined ? { own: 0, shared: 0 } : processMemory(pid)
    return { cpu: this.work() * MILLISECOND, overhead: own, guestMemory: shared }
  }

  /**
   * QEMU's own way to stop a machine (QMP `stop`) takes the queues of vhost-user devices away and with them the agent's
   * connection; a process that stands still does nothing either, and its guest's clock is right afterwards.
   */
  async pause(): Promise<void> {
    this.#child?.kill('SIGSTOP')
    const { pid } = this.#child ?? {}
    while (pid !== undefined && isAt(pid, /[RSD]/)) await sleep(1)
  }

  async resume(): Promise<void> {
    this.#child?.kill('SIGCONT')
  }

  async balloon(bytes?: number): Promise<number> {
    using qmp = await Qmp.connect(controlSocket(this.#spec))
    const size = memoryOf(this.#spec) * MEBIBYTE
    // QEMU counts what is left to the guest.
    if (bytes !== undefined) await qmp.execute('balloon', { value: size - bytes })
    const { actual } = (await qmp.execute('query-balloon')) as { actual: number }
    return size - actual
  }

  async addAdapter({ name, tap, mac, mtu }: SandboxInterface): Promise<{ rescan: boolean }> {
    const port = [...Array(PORTS).keys()].find((each) => !this.#plugged.has(each))
    if (port === undefined)
      throw new CoracleError(
        'CONFLICT',
        `a microVM on qemu takes ${PORTS} more networks while it runs, and it has had them: start it again after the change`,
      )
    using qmp = await Qmp.connect(controlSocket(this.#spec))
    const id = `h${port}`
    await qmp.execute('netdev_add', { type: 'tap', id, ifname: tap, script: 'no', downscript: 'no' })
    try {
      const device = {
        driver: 'virtio-net-pci',
        id: `p${id}`,
        bus: `port${port}`,
        netdev: id,
        mac,
        romfile: '',
      }
      await qmp.execute('device_add', { ...device, host_mtu: mtu })
    } catch (error) {
      await qmp.execute('netdev_del', { id })
      throw error
    }
    this.#plugged.set(port, name)
    // The ports' interrupts tell the guest.
    return { rescan: false }
  }

  async removeAdapter(
    name: string,
    letGo: (slot: number, function_: number) => Promise<void>,
  ): Promise<void> {
    using qmp = await Qmp.connect(controlSocket(this.#spec))
    const port = [...this.#plugged].find(([, each]) => each === name)?.[0]
    if (port === undefined) {
      // It is soldered in: the guest forgets it, and its cable goes.
      const index = this.#adapters.indexOf(name)
      if (index < 0) return
      this.#adapters[index] = undefined
      await letGo(FIRST_NIC_SLOT + Math.floor(index / FUNCTIONS), index % FUNCTIONS).catch(() => undefined)
      await qmp.execute('netdev_del', { id: `n${index}` })
      return
    }
    await qmp.execute('device_del', { id: `ph${port}` })
    const isThere = async (): Promise<boolean> => {
      const all = (await qmp.execute('qom-list', { path: '/machine/peripheral' })) as { name: string }[]
      return all.some((each) => each.name === `ph${port}`)
    }
    const deadline = Date.now() + EJECTION
    let there = await isThere()
    while (there && Date.now() < deadline) {
      await sleep(20)
      there = await isThere()
    }
    await qmp.execute('netdev_del', { id: `h${port}` })
    // A guest that holds on to it keeps an adapter without a cable, and the port is lost.
    this.#plugged.set(port, there ? '' : name)
    if (!there) this.#plugged.delete(port)
  }

  describe(): Promise<never> {
    const message = 'QEMU runs this machine, and only our own VMM (--hypervisor kvm) tells what it is made of'
    return Promise.reject(new CoracleError('NOT_IMPLEMENTED', message))
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      if (this.#child && this.#child.exitCode === null && this.#child.signalCode === null) {
        this.#child.kill('SIGKILL')
        await this.exited
      }
      await this.#vsock[Symbol.asyncDispose]()
    })()
    return this.#closing
  }

  #endOf(status: number | null, signal: string | null, log: string): GuestEnd {
    if (signal !== null) return { reason: `QEMU was killed by ${signal}`, killed: true }
    if (status !== 0) {
      const said = readFileSync(log, 'latin1').trim().split('\n').at(-1)
      return { reason: `QEMU ended with status ${status}: ${said || 'it said nothing'}` }
    }
    const panic = this.console.split('\n').find((line) => line.includes(PANIC))
    if (panic !== undefined)
      return { reason: `the guest's kernel panicked: ${panic.replace(/^.*not syncing:? ?/, '').trim()}` }
    return { reason: 'the guest switched itself off' }
  }
}

/** In MiB. */
const memoryOf = (spec: SandboxSpec): number => Math.ceil(guestSize(spec).memory / MEBIBYTE)

const controlSocket = (spec: SandboxSpec): string => join(spec.runDirectory, 'qmp.sock')

/** `/dev/vda` is 0, `/dev/vdaa` is 26. */
export function diskName(index: number): string {
  let letters = ''
  for (let rest = index; rest >= 0; rest = Math.floor(rest / 26) - 1)
    letters = String.fromCharCode(97 + (rest % 26)) + letters
  return `/dev/vd${letters}`
}

function qemuArguments(
  spec: SandboxSpec,
  parts: GuestParts,
  disks: readonly string[],
  socket: string,
): string[] {
  const memory = memoryOf(spec)
  const { cpus } = guestSize(spec)
  const hardware = hasHardwareKvm()
  const words = [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-nographic', '-display', 'none', '-monitor', 'none'],
    ...['-name', `coracle-${spec.id.slice(0, 12)}`],
    // Not microvm: without KVM's clock Linux has no timer there that ACPI does not hide.
    ...['-M', 'q35,usb=off,vmport=off,smbus=off,sata=off,memory-backend=ram', '-bios', 'qboot.rom'],
    ...(hardware ? ['-accel', 'kvm', '-cpu', 'host'] : ['-accel', 'tcg,thread=multi', '-cpu', 'max']),
    ...['-smp', String(cpus), '-m', `${memory}M`],
    ...['-object', `memory-backend-memfd,id=ram,size=${memory}M,share=on`],
    ...['-kernel', parts.kernel.bzImage, '-initrd', parts.initramfs],
    // On a busy machine the emulated timer may be late for the kernel's look at it, which then panics.
    ...['-append', 'console=ttyS0 quiet panic=-1 reboot=t 8250.nr_uarts=1 no_timer_check'],
    ...[
      '-chardev',
      `file,id=console,path=${escape(sandboxFiles(spec).console)}`,
      '-serial',
      'chardev:console',
    ],
    ...['-chardev', `socket,id=vsock,path=${escape(socket)}`],
    ...['-device', `vhost-user-vsock-pci,chardev=vsock,addr=${VSOCK_SLOT}.0,multifunction=on`],
    ...['-device', `virtio-balloon-pci,id=balloon,free-page-reporting=on,addr=${VSOCK_SLOT}.1`],
    ...['-chardev', `socket,id=qmp,path=${escape(controlSocket(spec))},server=on,wait=off`],
    ...['-mon', 'chardev=qmp,mode=control'],
    ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
  ]
  const last = disks.length - 1
  disks.forEach((path, i) => {
    const slot = FIRST_DISK_SLOT + Math.floor(i / FUNCTIONS)
    const options =
      i === last ? `cache=unsafe,discard=unmap${throttle(spec)}` : 'read-only=on,cache=writeback'
    words.push('-drive', `id=d${i},if=none,format=raw,file=${escape(path)},${options},file.locking=off`)
    const address = `addr=${slot.toString(16)}.${i % FUNCTIONS},multifunction=on`
    words.push('-device', `virtio-blk-pci,drive=d${i},${address}`)
  })
  // Without a network there is nobody to connect it to others, either.
  if (spec.network?.interfaces.length)
    for (let port = 0; port < PORTS; port++) {
      const address = `addr=${PORT_SLOT.toString(16)}.${port},multifunction=on`
      words.push('-device', `pcie-root-port,id=port${port},chassis=${port + 1},${address}`)
    }
  spec.network?.interfaces.forEach(({ name, tap, mac, mtu }, i) => {
    const slot = FIRST_NIC_SLOT + Math.floor(i / FUNCTIONS)
    if (tap === undefined) throw new CoracleError('INVALID_ARGUMENT', `the interface ${name} has no tap`)
    words.push('-netdev', `tap,id=n${i},ifname=${escape(tap)},script=no,downscript=no`)
    const address = `addr=${slot.toString(16)}.${i % FUNCTIONS},multifunction=on`
    words.push('-device', `virtio-net-pci,netdev=n${i},mac=${mac},host_mtu=${mtu},romfile=,${address}`)
  })
  spec.mounts?.forEach((_, i) => {
    const slot = FIRST_SHARE_SLOT + Math.floor(i / FUNCTIONS)
    const address = `addr=${slot.toString(16)}.${i % FUNCTIONS},multifunction=on`
    words.push('-chardev', `socket,id=s${i},fd=${FIRST_FD + i}`)
    words.push('-device', `vhost-user-fs-pci,chardev=s${i},tag=${shareTag(i)},queue-size=128,${address}`)
  })
  return words
}

/** A drive's throttling (QEMU's block throttling, which lets a tenth of a second's worth go at once). */
function throttle({ diskRates = {} }: SandboxSpec): string {
  const { readBps, writeBps, readIops, writeIops } = diskRates
  const all = { 'bps-read': readBps, 'bps-write': writeBps, 'iops-read': readIops, 'iops-write': writeIops }
  return Object.entries(all)
    .map(([name, rate]) => (rate === undefined ? '' : `,throttling.${name}=${rate}`))
    .join('')
}

/** Whether a process is in a state of proc(5), such as R. */
function isAt(pid: number, state: RegExp): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return state.test(stat.charAt(stat.lastIndexOf(')') + 2))
  } catch {
    return false
  }
}

/** QEMU splits options at commas; a doubled one is a comma. */
const escape = (path: string): string => path.replace(/,/g, ',,')

/** Whether KVM on this processor can boot Linux: it has the extensions that hardware virtualization needs. */
function hasHardwareKvm(): boolean {
  return existsSync('/dev/kvm') && /^flags\s*:.*\b(vmx|svm)\b/m.test(readFileSync('/proc/cpuinfo', 'latin1'))
}
