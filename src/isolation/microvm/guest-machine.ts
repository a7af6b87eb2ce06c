import type { Socket } from 'node:net'
import type { SnapshotSink } from '../../vmm/machine.js'
import type { SandboxInterface } from '../sandbox.js'
import type { MachineUsage } from '../stats.js'
import type { AgentClient, GuestMount } from './agent-client.js'
import type { GuestShare } from './shares.js'

/** How a machine ended, in words for the user. */
export interface GuestEnd {
  /** One line, such as `the guest's kernel panicked: …`. */
  readonly reason: string
  /** The machine was killed from outside; nothing is wrong with the guest. */
  readonly killed?: boolean
}

/** The names that the guest has for what the machine gives it. */
export interface GuestDevices {
  /** Absent where the guest has mounted them before: in a clone. */
  readonly tools?: GuestMount
  /** Lowest first. */
  readonly layers: readonly GuestMount[]
  readonly upper: GuestMount
  /** What of the host it sees, in the order of the specification's mounts. @default none */
  readonly shares?: readonly GuestShare[]
  /** Some came while the guest ran, so it has to look for them. @default false */
  readonly plugged?: boolean
}

/** What a machine that goes on from a snapshot has of before: adapters whose cables lead nowhere. */
export interface SavedGuest {
  /** Their slots on the bus, which the guest is to let go of. */
  readonly adapters: readonly number[]
  /** Takes them out, and puts in those that the container has now. */
  exchangeAdapters(): Promise<void>
}

/** A virtual machine with the guest's agent in it, whoever runs its processors. */
export interface GuestMachine {
  readonly devices: GuestDevices
  /** Absent where the guest begins with nothing in it. */
  readonly saved?: SavedGuest
  /** Of a guest that runs already; absent where it is to be started, and greeted. */
  readonly agent?: AgentClient
  /** Accepts the guest's vsock connections to host port `port`; half-open is allowed. */
  listen(port: number, handler: (socket: Socket) => void): void
  /** Lets the guest run; after the calls of {@link listen}. */
  start(): void
  /** Resolves when the machine has ended, for whatever reason. Never rejects. */
  readonly exited: Promise<GuestEnd>
  /** What the guest wrote to its console last. */
  readonly console: string
  /** The processor time that it has used so far, in ms: what stands still does nothing. */
  work(): number
  /** What it costs the host, and what its devices did. @throws CoracleError NOT_RUNNING */
  usage(): Promise<MachineUsage>
  /**
   * Has the guest's balloon take memory, or give it back.
   * @param bytes that it is to take in all; absent: as they are
   * @returns bytes that it has taken, by the guest's word
   */
  balloon(bytes?: number): Promise<number>
  /** What it is made of, as plain data. @throws CoracleError NOT_IMPLEMENTED where that cannot be told, NOT_RUNNING */
  describe(): Promise<object>
  /**
   * Puts a network adapter into the running machine.
   * @returns whether the guest has to look for it
   * @throws CoracleError CONFLICT where no more fit in, SANDBOX_FAILED
   */
  addAdapter(adapter: SandboxInterface): Promise<{ readonly rescan: boolean }>
  /**
   * Takes one out, by its name.
   * @param letGo has the guest let go of what is in that place of bus 0; where it fails, the adapter goes all the same
   */
  removeAdapter(name: string, letGo: (slot: number, function_: number) => Promise<void>): Promise<void>
  /** Makes its processors stand still. @throws CoracleError SANDBOX_FAILED */
  pause(): Promise<void>
  /** Lets them go on. Idempotent. @throws CoracleError SANDBOX_FAILED */
  resume(): Promise<void>
  /** Saves it piece by piece; absent where that cannot be. @throws CoracleError as {@link Machine.send} */
  save?(sink: SnapshotSink): Promise<void>
  /** Ends it as by pulling the plug, and gives everything back. Idempotent. */
  close(): Promise<void>
}
