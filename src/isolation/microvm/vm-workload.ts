import { randomBytes } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { CoracleError } from '../../errors.js'
import type { WorkloadArchive } from '../archive.js'
import { execProcess } from '../exec.js'
import { sandboxFiles } from '../files.js'
import type { ExecProcess, Workload, WorkloadEnd, WorkloadStreams } from '../monitor/workload.js'
import { INIT_IN_GUEST } from '../../firmware/index.js'
import { initMount, withInit } from '../init.js'
import { mountsInOrder, type SharedSource } from '../mounts.js'
import { namespacesOf } from '../network.js'
import type {
  ExecSpec,
  OciConfig,
  SandboxFile,
  SandboxInterface,
  SandboxLimits,
  SandboxMount,
  SandboxSpec,
} from '../sandbox.js'
import { MAX_USER_FILE, withUser } from '../user.js'
import type { SnapshotSink } from '../../vmm/machine.js'
import type { AgentClient } from './agent-client.js'
import type { AgentStreams } from './guest-streams.js'
import { greet } from './greet.js'
import { resizeGuest } from './balloon.js'
import { guestSize } from './guest-parts.js'
import type { ProcessList } from '../processes.js'
import { type SandboxStats, type Usage, hostCpu } from '../stats.js'
import { type LetGo, Stillness } from '../stillness.js'
import type { GuestEnd, GuestMachine, SavedGuest } from './guest-machine.js'
import { type GuestShare, SHARED_FILE } from './shares.js'

/** How long an orderly end may take, in ms: the writable layer is unmounted in it. */
const SHUTDOWN = 5_000
/** How long a guest may take to answer to a change of its adapters, in ms; it looks for a new one for up to 10 s. */
const ANSWER = 20_000
/**
 * In the guest. The container has the guest's own network: nobody else is there, and what is plugged in later appears
 * in it.
 */
const NETWORK_NAMESPACE = '/proc/1/ns/net'
const ENTROPY_BYTES = 64
const NANOSECONDS = 1_000_000n
const SIGKILL = 9

