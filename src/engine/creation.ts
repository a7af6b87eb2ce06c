import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import type { Image } from '../image/image.js'
import type { SandboxSpec } from '../isolation/sandbox.js'
import { buildBundle } from './bundle.js'
import { cgroupParentOf } from './cgroup-parent.js'
import { cgroupLimits, cgroupsOfHost } from './cgroup-limits.js'
import { deviceFilesOf, devicesOf } from './devices.js'
import type { Events } from './events.js'
import { requestFrom, specFrom } from './going-on.js'
import { settleHealthCheck } from './health-check.js'
import { checkSharing } from './host-sharing.js'
import { chooseHypervisor, type Host } from './host.js'
import type { EngineImages } from './images.js'
import { settleJoins } from './joins.js'
import { cpuLimit, cpuSharesOf, memoryLimit } from './limits.js'
import { logBounds } from './log-bounds.js'
import { type MountPoint, planMounts } from './mounts.js'
import { checkName, generateId } from './name.js'
import { type Networking, defaultHostname, isOnNetworks } from './networking.js'
import { blockIo, sandboxRates } from './rates.js'
import type { ContainerRecord, CreateRequest } from './record.js'
import { signalNumber } from './signal.js'
import type { Snapshots } from './snapshots.js'
import type { ContainerStore } from './store.js'
import type { Volumes } from './volumes.js'

const DEFAULT_STOP_TIMEOUT = 10
const DEFAULT_DISK_SIZE = 10 * 1024 ** 3

/** The answer to a creation. */
export interface Created {
  readonly id: string
  /** A line each, for the user. */
  readonly warnings: readonly string[]
}

/** What creations stand on. */
export interface CreationInit {
  readonly images: EngineImages
  readonly containers: ContainerStore
  readonly snapshots: Snapshots
  readonly volumes: Volumes
  readonly networking: Networking
  readonly events: Events
  /** Folder on a tmpfs of what ends with a boot. */
  readonly run: string
  /** Looked at anew for each container. */
  readonly host: () => Host
  /** Removes one that was not made whole, with its volumes. */
  remove(id: string): Promise<void>
  /** What of a container is carried out here, by a process that stays. */
  stays(): { readonly restarts: boolean; readonly health: boolean }
}

/** How what is asked for becomes a container's record. */
export class Creation {
  readonly #init: CreationInit

  constructor(init: CreationInit) {
    this.#init = init
  }

