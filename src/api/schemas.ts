import type { XStatic } from 'typebox/schema'

/*
 * What clients may send, as JSON Schema: typebox reads the types off them at compile time and costs nothing at run
 * time, ajv checks the bytes. Fields that are not named here are let through and ignored, as Docker does, unless
 * unhonoured.ts refuses them.
 */

const text = { type: 'string', maxLength: 65_536 } as const
const short = { type: 'string', maxLength: 4096 } as const
const texts = { type: ['array', 'null'], maxItems: 65_536, items: text } as const
/** Docker's own clients send a list; Docker takes a single string too. */
const strings = { anyOf: [texts, text] } as const
/** Blkio limits; a rate of nothing would be no limit to Docker, and a mistake. */
const rates = {
  type: ['array', 'null'],
  maxItems: 256,
  items: {
    type: 'object',
    required: ['Path', 'Rate'],
    properties: { Path: short, Rate: { type: 'integer', minimum: 1, maximum: Number.MAX_SAFE_INTEGER } },
  },
} as const
const dictionary = { type: ['object', 'null'], maxProperties: 4096, additionalProperties: text } as const
const integer = {
  type: 'integer',
  minimum: Number.MIN_SAFE_INTEGER,
  maximum: Number.MAX_SAFE_INTEGER,
} as const
const flag = { type: ['boolean', 'null'] } as const

const ULIMIT = {
  type: 'object',
  required: ['Name', 'Soft', 'Hard'],
  properties: { Name: short, Soft: integer, Hard: integer },
} as const

const PORT_BINDING = { type: 'object', properties: { HostIp: short, HostPort: short } } as const

const MOUNT = {
  type: 'object',
  required: ['Type'],
  properties: {
    Type: short,
    Source: short,
    Target: short,
    ReadOnly: flag,
    Consistency: short,
    BindOptions: {
      type: ['object', 'null'],
      properties: {
        Propagation: short,
        NonRecursive: flag,
        CreateMountpoint: flag,
        ReadOnlyNonRecursive: flag,
        ReadOnlyForceRecursive: flag,
      },
    },
    VolumeOptions: {
      type: ['object', 'null'],
      properties: {
        NoCopy: flag,
        Labels: dictionary,
        Subpath: short,
        DriverConfig: { type: ['object', 'null'], properties: { Name: short, Options: dictionary } },
      },
    },
    ImageOptions: { type: ['object', 'null'] },
    TmpfsOptions: {
      type: ['object', 'null'],
      properties: {
        SizeBytes: { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER },
        Mode: { type: 'integer', minimum: 0, maximum: 0o7777 },
        Options: { type: ['array', 'null'], maxItems: 64, items: { type: 'array' } },
      },
    },
  },
} as const

/** EndpointSettings: what a container asks of a network. */
export const ENDPOINT = {
  type: ['object', 'null'],
  properties: {
    IPAMConfig: {
      type: ['object', 'null'],
      properties: { IPv4Address: short, IPv6Address: short, LinkLocalIPs: texts },
    },
    Links: texts,
    Aliases: texts,
    MacAddress: short,
    DriverOpts: dictionary,
    GwPriority: integer,
  },
} as const

const DEVICE = {
  type: 'object',
  properties: { PathOnHost: short, PathInContainer: short, CgroupPermissions: short },
} as const

