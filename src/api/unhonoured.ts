import { CoracleError } from '../errors.js'
import type { Query } from './router.js'

/*
 * What Docker's API 1.51 has and this one does nothing with, by endpoint for the parameters of a query and by the name
 * of the object for the fields of a body. What stands in no table here is honoured: a test walks the reference.
 */

/** What would change what is done: names by where they stand, refused where a client sets them. */
const REFUSED: Readonly<Record<string, string>> = {
  'DELETE /containers/{id}': 'link',
  'POST /build':
    'squash securityopt cgroupparent cpusetcpus cpusetmems cpushares cpuperiod cpuquota memswap outputs remote',
  'POST /build/prune': 'keep-storage reserved-space max-used-space min-free-space',
  Config: 'OnBuild Shell',
  HostConfig: 'BlkioWeightDevice Cgroup CpuRealtimePeriod CpuRealtimeRuntime KernelMemory KernelMemoryTCP',
  DeviceRequest: 'Count Capabilities Options',
  EndpointSettings: 'Links GwPriority',
  EndpointIPAMConfig: 'LinkLocalIPs',
  'an update':
    'BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CgroupParent ' +
    'CpuRealtimePeriod CpuRealtimeRuntime DeviceCgroupRules DeviceRequests Devices Init KernelMemory KernelMemoryTCP ' +
    'MemorySwappiness OomKillDisable Ulimits',
  'a network': 'Ingress ConfigOnly ConfigFrom',
  'a volume': 'ClusterVolumeSpec',
}

/** Fields of `Resources` that Docker's engine for Windows has. */
const WINDOWS = 'CpuCount CpuPercent IOMaximumBandwidth IOMaximumIOps'

/** What is taken and has no effect, since there is nothing to do for it, and why. */
export const HARMLESS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'POST /containers/{id}/start': { detachKeys: 'a start carries no streams' },
  'GET /containers/{id}/logs': { details: 'no log driver here keeps any' },
  'PUT /containers/{id}/archive': { copyUIDGID: 'files are always whose the archive says' },
  'GET /images/json': {
    digests: 'they are always told',
    manifests: 'Docker tells them where its store keeps several platforms; of each image there is one here',
  },
  'GET /images/{name...}/json': { manifests: 'as of GET /images/json' },
  'DELETE /images/{name...}': { noprune: 'images have no parents that would go along' },
  'POST /build': {
    rm: 'nothing is left of a step that would be removed',
    forcerm: 'nothing is left of a step that would be removed',
    cachefrom: 'every image that is here is looked at, by content',
  },
  'POST /build/prune': { all: 'all that is not in use goes in any case' },
  'GET /networks/{id}': { verbose: "it adds a swarm's services" },
  Config: {
    ArgsEscaped: 'for Windows',
    AttachStdin: 'an attachment says what it wants',
    AttachStdout: 'an attachment says what it wants',
    AttachStderr: 'an attachment says what it wants',
  },
  HostConfig: { ContainerIDFile: 'the client writes it' },
  Mount: { Consistency: 'for Docker on macOS' },
  BindOptions: { ReadOnlyForceRecursive: 'what is read-only is so all the way down, or the start fails' },
  EndpointSettings: Object.fromEntries(
    (
      'NetworkID EndpointID Gateway IPAddress IPPrefixLen IPv6Gateway GlobalIPv6Address GlobalIPv6PrefixLen ' +
      'DNSNames'
    )
      .split(' ')
      .map((name) => [name, "the engine's to say: a client sends back what it read"]),
  ),
  ExecStartConfig: { Tty: "the exec's own is what counts" },
  'a commit': Object.fromEntries(
    (
      'ArgsEscaped AttachStdin AttachStdout AttachStderr Domainname Hostname Image MacAddress NetworkDisabled ' +
      'OpenStdin StdinOnce StopTimeout Tty'
    )
      .split(' ')
      .map((name) => [name, "OCI's configuration of an image has no place for it"]),
  ),
  'a disconnection': { Force: 'it is never refused for a container that hangs' },
  Credentials: { email: 'registries no longer want it' },
}

/** Docker's clients send what was not given as zero, empty or null. */
function isSet(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.values(value).some(isSet)
  return !['', '0', '-1', 'false', 'null', 'undefined'].includes(String(value))
}

/**
 * Refuses fields of a body's object that would be dropped.
 * @param object as it stands in the tables
 * @throws CoracleError NOT_IMPLEMENTED, INVALID_ARGUMENT for what Windows alone has
 */
export function refuseFields(object: string, values: object | null | undefined): void {
  const given = (values ?? {}) as Readonly<Record<string, unknown>>
  const find = (names: string): string | undefined => names.split(' ').find((name) => isSet(given[name]))
  const foreign = find(WINDOWS)
  if (foreign !== undefined) throw new CoracleError('INVALID_ARGUMENT', `${foreign} is for Windows`)
  const unbuilt = find(REFUSED[object] ?? '')
  if (unbuilt !== undefined)
    throw new CoracleError('NOT_IMPLEMENTED', `${unbuilt} of ${object} is not built yet`)
}

/** Refuses parameters of a query that would be dropped. @throws CoracleError NOT_IMPLEMENTED */
export function refuseParameters(endpoint: string, query: Query): void {
  for (const name of (REFUSED[endpoint] ?? '').split(' '))
    if (query.texts(name).some(isSet))
      throw new CoracleError('NOT_IMPLEMENTED', `${name} of ${endpoint} is not built yet`)
}