  /** @throws CoracleError NO_SUCH_IMAGE, CONFLICT (the name), INVALID_ARGUMENT, MEMORY_SIZE, KVM_UNAVAILABLE */
  async create(asked: CreateRequest): Promise<Created> {
    const { isolation = 'microvm' } = asked
    if (asked.name !== undefined) checkName(asked.name)
    if (asked.from !== undefined) return this.#createFrom(asked, asked.from)
    const host = this.#init.host()
    const memory = memoryLimit(asked.memory ?? 0, isolation, host)
    const cpus = cpuLimit(asked.nanoCpus ?? 0, isolation, host)
    const cpuShares = cpuSharesOf(asked.cpuShares)
    const cgroups = cgroupsOfHost()
    const further = cgroupLimits(asked.cgroupLimits ?? {}, asked.memory ?? 0, isolation, {
      ...host,
      ...cgroups,
    })
    const log = asked.log && logBounds(asked.log)
    if (isolation !== 'microvm' && asked.hypervisor !== undefined && asked.hypervisor !== 'auto')
      throw new CoracleError('INVALID_ARGUMENT', `a hypervisor goes with isolation microvm, not ${isolation}`)
    const choice = isolation === 'microvm' ? chooseHypervisor(asked.hypervisor ?? 'auto', host) : undefined
    const devices = devicesOf(asked, isolation, choice)
    checkSharing(asked, isolation)
    const parent = asked.cgroupParent && cgroupParentOf(asked.cgroupParent)
    const id = generateId()
    const { request: network, warnings } = this.#init.networking.settle(
      asked,
      { isolation, ...(choice ? { hypervisor: choice.hypervisor } : {}) },
      (reference) => this.#init.containers.resolve(reference),
    )
    const { endpoints: _, ...kept } = asked
    const joins = settleJoins(asked, (reference) => this.#init.containers.find(reference))
    const links = asked.links?.map(({ container, alias }) => ({
      container: this.#init.containers.resolve(container),
      alias,
    }))
    if (links && !isOnNetworks(network))
      throw new CoracleError(
        'INVALID_ARGUMENT',
        `conflicting options: links and network mode ${network.networkMode}`,
      )
    const request = {
      ...kept,
      ...network,
      ...joins,
      ...(parent && { cgroupParent: parent }),
      ...(links && { links }),
    }
    const hostname = hostnameOf(request, id)

    const add = async (): Promise<void> => {
      // The lock also keeps the image from being removed between the look at it and the record that needs it.
      using _lock = await this.#init.containers.lockAll()
      const image = this.#init.images.get(request.image)
      const stopSignal = signalNumber(request.stopSignal || image.config.StopSignal || 'TERM')
      const healthCheck = settleHealthCheck(request.healthcheck, image.config.Healthcheck)
      const inGuest = isolation === 'microvm'
      const name = this.#init.containers.freeName(request.name)
      const declared = request.ignoreVolumes ? [] : Object.keys(image.config.Volumes ?? {})
      const planned = planMounts(request, declared, (other) => this.#init.containers.find(other).mounts ?? [])
      const bundle = buildBundle({
        request,
        image: image.config,
        hostname,
        hostNetwork: request.networkMode === 'host',
        isolation,
        unifiedCgroups: inGuest || cgroups.unified,
        resources: further.resources,
        blockIo: inGuest ? undefined : blockIo(request),
        mounts: planned,
      })
      const spec: SandboxSpec = {
        id,
        isolation,
        ...(choice ? { hypervisor: choice.hypervisor } : {}),
        ...(request.cold === true ? { cold: true } : {}),
        ...devices,
        ...deviceFilesOf(request, isolation),
        layers: image.layers.map(({ diffId, path, size }) => ({ diffId, path, size })),
        bundle,
        ...sandboxRates(request, isolation, choice?.hypervisor),
        ...(request.init === true && { init: true }),
        tty: request.tty ?? false,
        openStdin: request.openStdin ?? false,
        stdinOnce: request.stdinOnce ?? false,
        memory,
        cpus,
        ...(cpuShares !== undefined && { cpuShares }),
        ...(request.cgroupParent && { cgroupParent: request.cgroupParent }),
        ...(log && { log }),
        hostname,
        diskSize: request.diskSize ?? DEFAULT_DISK_SIZE,
        ...this.#foldersOf(id),
      }
      await this.#init.volumes.settle(planned, (mounts) => {
        this.#add({
          spec: { ...spec, ...sharedOf(mounts) },
          name,
          imageId: image.id,
          request: withLabels(request, image),
          stopSignal,
          ...(healthCheck && { healthCheck }),
          ...(mounts.length > 0 && { mounts }),
        })
      })
    }
    await add()
    try {
      await this.#init.volumes.populate(id)
    } catch (error) {
      await this.#init.remove(id).catch(() => undefined)
      throw error
    }
    if (choice && (request.hypervisor ?? 'auto') === 'auto')
      warnings.push(`hypervisor=${choice.hypervisor}: ${choice.reason}`)
    return { id, warnings: [...warnings, ...further.warnings, ...this.#daemonWarnings(id, request)] }
  }

  /** One that goes on from a snapshot. */
  async #createFrom(asked: CreateRequest, from: string): Promise<Created> {
    const { container } = this.#init.snapshots.read(from)
    if (asked.image !== '' && this.#init.images.get(asked.image).id !== container.imageId)
      throw new CoracleError('INVALID_ARGUMENT', `the snapshot ${from} is not of image ${asked.image}`)
    const wanted = requestFrom(container, asked, this.#init.host())
    const id = generateId()
    const { request: network, warnings } = this.#init.networking.settle(wanted, container.spec, (reference) =>
      this.#init.containers.resolve(reference),
    )
    const { endpoints: _, ...kept } = wanted
    const request = { ...kept, ...network }
    const { stateDirectory, runDirectory } = this.#foldersOf(id)
    const own = {
      id,
      hostname: hostnameOf(request, id),
      stdinOnce: asked.stdinOnce ?? container.spec.stdinOnce,
      stateDirectory,
      runDirectory,
    }
    const spec = {
      ...specFrom(container.spec, this.#init.snapshots.folder(from), own),
      ...sandboxRates(request, 'microvm', 'kvm'),
    }
    using _lock = await this.#init.containers.lockAll()
    const { imageId } = this.#init.snapshots.read(from).container
    const stopSignal = asked.stopSignal ? signalNumber(asked.stopSignal) : container.stopSignal
    const { mounts, healthCheck } = container
    this.#add({
      spec,
      name: this.#init.containers.freeName(request.name),
      imageId,
      request,
      stopSignal,
      ...(mounts && { mounts }),
      ...(healthCheck && { healthCheck }),
    })
    return { id, warnings: [...warnings, ...this.#daemonWarnings(id, request)] }
  }

  /** What of a container only a daemon carries out. */
  #daemonWarnings(id: string, { restart }: CreateRequest): string[] {
    const warnings = []
    if ((restart?.name ?? 'no') !== 'no' && !this.#init.stays().restarts)
      warnings.push(
        'restart policies are carried out by the daemon, and none runs: see coracle daemon --help',
      )
    if (!this.#init.stays().health && this.#init.containers.read(id)?.healthCheck)
      warnings.push('health checks are carried out by the daemon, and none runs: see coracle daemon --help')
    return warnings
  }

  #foldersOf(id: string): Pick<SandboxSpec, 'stateDirectory' | 'runDirectory'> {
    return {
      stateDirectory: join(this.#init.containers.directory(id), 'sandbox'),
      runDirectory: join(this.#init.run, 'c', id.slice(0, 16)),
    }
  }

  /** Under the store's lock. */
  #add(
    made: Pick<
      ContainerRecord,
      'spec' | 'name' | 'imageId' | 'request' | 'stopSignal' | 'mounts' | 'healthCheck'
    >,
  ): void {
    const { spec, request } = made
    const record: ContainerRecord = {
      ...made,
      version: 1,
      id: spec.id,
      created: new Date().toISOString(),
      stopTimeout: request.stopTimeout ?? DEFAULT_STOP_TIMEOUT,
      state: { status: 'created' },
      exits: 0,
    }
    this.#init.containers.add(record)
    this.#init.events.container('create', record)
  }
}

function hostnameOf(request: CreateRequest, id: string): string {
  const hostname = request.hostname || defaultHostname(id, request)
  if (!/^(?!-)[a-zA-Z0-9-]{1,63}(\.[a-zA-Z0-9-]{1,63})*$/.test(hostname) || hostname.length > 64)
    throw new CoracleError('INVALID_ARGUMENT', `invalid hostname: ${hostname.slice(0, 64)}`)
  return hostname
}

/** What of the mounts is the host's, for the sandbox. */
function sharedOf(mounts: readonly MountPoint[]): Pick<SandboxSpec, 'mounts'> {
  const shared = mounts.flatMap(({ type, source, destination, readOnly, nonRecursive }) =>
    type === 'tmpfs' ? [] : [{ source, destination, readOnly, ...(nonRecursive && { nonRecursive: true }) }],
  )
  return shared.length > 0 ? { mounts: shared } : {}
}

function withLabels(request: CreateRequest, image: Image): CreateRequest {
  return { ...request, labels: { ...image.config.Labels, ...request.labels } }
}
