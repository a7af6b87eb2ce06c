import { Socket } from 'node:net'
import { Fd, O_CREAT, O_TRUNC, O_WRONLY } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import type { DeviceSpec } from '../../vmm/device-thread/device-spec.js'
import { Machine, type MachineExit } from '../../vmm/machine.js'
import type { SandboxSpec } from '../sandbox.js'
import type { GuestDevices, GuestEnd, GuestMachine } from './guest-machine.js'
import { DEFAULT_MEMORY, type GuestParts } from './guest-parts.js'

/** Nothing on the host sees a guest's context id, so each may have the first that is free for guests. */
const GUEST_CID = 3
/** Bytes of the console that are kept in its file. */
const CONSOLE_LIMIT = 1 << 20

/** What a guest of ours is made of: files, any of them a descriptor's path (handover.ts). */
export interface KvmParts {
  readonly kernel: Pick<GuestParts['kernel'], 'vmlinux'>
  readonly initramfs: string
  readonly tools: Pick<GuestParts['tools'], 'path'>
  readonly disk: string
  readonly console: string
  /** @default '/dev/kvm' */
  readonly kvm?: string
}

/**
 * A guest in our own VMM, in this process. Its read-only images are one persistent memory that it maps without a
 * copy, partition by partition: the tools, then the layers.
 */
export class KvmMachine implements GuestMachine {
  readonly devices: GuestDevices
  readonly exited: Promise<GuestEnd>
  readonly #machine: Machine

  private constructor(machine: Machine, devices: GuestDevices) {
    this.#machine = machine
    this.devices = devices
    this.exited = machine.exited.then(endOf)
  }

  /** @throws CoracleError KVM_UNAVAILABLE, KERNEL_INVALID, MEMORY_SIZE, INVALID_ARGUMENT */
  static async create(spec: SandboxSpec, parts: KvmParts): Promise<KvmMachine> {
    const layers = spec.layers.map((layer, i) => ({ name: `layer ${i}`, path: layer.path }))
    const machine = await Machine.create({
      ...(parts.kvm !== undefined && { kvm: parts.kvm }),
      kernel: parts.kernel.vmlinux,
      initramfs: parts.initramfs,
      memory: spec.memory > 0 ? spec.memory : DEFAULT_MEMORY,
      cpus: Math.max(1, Math.ceil(spec.cpus)),
      devices: [
        { kind: 'vsock', cid: GUEST_CID },
        { kind: 'pmem', name: 'images', blobs: [{ name: 'tools', path: parts.tools.path }, ...layers] },
        { kind: 'blk', name: 'writable', path: parts.disk },
        { kind: 'rng' },
        ...adapters(spec),
      ],
      onConsole: consoleFile(parts.console),
      onLog: (line) => console.error(line),
    })
    const image = (partition: number): GuestDevices['tools'] => ({
      device: `/dev/pmem0p${partition}`,
      type: 'erofs',
      options: 'dax=always',
    })
    return new KvmMachine(machine, {
      tools: image(1),
      layers: layers.map((_, i) => image(i + 2)),
      upper: { device: '/dev/vda', type: 'ext4' },
    })
  }

  get console(): string {
    return this.#machine.console
  }

  listen(port: number, handler: (socket: Socket) => void): void {
    this.#machine.vsock.listen(port, (fd) => handler(new Socket({ fd: fd.release(), allowHalfOpen: true })))
  }

  start(): void {
    this.#machine.start()
  }

  work(): number {
    const { user, system } = process.cpuUsage()
    return (user + system) / 1000
  }

  close(): Promise<void> {
    return this.#machine.close()
  }
}

/** @throws CoracleError INVALID_ARGUMENT for an interface without a tap */
function adapters({ network }: SandboxSpec): DeviceSpec[] {
  return (network?.interfaces ?? []).map(({ name, mac, mtu, tap }) => {
    if (tap === undefined) throw new CoracleError('INVALID_ARGUMENT', `the interface ${name} has no tap`)
    return { kind: 'net', name, mac, mtu, tap }
  })
}

/** Writes a new console log, and no more into it than {@link CONSOLE_LIMIT}: the guest decides what comes. */
function consoleFile(path: string): (bytes: Uint8Array) => void {
  const file = Fd.openOrDuplicate(path, O_WRONLY | O_CREAT | O_TRUNC)
  let at = 0
  return (bytes) => {
    const kept = bytes.subarray(0, CONSOLE_LIMIT - at)
    if (kept.length > 0) at += file.pwrite(kept, at)
  }
}

function endOf({ reason, detail }: MachineExit): GuestEnd {
  const more = detail === undefined ? '' : `: ${detail}`
  switch (reason) {
    case 'poweroff':
      return { reason: 'the guest switched itself off' }
    case 'reset':
      return { reason: 'the guest reset itself' }
    case 'halt':
      return { reason: 'the guest halted for good' }
    case 'panic':
      return { reason: `the guest's kernel panicked${more}` }
    case 'triple-fault':
      return { reason: 'the guest lost its processor to a triple fault' }
    case 'internal-error':
      return { reason: `the virtual machine failed${more}` }
    case 'stopped':
      return { reason: 'the virtual machine was stopped', killed: true }
  }
}
