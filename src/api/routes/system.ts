import { arch, hostname, release, totalmem, version as kernelBuild } from 'node:os'
import { writtenBytes } from '../../isolation/written.js'
import { imageSummaryShape, statusOf, summaryShape } from '../shapes.js'
import { API_VERSION, MINIMUM_API_VERSION, type Handler, type Route } from '../router.js'
import { beside } from './containers.js'
import { sendJson } from '../answer.js'
import { volumeShape } from './volumes.js'
import { VERSION } from '../version.js'

/** Docker's name of our one architecture. */
const ARCHITECTURE = arch() === 'x64' ? 'amd64' : arch()

const ping: Handler = ({ request, response }) => {
  response
    .writeHead(200, {
      'Content-Type': 'text/plain; charset=utf-8',
      'Builder-Version': '1',
      'Docker-Experimental': 'false',
      'Cache-Control': 'no-cache, no-store, must-revalidate',
      Pragma: 'no-cache',
      Swarm: 'inactive',
    })
    .end(request.method === 'HEAD' ? undefined : 'OK')
}

const version: Handler = ({ response }) =>
  sendJson(response, 200, {
    Platform: { Name: 'Coracle' },
    Components: [
      {
        Name: 'Engine',
        Version: VERSION,
        Details: {
          ApiVersion: API_VERSION,
          MinAPIVersion: MINIMUM_API_VERSION,
          Os: 'linux',
          Arch: ARCHITECTURE,
          KernelVersion: release(),
        },
      },
    ],
    Version: VERSION,
    ApiVersion: API_VERSION,
    MinAPIVersion: MINIMUM_API_VERSION,
    GitCommit: '',
    GoVersion: '',
    Os: 'linux',
    Arch: ARCHITECTURE,
    KernelVersion: release(),
    BuildTime: '',
  })

const info: Handler = async ({ engine, response }) => {
  const containers = await engine.list()
  const count = (status: string): number =>
    containers.filter(({ state }) => statusOf(state) === status).length
  const [running, paused] = [count('running'), count('paused')]
  const host = engine.host
  sendJson(response, 200, {
    ID: hostname(),
    Name: hostname(),
    Containers: containers.length,
    ContainersRunning: running,
    ContainersPaused: paused,
    ContainersStopped: containers.length - running - paused,
    Images: engine.images.list().length,
    Driver: 'erofs',
    DriverStatus: [],
    Plugins: { Volume: ['local'], Network: [], Authorization: null, Log: ['json-file', 'none'] },
    SystemTime: new Date().toISOString(),
    LoggingDriver: 'json-file',
    CgroupDriver: 'cgroupfs',
    NEventsListener: 0,
    KernelVersion: release(),
    OperatingSystem: kernelBuild(),
    OSType: 'linux',
    OSVersion: '',
    Architecture: arch() === 'x64' ? 'x86_64' : arch(),
    IndexServerAddress: '',
    RegistryConfig: null,
    NCPU: host.cpus,
    MemTotal: totalmem(),
    MemoryLimit: true,
    CpuCfsPeriod: true,
    CpuCfsQuota: true,
    PidsLimit: true,
    DockerRootDir: '',
    HttpProxy: '',
    HttpsProxy: '',
    NoProxy: '',
    Labels: [],
    ExperimentalBuild: false,
    ServerVersion: VERSION,
    Runtimes: { microvm: { path: 'coracle' }, process: { path: 'crun' } },
    DefaultRuntime: 'microvm',
    Swarm: { LocalNodeState: 'inactive', ControlAvailable: false, RemoteManagers: null },
    LiveRestoreEnabled: true,
    Isolation: 'microvm',
    InitBinary: '',
    SecurityOptions: ['name=seccomp,profile=builtin'],
    Warnings: [],
  })
}

const diskUsage: Handler = async ({ engine, response }) => {
  const images = engine.images.list()
  const containers = await engine.list()
  const users = new Map<string, number>()
  for (const { imageId } of containers) users.set(imageId, (users.get(imageId) ?? 0) + 1)
  const layers = new Map(images.flatMap(({ layers: all }) => all.map(({ diffId, size }) => [diffId, size])))
  sendJson(response, 200, {
    LayersSize: [...layers.values()].reduce((sum, size) => sum + size, 0),
    Images: images.map((image) => imageSummaryShape(image, users)),
    Containers: containers.map((record) => ({
      ...summaryShape(record, beside(engine, record)),
      SizeRw: writtenBytes(record.spec),
    })),
    Volumes: await Promise.all(
      engine.volumes.list().map(async (volume) => volumeShape(volume, await engine.volumes.size(volume))),
    ),
    BuildCache: [],
  })
}

export const SYSTEM_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/_ping', handler: ping },
  { method: 'HEAD', pattern: '/_ping', handler: ping },
  { method: 'GET', pattern: '/version', handler: version },
  { method: 'GET', pattern: '/info', handler: info },
  { method: 'GET', pattern: '/system/df', handler: diskUsage },
]
