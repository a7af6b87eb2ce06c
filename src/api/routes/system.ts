import { arch, hostname, release, totalmem, version as kernelBuild } from 'node:os'
import { statusOf } from '../shapes.js'
import { API_VERSION, MINIMUM_API_VERSION, type Handler, type Route } from '../router.js'
import { sendJson } from '../answer.js'
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

export const SYSTEM_ROUTES: readonly Route[] = [
  { method: 'GET', pattern: '/_ping', handler: ping },
  { method: 'HEAD', pattern: '/_ping', handler: ping },
  { method: 'GET', pattern: '/version', handler: version },
  { method: 'GET', pattern: '/info', handler: info },
]