export const HOST_CONFIG = {
  type: 'object',
  properties: {
    AutoRemove: flag,
    Isolation: short,
    Runtime: short,
    Memory: integer,
    NanoCpus: integer,
    CpuPeriod: integer,
    CpuQuota: integer,
    CpuShares: integer,
    ReadonlyRootfs: flag,
    CapAdd: texts,
    CapDrop: texts,
    Ulimits: { type: ['array', 'null'], maxItems: 64, items: ULIMIT },
    ShmSize: { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER },
    Tmpfs: dictionary,
    Sysctls: dictionary,
    SecurityOpt: texts,
    BlkioDeviceReadBps: rates,
    BlkioDeviceWriteBps: rates,
    BlkioDeviceReadIOps: rates,
    BlkioDeviceWriteIOps: rates,
    PidsLimit: { type: ['integer', 'null'], maximum: 4_194_304 },
    ConsoleSize: {
      type: ['array', 'null'],
      maxItems: 2,
      items: { type: 'integer', minimum: 0, maximum: 65_535 },
    },
    Annotations: dictionary,
    Privileged: flag,
    OomScoreAdj: integer,
    CgroupnsMode: short,
    MaskedPaths: texts,
    ReadonlyPaths: texts,
    StorageOpt: dictionary,
    DeviceCgroupRules: texts,
    MemoryReservation: integer,
    MemorySwap: integer,
    MemorySwappiness: { type: ['integer', 'null'] },
    OomKillDisable: flag,
    CpusetCpus: short,
    CpusetMems: short,
    CpuRealtimePeriod: integer,
    CpuRealtimeRuntime: integer,
    BlkioWeight: integer,
    BlkioWeightDevice: { type: ['array', 'null'], maxItems: 64 },
    PublishAllPorts: flag,
    NetworkMode: short,
    PidMode: short,
    IpcMode: short,
    UTSMode: short,
    UsernsMode: short,
    CgroupParent: short,
    Init: flag,
    Binds: texts,
    Mounts: { type: ['array', 'null'], maxItems: 1024, items: MOUNT },
    VolumesFrom: texts,
    VolumeDriver: short,
    Devices: { type: ['array', 'null'], maxItems: 1024, items: DEVICE },
    DeviceRequests: { type: ['array', 'null'], maxItems: 1024, items: { type: 'object' } },
    PortBindings: {
      type: ['object', 'null'],
      maxProperties: 4096,
      additionalProperties: { type: ['array', 'null'], maxItems: 4096, items: PORT_BINDING },
    },
    Links: texts,
    ExtraHosts: texts,
    Dns: texts,
    DnsSearch: texts,
    DnsOptions: texts,
    GroupAdd: texts,
    RestartPolicy: {
      type: ['object', 'null'],
      properties: { Name: short, MaximumRetryCount: integer },
    },
    LogConfig: { type: ['object', 'null'], properties: { Type: short, Config: dictionary } },
  },
} as const

const HEALTHCHECK = {
  type: ['object', 'null'],
  properties: {
    Test: texts,
    Interval: integer,
    Timeout: integer,
    StartPeriod: integer,
    StartInterval: integer,
    Retries: integer,
  },
} as const

export const CREATE_BODY = {
  type: 'object',
  required: ['Image'],
  properties: {
    Image: { type: 'string', maxLength: 1024 },
    Cmd: strings,
    Entrypoint: strings,
    Env: texts,
    WorkingDir: short,
    User: short,
    Hostname: short,
    Domainname: short,
    MacAddress: short,
    NetworkDisabled: flag,
    ExposedPorts: { type: ['object', 'null'], maxProperties: 4096 },
    NetworkingConfig: {
      type: ['object', 'null'],
      properties: {
        EndpointsConfig: { type: ['object', 'null'], maxProperties: 256, additionalProperties: ENDPOINT },
      },
    },
    Labels: dictionary,
    Tty: flag,
    OpenStdin: flag,
    StdinOnce: flag,
    StopSignal: short,
    StopTimeout: { type: ['integer', 'null'], minimum: -1, maximum: 2_147_483 },
    Volumes: { type: ['object', 'null'], maxProperties: 1024 },
    Healthcheck: HEALTHCHECK,
    HostConfig: { anyOf: [HOST_CONFIG, { type: 'null' }] },
  },
} as const

const CONSOLE_SIZE = HOST_CONFIG.properties.ConsoleSize

export const EXEC_BODY = {
  type: 'object',
  properties: {
    Cmd: strings,
    Env: texts,
    WorkingDir: short,
    User: short,
    Tty: flag,
    Privileged: flag,
    AttachStdin: flag,
    AttachStdout: flag,
    AttachStderr: flag,
    ConsoleSize: CONSOLE_SIZE,
    DetachKeys: short,
  },
} as const

