/*
 * The parameters of queries and the fields of bodies of Docker's Engine API 1.51 (api/docs/v1.51.yaml), without those of
 * a swarm and of plugins, which have no endpoints here. By endpoint, and by the object whose fields they are.
 */

/** Parameters. */
export const PARAMETERS = `
GET /containers/json: all limit size filters
POST /containers/create: name platform
GET /containers/{id}/json: size
GET /containers/{id}/top: ps_args
GET /containers/{id}/logs: follow stdout stderr since until timestamps tail details
GET /containers/{id}/stats: stream one-shot
POST /containers/{id}/resize: h w
POST /containers/{id}/start: detachKeys
POST /containers/{id}/stop: signal t
POST /containers/{id}/restart: signal t
POST /containers/{id}/kill: signal
POST /containers/{id}/rename: name
POST /containers/{id}/attach: detachKeys logs stream stdin stdout stderr
GET /containers/{id}/attach/ws: detachKeys logs stream stdin stdout stderr
POST /containers/{id}/wait: condition
DELETE /containers/{id}: v force link
HEAD /containers/{id}/archive: path
GET /containers/{id}/archive: path
PUT /containers/{id}/archive: path noOverwriteDirNonDir copyUIDGID
POST /containers/prune: filters
GET /images/json: all filters shared-size digests manifests
POST /build: dockerfile t extrahosts remote q nocache cachefrom pull rm forcerm memory memswap cpushares cpusetcpus cpuperiod cpuquota buildargs shmsize squash labels networkmode platform target outputs version
POST /build/prune: keep-storage reserved-space max-used-space min-free-space all filters
POST /images/create: fromImage fromSrc repo tag message changes platform
GET /images/{name...}/json: manifests platform
GET /images/{name...}/history: platform
POST /images/{name...}/push: tag platform
POST /images/{name...}/tag: repo tag
DELETE /images/{name...}: force noprune platforms
GET /images/search: term limit filters
POST /images/prune: filters
POST /commit: container repo tag comment author pause changes
GET /events: since until filters
GET /system/df: type
GET /images/{name...}/get: platform
GET /images/get: names platform
POST /images/load: quiet platform
POST /exec/{id}/resize: h w
GET /volumes: filters
DELETE /volumes/{name}: force
POST /volumes/prune: filters
GET /networks: filters
GET /networks/{id}: verbose scope
POST /networks/prune: filters
`

/** Fields. `Config` is the body of a creation, beside HostConfig and NetworkingConfig. */
const RESOURCES =
  'CpuShares Memory CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps ' +
  'BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems Devices ' +
  'DeviceCgroupRules DeviceRequests KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness NanoCpus OomKillDisable ' +
  'Init PidsLimit Ulimits CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth'
const CONFIG =
  'Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts Tty OpenStdin StdinOnce Env Cmd Healthcheck ' +
  'ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled MacAddress OnBuild Labels StopSignal StopTimeout Shell'
export const FIELDS = `
Config: ${CONFIG} HostConfig NetworkingConfig
HostConfig: ${RESOURCES} Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove VolumeDriver VolumesFrom Mounts ConsoleSize Annotations CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged PublishAllPorts ReadonlyRootfs SecurityOpt StorageOpt Tmpfs UTSMode UsernsMode ShmSize Sysctls Runtime Isolation MaskedPaths ReadonlyPaths
an update: ${RESOURCES} RestartPolicy
DeviceRequest: Driver Count DeviceIDs Capabilities Options
HealthConfig: Test Interval Timeout Retries StartPeriod StartInterval
Mount: Target Source Type ReadOnly Consistency BindOptions VolumeOptions ImageOptions TmpfsOptions
BindOptions: Propagation NonRecursive CreateMountpoint ReadOnlyNonRecursive ReadOnlyForceRecursive
EndpointSettings: IPAMConfig Links MacAddress Aliases DriverOpts GwPriority NetworkID EndpointID Gateway IPAddress IPPrefixLen IPv6Gateway GlobalIPv6Address GlobalIPv6PrefixLen DNSNames
EndpointIPAMConfig: IPv4Address IPv6Address LinkLocalIPs
a commit: ${CONFIG}
ExecConfig: AttachStdin AttachStdout AttachStderr ConsoleSize DetachKeys Tty Env Cmd Privileged User WorkingDir
ExecStartConfig: Detach Tty ConsoleSize
a network: Name Driver Scope Internal Attachable Ingress ConfigOnly ConfigFrom IPAM EnableIPv4 EnableIPv6 Options Labels
a connection: Container EndpointConfig
a disconnection: Container Force
a volume: Name Driver DriverOpts Labels ClusterVolumeSpec
Credentials: username password email serveraddress
`

/** `WHERE: NAME NAME…` lines as pairs. */
export const rows = (text: string): (readonly [where: string, name: string])[] =>
  text
    .trim()
    .split('\n')
    .flatMap((line) => {
      const [where = '', names = ''] = line.split(': ')
      return names.split(' ').map((name) => [where, name] as const)
    })
