import { CoracleError } from '../../errors.js'
import { Machine, type MachineListeners } from '../../vmm/machine.js'
import { Snapshot, type SnapshotFiles } from '../../vmm/snapshot/snapshot.js'
import type { AgentClient } from './agent-client.js'
import { greet } from './greet.js'
import { KvmMachine, baseDevices } from './kvm-machine.js'

/** What an {@link IdleGuest} is made of: paths of descriptors. */
export interface IdleParts {
  readonly kvm: string
  readonly tools: string
  readonly template: SnapshotFiles
}

/**
 * A guest that goes on from a template before there is a container for it, its agent greeted. So no container waits for
 * threads to start, for memory to be mapped, and for the guest to find the host again. It is not paused: a clock that
 * has jumped by hours is nothing to begin with.
 */
export class IdleGuest {
  readonly agent: AgentClient
  readonly #machine: Machine
  readonly #owner: { of?: MachineListeners }
  #ended = false

  private constructor(machine: Machine, agent: AgentClient, owner: { of?: MachineListeners }) {
    this.#machine = machine
    this.agent = agent
    this.#owner = owner
    void machine.exited.then(() => (this.#ended = true))
  }

  /** @throws CoracleError GUEST_FAILED, and those of {@link Machine.restore} */
  static async make({ kvm, tools, template }: IdleParts): Promise<IdleGuest> {
    const owner: { of?: MachineListeners } = {}
    using snapshot = Snapshot.open(template)
    const machine = await Machine.restore({
      snapshot,
      kvm,
      devices: baseDevices(tools),
      onConsole: (bytes) => owner.of?.onConsole?.(bytes),
      onLog: (line) => owner.of?.onLog?.(line),
    })
    const guest = KvmMachine.around(machine)
    const failed = (reason: string): CoracleError => new CoracleError('GUEST_FAILED', reason)
    const lost = guest.exited.then(({ reason }) => Promise.reject(failed(reason)))
    const agent = await Promise.race([greet(guest, failed), lost])
    // In this machine too: what a guest touches first has to be mapped first.
    await Promise.race([agent.rescan().then(() => agent.rehearse()), lost])
    return new IdleGuest(machine, agent, owner)
  }

  /**
   * The machine, which runs, and is the caller's from now on; undefined where it has ended meanwhile.
   * @param listeners hear of it from here on
   */
  take(listeners: MachineListeners): Machine | undefined {
    this.#owner.of = listeners
    return this.#ended ? undefined : this.#machine
  }
}
