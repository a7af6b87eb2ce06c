import { closeSync, readFileSync, writeSync } from 'node:fs'
import { Fd, forbidSystemCalls } from '@coracle/sys'
import { type LogFiles, saveExit } from '../files.js'
import { type Handover, receiveHandover } from '../handover.js'
import { IdleGuest } from '../microvm/idle-guest.js'
import { KvmMachine, type KvmParts } from '../microvm/kvm-machine.js'
import { shareTag } from '../microvm/shares.js'
import { VmWorkload } from '../microvm/vm-workload.js'
import { serveControl } from '../monitor/control.js'
import { Monitor } from '../monitor/monitor.js'
import { takeAdapter } from '../offers.js'
import { describeError } from '../protocol.js'
import type { SandboxSpec } from '../sandbox.js'
import { HANDOVER_FD } from './config.js'
import { FORBIDDEN } from './forbidden.js'

/*
 * The process of a microVM, in its sandbox: its imports are loaded by the time it waits for what it is to run. It
 * knows no path of the host; what it may touch is handed over (launch-box.ts says what). In a pool it is handed a
 * template before, and makes a guest ready from it.
 */

async function run(handover: Handover, idle: IdleGuest | undefined): Promise<void> {
  handover.get('errors').placeAt(1)
  handover.get('errors').placeAt(2)
  const written = JSON.parse(readFileSync(handover.get('spec').number, 'utf8')) as SandboxSpec
  const spec = withPaths(written, handover)
  const parts = {
    kvm: handover.path('kvm'),
    kernel: { vmlinux: handover.path('kernel') },
    initramfs: handover.path('initramfs'),
    tools: { path: handover.path('tools') },
    disk: handover.path('disk'),
    console: handover.path('console'),
    ...(handover.has('template.state') && {
      template: { state: handover.path('template.state'), memory: handover.path('template.memory') },
    }),
    ...(handover.has('saved.state') && {
      saved: { state: handover.path('saved.state'), memory: handover.path('saved.memory') },
    }),
    devices: devicesOf(handover),
    shares: sharesOf(handover),
    takeAdapter: (tap: string) => takeAdapter(handover.get('offers'), tap),
  }
  const workload = new VmWorkload(spec, () => KvmMachine.create(spec, parts, idle))
  const monitor = new Monitor(spec, process.pid, Promise.resolve(workload), {
    log: logOf(spec, handover),
    saveExit: (exit) => saveExit(handover.get('exit').number, exit),
    // Who launched us, or looks at what we left, removes what is the host's.
    leave: () => undefined,
  })
  monitor.server = await serveControl(handover.take('control').release(), monitor)
  process.on('SIGTERM', () => void monitor.stop())
  for (const signal of ['SIGINT', 'SIGHUP', 'SIGPIPE'] as const) process.on(signal, () => undefined)
}

function logOf({ log: { files, maxSize } = { files: 1 } }: SandboxSpec, handover: Handover): LogFiles {
  return {
    files: Array.from({ length: files }, (_, i) => handover.path(`log.${i}`)),
    ...(maxSize !== undefined && { maxSize, turns: handover.path('log.turns') }),
  }
}

/** A hand-over; where nobody wants us any more there is none. */
function next(): Handover {
  return receiveHandover(socket) ?? process.exit(0)
}

/** What is made ready before there is a container for it. */
async function makeIdle(given: Handover): Promise<IdleGuest> {
  using handover = given
  const path = (name: string): string => handover.path(name)
  const template = { state: path('template.state'), memory: path('template.memory') }
  return await IdleGuest.make({ kvm: path('kvm'), tools: path('tools'), template })
}

/** The host's devices, by the names of the descriptors of their groups. */
function devicesOf(handover: Handover): NonNullable<KvmParts['devices']> {
  const groups = new Map<string, string>()
  return handover.names.flatMap((name) => {
    const [, number, address] = /^vfio\.(\d+)\.(.+)$/.exec(name) ?? []
    if (number === undefined || address === undefined) return []
    // A group that two devices share is one, by whatever descriptor.
    const group = groups.get(number) ?? handover.path(name)
    groups.set(number, group)
    return [{ address: address.replaceAll('-', ':'), group, container: handover.path('vfio') }]
  })
}

/** What of the host the guest sees, by the names of the connections, in the order of the mounts. */
function sharesOf(handover: Handover): NonNullable<KvmParts['shares']> {
  const shares: NonNullable<KvmParts['shares']>[number][] = []
  for (let i = 0; ; i++) {
    const kind = ['folder', 'file'].find((kind) => handover.has(`share.${i}.${kind}`))
    if (kind === undefined) return shares
    shares.push({
      tag: shareTag(i),
      isFolder: kind === 'folder',
      socket: handover.path(`share.${i}.${kind}`),
    })
  }
}

/** What is named in a specification by its path on the host, by the paths of what was handed over. */
function withPaths(spec: SandboxSpec, handover: Handover): SandboxSpec {
  const layers = spec.layers.map((layer, i) => ({ ...layer, path: handover.path(`layer.${i}`) }))
  const { network } = spec
  if (!network) return { ...spec, layers }
  const interfaces = network.interfaces.map((each, i) => ({
    ...each,
    ...(handover.has(`tap.${i}`) && { tap: handover.path(`tap.${i}`) }),
    ...(handover.has(`vhost.${i}`) && { vhost: handover.path(`vhost.${i}`) }),
  }))
  return { ...spec, layers, network: { ...network, interfaces } }
}

// Before anything from outside is looked at.
forbidSystemCalls(FORBIDDEN)
const socket = new Fd(HANDOVER_FD)
const answer = (line: object): void => void writeSync(HANDOVER_FD, `${JSON.stringify(line)}\n`)
async function main(): Promise<void> {
  try {
    let idle: IdleGuest | undefined
    let handover = next()
    if (!handover.has('spec')) {
      idle = await makeIdle(handover)
      answer({})
      handover = next()
      // Meanwhile this thread heard nothing of it.
      await new Promise((resolve) => setImmediate(resolve))
    }
    await run(handover, idle)
    answer({})
    closeSync(HANDOVER_FD)
  } catch (error) {
    answer({ error: describeError(error) })
    process.exit(1)
  }
}

void main()