export const EXEC_START_BODY = {
  type: 'object',
  properties: { Detach: flag, Tty: flag, ConsoleSize: CONSOLE_SIZE },
} as const

/** The configuration of a commit: what is not named here is not taken. */
export const COMMIT_BODY = {
  type: 'object',
  properties: {
    Cmd: strings,
    Entrypoint: strings,
    Env: texts,
    User: short,
    WorkingDir: short,
    Labels: dictionary,
    StopSignal: short,
    ExposedPorts: { type: ['object', 'null'], maxProperties: 4096 },
    Volumes: { type: ['object', 'null'], maxProperties: 1024 },
    Healthcheck: HEALTHCHECK,
    OnBuild: texts,
    Shell: texts,
  },
} as const

/** What of a container can be changed; the rest of HostConfig's limits is refused where it is set. */
export const UPDATE_BODY = {
  type: 'object',
  properties: {
    Memory: integer,
    NanoCpus: integer,
    CpuPeriod: integer,
    CpuQuota: integer,
    PidsLimit: HOST_CONFIG.properties.PidsLimit,
    RestartPolicy: HOST_CONFIG.properties.RestartPolicy,
    CpuShares: integer,
    CpusetCpus: short,
    CpusetMems: short,
    MemoryReservation: integer,
    MemorySwap: integer,
    BlkioWeight: integer,
  },
} as const

export type UpdateBody = XStatic<typeof UPDATE_BODY>
export type CommitBody = XStatic<typeof COMMIT_BODY>
export type ExecBody = XStatic<typeof EXEC_BODY>
export type ExecStartBody = XStatic<typeof EXEC_START_BODY>
export type CreateBody = XStatic<typeof CREATE_BODY>
export type HostConfig = XStatic<typeof HOST_CONFIG>

/** A user's credentials: the body of /auth, and what X-Registry-Auth holds. */
export const AUTH_BODY = {
  type: 'object',
  properties: {
    username: text,
    password: text,
    auth: text,
    email: text,
    serveraddress: short,
    identitytoken: text,
    registrytoken: text,
  },
} as const

/** Credentials by registry: what X-Registry-Config holds. */
export const AUTHS = { type: 'object', additionalProperties: AUTH_BODY } as const

export type AuthBody = XStatic<typeof AUTH_BODY>

const IPAM_CONFIG = {
  type: 'object',
  properties: { Subnet: short, IPRange: short, Gateway: short, AuxiliaryAddresses: dictionary },
} as const

export const NETWORK_BODY = {
  type: 'object',
  required: ['Name'],
  properties: {
    Name: { type: 'string', minLength: 1, maxLength: 255 },
    Driver: short,
    Scope: short,
    Internal: flag,
    Attachable: flag,
    Ingress: flag,
    ConfigOnly: flag,
    EnableIPv4: flag,
    EnableIPv6: flag,
    IPAM: {
      type: ['object', 'null'],
      properties: {
        Driver: short,
        Options: dictionary,
        Config: { type: ['array', 'null'], maxItems: 64, items: IPAM_CONFIG },
      },
    },
    Options: dictionary,
    Labels: dictionary,
  },
} as const

export const CONNECT_BODY = {
  type: 'object',
  required: ['Container'],
  properties: { Container: short, EndpointConfig: ENDPOINT },
} as const

export const DISCONNECT_BODY = {
  type: 'object',
  required: ['Container'],
  properties: { Container: short, Force: flag },
} as const

export const VOLUME_BODY = {
  type: 'object',
  properties: {
    Name: short,
    Driver: short,
    DriverOpts: dictionary,
    Labels: dictionary,
    ClusterVolumeSpec: { type: ['object', 'null'] },
  },
} as const

export type MountBody = XStatic<typeof MOUNT>
export type VolumeBody = XStatic<typeof VOLUME_BODY>
export type Endpoint = XStatic<typeof ENDPOINT>
export type NetworkBody = XStatic<typeof NETWORK_BODY>
export type ConnectBody = XStatic<typeof CONNECT_BODY>
export type DisconnectBody = XStatic<typeof DISCONNECT_BODY>