/** Runs the container's process in a guest, through the agent there. */
export class VmWorkload implements Workload {
  readonly ended: Promise<WorkloadEnd>
  readonly #spec: SandboxSpec
  readonly #make: () => Promise<GuestMachine>
  #machine: Promise<GuestMachine> | undefined
  #agent: AgentClient | undefined
  #streams: AgentStreams | undefined
  #config: OciConfig | undefined
  #resolveEnd!: (end: WorkloadEnd) => void
  /** Bytes that the guest may have now. */
  #memory: number
  #interfaces: readonly SandboxInterface[] = []
  /** The last change of them, until it is over. */
  #changing: Promise<unknown> = Promise.resolve()
  #over = false
  /** What the container used when it was paused: its processes are held, and its machine stands still. */
  #paused: Usage | undefined
  /** Set where it is paused: has the agent let go of its processes. */
  #held: LetGo | undefined
  /** Who needs the agent for files of a container that is paused: its machine runs meanwhile. */
  #readers = 0
  #standing = false
  /** The last change of that, until it is over. */
  #settling: Promise<unknown> = Promise.resolve()
  /** Of the container's processes, in a machine that runs. */
  readonly #stillness = new Stillness(
    () => this.#running().hold(),
    () => this.#running().release(),
  )

  /** @param make builds the machine of `spec`, which then stands still */
  constructor(spec: SandboxSpec, make: () => Promise<GuestMachine>) {
    this.#spec = spec
    this.#make = make
    this.#memory = guestSize(spec).memory
    this.ended = new Promise((resolve) => (this.#resolveEnd = resolve))
  }

  async prepare(): Promise<void> {
    this.#machine = this.#make()
    const machine = await this.#machine
    void machine.exited.then((end) => this.#machineEnded(machine, end))
    const lost = machine.exited.then((end) => {
      throw this.#failure(machine, end.reason)
    })
    lost.catch(() => undefined)
    const hung = (reason: string): CoracleError => this.#failure(machine, reason)
    const agent = machine.agent ?? (await Promise.race([greet(machine, hung), lost]))
    this.#agent = agent
    const { tools, layers, upper, shares = [] } = machine.devices
    const { bundle, hostname, openStdin: stdin, tty } = this.#spec
    // The agent does one after the other: none waits here for the answer to the one before.
    const first = [
      ...(machine.devices.plugged === true ? [agent.rescan()] : []),
      agent.configure({
        clock: now(),
        entropy: randomBytes(ENTROPY_BYTES),
        hostname,
        ...(tools && { tools }),
      }),
    ]
    const { files, interfaces: adapters = [] } = this.#spec.network ?? {}
    this.#interfaces = adapters
    const interfaces = interfacesOf(this.#spec)
    const { saved } = machine
    if (saved) {
      await Promise.race([lost, Promise.all(first)])
      await Promise.race([lost, this.#exchangeAdapters(agent, saved, interfaces.length > 0)])
    }
    const ready = [
      ...first,
      ...(saved ? [] : [agent.mount({ layers, upper })]),
      ...interfaces.map((each) => agent.network(each)),
      ...shares.map(({ tag }) => agent.share(tag)),
    ]
    await Promise.race([lost, Promise.all(ready)])
    const process = withUser(bundle, (path) => agent.readFile(path, MAX_USER_FILE))
    const shared = [
      ...(this.#spec.init === true ? [initMount(INIT_IN_GUEST)] : []),
      ...(this.#spec.mounts ?? []).map((mount, i) => sharedSource(mount, shares[i])),
    ]
    const user = await Promise.race([lost, process])
    const config = (this.#config = {
      ...bundle,
      hostname,
      process: { ...user, args: withInit(this.#spec, user.args), terminal: tty },
      mounts: mountsInOrder(bundle.mounts, shared, boundFiles(files)),
      linux: { ...bundle.linux, namespaces: namespacesOf(bundle, { network: NETWORK_NAMESPACE }) },
    })
    const given = givenFiles(files)
    const streams = saved
      ? agent.reattach({ tty, stdin, hostname, machineId: randomBytes(16).toString('hex'), files: given })
      : agent.create({ tty, stdin, config, files: given })
    this.#streams = await Promise.race([lost, streams])
    void agent.failed.then((error) => this.#agentFailed(machine, error))
  }

  /** The adapters of before are another machine's: the guest lets go of them, and finds its own. */
  async #exchangeAdapters(agent: AgentClient, saved: SavedGuest, hasNew: boolean): Promise<void> {
    const { state } = await agent.hello
    if (state !== 'running')
      throw new CoracleError('SNAPSHOT_INVALID', 'the container in the snapshot does not run')
    for (const slot of saved.adapters) await agent.unplug(slot)
    await saved.exchangeAdapters()
    if (hasNew) await agent.rescan()
  }

  async start(still: boolean): Promise<WorkloadStreams> {
    const { stdin, stdout, stderr } = this.#streams!
    const machine = (await this.#machine)!
    const { saved } = machine
    if (still && !saved) throw new CoracleError('INVALID_ARGUMENT', 'only what goes on can begin paused')
    if (still) {
      this.#paused = await this.#agent!.stats()
      this.#held = () => this.#running().release()
      await this.#settle()
    } else await (saved ? this.#agent!.release() : this.#agent!.start())
    this.#agent!.exited.then(
      ({ exitCode, oomKilled }) => this.#end(oomKilled ? { exitCode, oomKilled } : { exitCode }),
      () => undefined,
    )
    // Nothing comes back on it, but its end must be seen.
    if (stdin !== undefined && stdin !== stdout) stdin.resume()
    return { stdout, ...(stdin && { stdin }), ...(stderr && { stderr }) }
  }

  async kill(signal: number): Promise<void> {
    const sent = this.#agent?.signal(signal)
    // The agent answers when the machine goes on.
    if (this.#paused) sent?.catch(() => undefined)
    else await sent
  }

  async pause(): Promise<void> {
    if (this.#paused) return
    const letGo = await this.#stillness.hold()
    try {
      this.#paused = await this.#running().stats()
      await this.#settle()
    } catch (error) {
      this.#paused = undefined
      await this.#settle().catch(() => undefined)
      await letGo().catch(() => undefined)
      throw error
    }
    this.#held = letGo
  }

  async resume(): Promise<void> {
    if (!this.#paused) return
    this.#paused = undefined
    await this.#settle()
    await this.#held?.()
    this.#held = undefined
    // Its clock may have stood still as well. The answer is not waited for: the workload goes on already.
    this.#agent?.configure({ clock: now() }).catch(() => undefined)
  }

  /** Has the machine stand still where it is paused and nobody reads its files, else run. One change after the other. */
  #settle(): Promise<void> {
    const done = this.#settling.then(async () => {
      const machine = await this.#machine!
      const still = this.#paused !== undefined && this.#readers === 0
      if (still === this.#standing) return
      await (still ? machine.pause() : machine.resume())
      this.#standing = still
    })
    this.#settling = done.catch(() => undefined)
    return done
  }

  /** Has the agent answer, also where the container is paused. @returns what ends that, once */
  async #wake(): Promise<() => void> {
    this.#readers++
    let over = false
    const leave = (): void => {
      if (over) return
      over = true
      this.#readers--
      // What cannot be made to stand still any more has ended, or is about to.
      this.#settle().catch(() => undefined)
    }
    try {
      await this.#settle()
      return leave
    } catch (error) {
      leave()
      throw error
    }
  }

  async resize(width: number, height: number): Promise<void> {
    await this.#agent?.resize(width, height)
  }

  async update({ memory, pids }: SandboxLimits): Promise<void> {
    const machine = await this.#machine
    if (!machine || !this.#agent) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    if (pids !== undefined) await this.#agent.limitProcesses(pids)
    if (memory === undefined) return
    const { available = 0 } = (await this.#agent.stats()).memory
    await resizeGuest(machine, { size: guestSize(this.#spec).memory, available }, memory)
    this.#memory = memory
  }

  setInterfaces(interfaces: readonly SandboxInterface[]): Promise<void> {
    const change = this.#changing.then(() => this.#setInterfaces(interfaces))
    this.#changing = change.catch(() => undefined)
    return change
  }

  async #setInterfaces(now: readonly SandboxInterface[]): Promise<void> {
    const agent = this.#running()
    const machine = (await this.#machine)!
    const before = this.#interfaces
    const known = (all: readonly SandboxInterface[], { name, mac }: SandboxInterface): boolean =>
      all.some((each) => each.name === name && each.mac === mac)
    const remove = async (each: SandboxInterface): Promise<void> => {
      await soon(agent.networkDown(each.name)).catch(() => undefined)
      await machine.removeAdapter(each.name, (slot, function_) => soon(agent.unplug(slot, function_)))
      this.#interfaces = this.#interfaces.filter((other) => other !== each)
    }
    for (const each of before) if (!known(now, each)) await remove(each)
    const added = now.filter((each) => !known(before, each))
    try {
      for (const each of added) {
        const { rescan } = await machine.addAdapter(each)
        this.#interfaces = [...this.#interfaces, each]
        if (rescan) await soon(agent.rescan())
        await soon(agent.network(each))
      }
    } catch (error) {
      for (const each of this.#interfaces.filter((each) => added.includes(each))) await remove(each)
      throw error
    }
    // The way out may be another one now.
    for (const each of now)
      if (each.gateways.length > 0 && !added.includes(each)) await soon(agent.network(each))
    this.#interfaces = now
  }

  async stats(): Promise<SandboxStats> {
    const machine = await this.#machine
    if (!machine || !this.#agent) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    const usage = this.#paused ?? (await this.#agent.stats())
    return { ...usage, memoryLimit: this.#memory, host: hostCpu(), machine: await machine.usage() }
  }

  processes(): Promise<ProcessList> {
    return this.#running().processes()
  }

  async save(sink: SnapshotSink, stay: boolean): Promise<void> {
    const machine = await this.#machine
    const agent = this.#running()
    if (!machine?.save)
      throw new CoracleError(
        'SNAPSHOT_UNSUPPORTED',
        'only a microVM on kvm can be saved, and this is one of qemu',
      )
    const usage = stay ? await agent.stats() : undefined
    const letGo = await this.#stillness.hold()
    try {
      await machine.save(sink)
      this.#paused = usage
      await this.#settle()
    } catch (error) {
      this.#paused = undefined
      await letGo().catch(() => undefined)
      throw error
    }
    if (usage) this.#held = letGo
    else await letGo()
  }

  hold(): Promise<LetGo> {
    return this.#stillness.hold()
  }

  async machine(): Promise<object> {
    const machine = await this.#machine
    if (!machine) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    return machine.describe()
  }

  async exec(exec: ExecSpec): Promise<ExecProcess> {
    const { tty, openStdin: stdin } = exec
    // crun would refuse: but where files are read it is soon over.
    if (!this.#paused) await this.#stillness.moving()
    const agent = this.#agent
    if (!agent || !this.#config) throw new CoracleError('NOT_RUNNING', 'the container is not running')
    const process = await execProcess(this.#config, exec, (path) => agent.readFile(path, MAX_USER_FILE))
    const { streams, ...control } = await agent.exec({ process, tty, stdin })
    if (streams.stdin !== undefined && streams.stdin !== streams.stdout) streams.stdin.resume()
    return {
      streams,
      pid: 0,
      // A machine that is gone took it along.
      ended: control.exited.catch(() => 128 + SIGKILL).then((exitCode) => ({ exitCode })),
      kill: (signal) => control.signal(signal),
      resize: (width, height) => control.resize(width, height),
      release: () => {
        for (const stream of Object.values(streams) as Duplex[]) stream.destroy()
      },
    }
  }

  readonly archive: WorkloadArchive = {
    stat: async (path) => {
      const leave = await this.#wake()
      try {
        return await this.#running().stat(path)
      } finally {
        leave()
      }
    },
    read: (path, flags) => this.#stream(() => this.#running().readTree(path, flags)),
    write: (path, flags) => this.#stream(() => this.#running().writeTree(path, flags)),
  }

  /** The machine runs until the stream is closed. */
  async #stream(open: () => Promise<Duplex>): Promise<Duplex> {
    const leave = await this.#wake()
    try {
      return (await open()).once('close', leave)
    } catch (error) {
      leave()
      throw error
    }
  }

  #running(): AgentClient {
    if (!this.#agent) throw new CoracleError('NOT_RUNNING', 'the guest does not run')
    return this.#agent
  }

  async release(): Promise<void> {
    const machine = await this.#machine?.catch(() => undefined)
    if (machine === undefined) return
    if (this.#over && this.#agent) {
      const gone = new Promise((resolve) => setTimeout(resolve, SHUTDOWN).unref())
      await Promise.race([this.#agent.shutdown().catch(() => undefined), machine.exited, gone])
    }
    this.#over = true
    this.#agent?.destroy()
    this.#agent = undefined
    await machine.close()
  }

  #agentFailed(machine: GuestMachine, error: CoracleError): void {
    if (this.#over) return
    // Where the machine is ending too, that is the better reason: it is given a moment to say so.
    const timer = setTimeout(() => this.#end({ exitCode: error.exit, error: error.message }), 1000)
    void machine.exited.then(() => clearTimeout(timer))
  }

  #machineEnded(machine: GuestMachine, end: GuestEnd): void {
    if (this.#over) return
    const error = this.#failure(machine, end.reason)
    this.#end({ exitCode: end.killed ? 128 + SIGKILL : error.exit, error: error.message })
  }

  #end(end: WorkloadEnd): void {
    this.#over = true
    this.#resolveEnd(end)
  }

  /** Where the guest said something before it failed, the message tells where that is. */
  #failure(machine: GuestMachine, reason: string): CoracleError {
    const said = machine.console.trim() !== ''
    return new CoracleError(
      'GUEST_FAILED',
      said ? `${reason} (its console: ${sandboxFiles(this.#spec).console})` : reason,
    )
  }
}

/** Those of networks, and those of virtual functions, which the agent finds by their addresses just so. */
function interfacesOf({ network, devices = [] }: SandboxSpec): SandboxInterface[] {
  const interfaces = [...(network?.interfaces ?? [])]
  for (const device of devices) {
    if (device.kind !== 'sriov') continue
    const taken = new Set(interfaces.map(({ name }) => name))
    let free = 0
    while (taken.has(`eth${free}`)) free++
    const { name = `eth${free}`, mac, addresses, gateways, mtu = 0 } = device
    interfaces.push({ name, mac, addresses, gateways, mtu })
  }
  return interfaces
}

/** Files for the agent, named by their places in the list. */
function givenFiles(files: readonly SandboxFile[] = []): { name: string; mode: number; data: Buffer }[] {
  return files.map(({ content }, i) => ({ name: `${i}`, mode: 0o644, data: Buffer.from(content) }))
}

const boundFiles = (files: readonly SandboxFile[] = []): { file: SandboxFile; source: string }[] =>
  files.map((file, i) => ({ file, source: `/run/c/files/${i}` }))

/** Where the agent puts a share. @throws CoracleError SANDBOX_FAILED where the machine has none for it */
function sharedSource(mount: SandboxMount, share: GuestShare | undefined): SharedSource {
  if (!share) throw new CoracleError('SANDBOX_FAILED', `nothing shares ${mount.source} with the guest`)
  const { tag, isFolder } = share
  return { mount, source: isFolder ? `/run/v/${tag}` : `/run/v/${tag}/${SHARED_FILE}`, isFolder }
}

/** A guest need not answer, and others wait meanwhile. @throws CoracleError GUEST_FAILED after {@link ANSWER} */
async function soon<T>(answer: Promise<T>): Promise<T> {
  const stop = new AbortController()
  const late = sleep(ANSWER, undefined, { signal: stop.signal }).then(() => {
    throw new CoracleError('GUEST_FAILED', `the guest does not answer within ${ANSWER / 1000} s`)
  })
  late.catch(() => undefined)
  try {
    return await Promise.race([answer, late])
  } finally {
    stop.abort()
  }
}

const now = (): bigint => BigInt(Date.now()) * NANOSECONDS
