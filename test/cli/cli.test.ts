import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  createReadStream,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:http'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { PassThrough } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import { fileURLToPath } from 'node:url'
import { pipe } from '@coracle/sys'
import t from 'tap'
import { createApiServer } from '../../src/api/server.js'
import type { Command } from '../../src/cli/command.js'
import { DetachKeys, parseDetachKeys } from '../../src/engine/detach-keys.js'
import { parseSize, showSize } from '../../src/cli/size.js'
import { parseTemplate } from '../../src/cli/template.js'
import { isUnified } from '../../src/isolation/process/cgroup.js'
import type { Engine } from '../../src/engine/engine.js'
import { TestBed, twoDaemons } from '../engine/host.js'
import { type Certificates, makeCertificates } from '../image/registry/certificate.js'

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url))
const bed = new TestBed()
const path = join(bed.root, 'api.sock')
let engine: Engine
let server: Server

t.before(async () => {
  engine = await bed.open()
  server = createApiServer(engine).listen(path)
  await once(server, 'listening')
})
t.teardown(async () => {
  server.closeAllConnections()
  server.close()
  await bed.close()
})

interface Ended {
  status: number | null
  stdout: string
  stderr: string
}

/** The command as a child. @param host where the API is; none: the command hosts the engine */
function start(words: string[], host = `unix://${path}`, env = {}): ChildProcessWithoutNullStreams {
  const { CORACLE_CACHE, HOME, PATH } = process.env
  return spawn(process.execPath, ['--', MAIN, ...words], {
    env: {
      PATH,
      HOME,
      ...(CORACLE_CACHE ? { CORACLE_CACHE } : {}),
      CORACLE_ROOT: join(bed.root, 'own-state'),
      CORACLE_RUN: join(bed.root, 'own-run'),
      ...(host ? { DOCKER_HOST: host } : {}),
      XDG_CONFIG_HOME: join(bed.root, 'config'),
      PASSED: 'on',
      ...env,
    },
  })
}

async function ended(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (data: Buffer) => (stdout += data.toString()))
  child.stderr.on('data', (data: Buffer) => (stderr += data.toString()))
  const [status] = (await once(child, 'close')) as [number | null]
  return { status, stdout, stderr }
}

async function coracle(words: string[], input = '', host?: string, env = {}): Promise<Ended> {
  const child = start(words, host, env)
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  return ended(child)
}

const P = ['--isolation', 'process']

t.test('run: output, statuses, words passed as they are', async (t) => {
  const run = (...words: string[]): Promise<Ended> => coracle(['run', '--rm', ...P, ...words], 'in')
  t.match(await run('busybox', 'echo', '-n', '--rm', '--', '-x'), {
    status: 0,
    stdout: '--rm -- -x',
    stderr: '',
  })
  t.match(await run('busybox', 'sh', '-c', 'echo o; echo e >&2; exit 7'), {
    status: 7,
    stdout: 'o\n',
    stderr: 'e\n',
  })
  t.match(await run('-i', 'busybox', 'cat'), { status: 0, stdout: 'in' })
  t.match(await run('busybox', 'cat'), { status: 0, stdout: '' })
  t.match(
    await run(
      '-e',
      'A=1',
      '-e',
      'PASSED',
      '-e',
      'NOSUCH',
      'busybox',
      'sh',
      '-c',
      'echo $A $PASSED ${NOSUCH-no}',
    ),
    {
      stdout: '1 on no\n',
    },
  )
  t.match(await run('-w', '/etc', '--entrypoint', 'pwd', 'busybox'), { stdout: '/etc\n' })
  t.match(await run('busybox', 'sh', '-c', 'kill -9 $$'), { status: 137 })
  t.match(await coracle(['run', '--rm', 'busybox', 'true']), {
    status: 0,
    stderr: /^coracle: hypervisor=qemu: .*neither vmx nor svm\n$/,
  })
  t.same(await engine.list(), [], '--rm leaves nothing')
})

t.test('run: whoever reads late gets all of stderr', async (t) => {
  // More than a pipe holds, by less than a stream keeps without having its writer wait.
  const bytes = 75_000
  const [ours, theirs] = pipe()
  const words = ['run', '--rm', ...P, 'busybox', 'sh', '-c', `head -c ${bytes} /dev/zero >&2`]
  const child = spawn(process.execPath, ['--', MAIN, ...words], {
    env: { ...process.env, DOCKER_HOST: `unix://${path}` },
    stdio: ['ignore', 'ignore', theirs.number],
  })
  theirs.close()
  const status = once(child, 'exit')
  while ((await engine.list()).length === 0) await delay(10)
  while ((await engine.list()).length > 0) await delay(10)
  // Time enough for one that does not wait.
  await Promise.race([status, delay(500)])
  let read = 0
  for await (const chunk of createReadStream('', { fd: ours.release() })) read += (chunk as Buffer).length
  t.equal(read, bytes)
  t.same(await status, [0, null])
})

t.test('one line for each mistake, and the right status', async (t) => {
  const one = (text: string): RegExp => new RegExp(`^coracle: [^\\n]*${text}[^\\n]*\\n$`)
  const cases: [string[], number, string][] = [
    [['nosuch'], 125, "'nosuch' is not a command"],
    [['--bogus'], 125, 'unknown flag: --bogus'],
    [['run'], 125, 'needs a word more'],
    [['run', '--bogus', 'busybox'], 125, 'bogus'],
    [['ps', '-x'], 125, 'x'],
    [['run', '--name'], 125, 'name'],
    [['run', '--cpus', '0', 'busybox'], 125, '--cpus'],
    [['run', '--cpus', '-1', 'busybox'], 125, 'cpus'],
    [['run', '--cpus', '99', 'busybox'], 125, 'only 4 CPUs'],
    [['run', '--cpu-shares', '1', 'busybox'], 125, 'from 2 to 262144'],
    [['update', 'nobody'], 125, 'nothing to update'],
    [['update', '--cpus', '1', 'nobody'], 1, 'o such container'],
    [['update', '--restart', 'often', 'nobody'], 125, 'on-failure'],
    [['run', '-m', '64m', 'busybox'], 125, 'needs at least 128 MiB'],
    [['run', '-m', '900g', 'busybox'], 125, 'more than this host has'],
    [['run', '-m', 'lots', 'busybox'], 125, "invalid size 'lots'"],
    [['run', '--isolation', 'chroot', 'busybox'], 125, 'microvm, process'],
    [['run', '--hypervisor', 'xen', 'busybox'], 125, 'auto, kvm, qemu'],
    [['run', '-it', 'busybox'], 125, 'not a terminal'],
    [['run', '--pull', 'never', 'nosuch'], 125, 'o such image'],
    [['run', '--rm', ...P, 'busybox', 'nosuch'], 127, 'executable file not found'],
    [['run', '--rm', ...P, 'busybox', '/etc/passwd'], 126, 'permission denied'],
    [['load', '-i', '/nosuch.tar'], 125, 'there is no such file'],
    [['load', '-i', '/'], 125, 'directory'],
    [['load'], 1, 'archive is empty'],
    [['kill', 'nosuch'], 1, 'No such container: nosuch'],
    [['-H', 'unix:///nosuch.sock', 'ps'], 125, 'cannot reach the engine'],
    [['-H', 'ssh://x', 'ps'], 125, 'cannot use host'],
  ]
  for (const [words, status, message] of cases) {
    const result = await coracle(words)
    t.equal(result.status, status, words.join(' '))
    t.match(result.stderr, one(message), words.join(' '))
    t.equal(result.stdout, '')
  }
  t.same(await engine.list(), [], 'nothing is left behind')
})

t.test('help with examples, on each command', async (t) => {
  const { stdout } = await coracle(['--help'])
  const names = [...stdout.matchAll(/^ {2}([a-z]+) {2,}[A-Z]/gm)].map(([, name]) => name!)
  t.ok(names.length >= 15)
  for (const name of names)
    t.match(await coracle([name, '--help']), {
      status: 0,
      stdout: new RegExp(`Usage: coracle ${name}[^]*Examples:`),
      stderr: '',
    })
})

/** Docker's commands that are here, each as the module that it is in. */
const VERBS =
  'attach build commit cp create diff events exec export history images import info inspect kill load login logout logs port ps pull push rename restart rm rmi run save search start stats stop tag top update version wait network-connect network-create network-disconnect network-inspect network-ls network-rm volume-create volume-inspect volume-ls volume-rm system-df'
const hasDocker = spawnSync('docker', ['--version']).error === undefined

t.test(
  "each of Docker's flags is known, or refused by name",
  { skip: !hasDocker && 'no client of Docker' },
  async (t) => {
    const prunes = (await import('../../src/cli/commands/prune.js')) as unknown as Record<string, Command>
    const contexts = (await import('../../src/cli/commands/context.js')) as unknown as Record<string, Command>
    const of = (group: string, all: Record<string, Command>, names: string): [string, Command][] =>
      names.split(' ').map((name) => [group === 'context' ? `context ${name}` : `${name} prune`, all[name]!])
    const commands: [string, Command][] = [
      ...(await Promise.all(
        VERBS.split(' ').map(async (verb): Promise<[string, Command]> => [
          verb.replace('-', ' '),
          (await import(`../../src/cli/commands/${verb}.js`)) as Command,
        ]),
      )),
      ...of('', prunes, 'container image network volume builder system'),
      ...of('context', contexts, 'create ls use show inspect update rm'),
    ]
    const nowhere = (): never => {
      throw new Error('nothing is asked')
    }
    for (const [name, command] of commands) {
      const { stdout } = spawnSync('docker', [...name.split(' '), '--help'], {
        encoding: 'utf8',
        env: { ...process.env, DOCKER_HOST: 'unix:///nowhere', DOCKER_BUILDKIT: '0' },
      })
      const flags = [...stdout.matchAll(/^ +(?:(-\w), )?(--[\w-]+)(?= )/gm)].flatMap(([, ...both]) => both)
      const unknown = []
      for (const flag of flags.filter((each) => each !== undefined && each !== '--help')) {
        // No value that any could go on with; what a command does without asking the engine is not of interest.
        const error: unknown = await command
          .run({ words: [`${flag}={{`], endpoint: nowhere })
          .catch((failure: unknown) => failure)
        if (/Unknown argument/.test(String(error))) unknown.push(flag)
      }
      t.same(unknown, [], name)
    }
  },
)

t.test("what of Docker's is refused says why", async (t) => {
  const one = (text: string): RegExp => new RegExp(`^coracle: [^\\n]*${text}[^\\n]*\\n$`)
  for (const [words, why] of [
    [['run', '--gpus', 'all', 'busybox'], '--gpus is refused: --device pci='],
    [['create', '--kernel-memory', '1g', 'busybox'], '--kernel-memory is refused'],
    [['pull', '--disable-content-trust=false', 'x'], '--disable-content-trust=false is refused'],
    [['build', '--squash', '.'], '--squash is refused'],
    [['start', '--checkpoint', 'x', 'y'], '--from SNAPSHOT'],
    [['network', 'create', '--ingress', 'x'], 'there is no swarm'],
    [['network', 'create', '--scope', 'global', 'x'], '--scope is one of local'],
    [['network', 'create', '--ipam-driver', 'mine', 'x'], 'unknown IPAM driver mine'],
    [['run', '--userns', '1000:1000', ...P, 'busybox'], 'user namespace mode'],
    [['swarm', 'init'], "'swarm' is refused: there is no swarm"],
    [['--tls', 'ps'], '--tls is refused'],
    [['-l', 'loud', 'ps'], '--log-level is debug'],
    [['--tlsverify', '-H', 'tcp://127.0.0.1:1', '--tlscacert=/nowhere', 'ps'], 'cannot read /nowhere'],
    [['run', '-d', '-a', 'stdout', 'busybox'], '-a joins a container that -d leaves'],
    [['pull', '-a', 'busybox:1'], 'a name without a tag'],
    [['volume', 'rm'], "See 'coracle volume rm --help'"],
  ] as const) {
    const result = await coracle([...words])
    t.equal(result.status, 125, words.join(' '))
    t.match(result.stderr, one(why), words.join(' '))
  }
  t.match(await coracle(['build', '--help']), { stdout: /Of Docker's, refused here: [^]*squash/ })
  t.match(await coracle(['network', 'create', '--squash=false', 'x']), { stderr: /Unknown argument: squash/ })
})

t.test('what is asked of the API', async (t) => {
  const asked: string[] = []
  const socket = join(bed.root, 'asked.sock')
  const api = createServer((request, response) => {
    let body = ''
    request.on('data', (data: Buffer) => (body += data.toString()))
    request.on('end', () => {
      asked.push(`${request.method} ${decodeURIComponent(request.url!.replace('/v1.51', ''))} ${body}`.trim())
      response.writeHead(200, { 'Content-Type': 'application/json' }).end('{"Id":"1","Name":"n"}')
    })
  }).listen(socket)
  t.teardown(() => api.close())
  for (const [words, request] of [
    [['pull', '-a', 'busybox'], 'POST /images/create?fromImage=busybox'],
    [['pull', 'busybox'], 'POST /images/create?fromImage=busybox&tag=latest'],
    [
      ['push', '--platform', 'linux/arm64/v8', 'x'],
      'POST /images/x/push?tag=latest&platform={"os":"linux","architecture":"arm64","variant":"v8"}',
    ],
    [
      ['network', 'connect', '--driver-opt', 'a=b', 'net', 'web'],
      'POST /networks/net/connect {"Container":"web","EndpointConfig":{"DriverOpts":{"a":"b"}}}',
    ],
    [
      ['network', 'create', '--ipam-opt', 'a=b', '--scope', 'local', 'net'],
      'POST /networks/create {"Name":"net","Driver":"bridge","Internal":false,"Attachable":false,"EnableIPv4":true,"EnableIPv6":false,"IPAM":{"Driver":"default","Options":{"a":"b"},"Config":[]},"Options":{},"Labels":{}}',
    ],
  ] as const) {
    t.match(await coracle([...words], '', `unix://${socket}`), { status: 0, stderr: '' }, words.join(' '))
    t.equal(asked.pop(), request)
  }
})

t.test('groups, their other names, and help of a command', async (t) => {
  t.match(await coracle(['volume']), { status: 0, stdout: /Commands: create, inspect, ls, prune, rm\./ })
  t.match(await coracle(['help', 'network', 'create']), {
    status: 0,
    stdout: /^Usage: coracle network create/,
  })
  t.match(await coracle(['-D', '--log-level=error', 'container', 'list', '-q']), { status: 0, stdout: '' })
})

t.test('run -a joins some of the streams', async (t) => {
  const script = ['busybox', 'sh', '-c', 'cat; echo o; echo e >&2']
  const run = (...words: string[]): Promise<Ended> =>
    coracle(['run', '--rm', ...words, ...P, ...script], 'in ')
  t.match(await run('-a', 'stderr'), { status: 0, stdout: '', stderr: 'e\n' })
  t.match(await run('-ia', 'stdin', '-a', 'stdout'), { status: 0, stdout: 'in o\n', stderr: '' })
  t.match(await run('-i', '-a', 'STDIN'), { status: 0, stdout: /^[0-9a-f]{64}\n$/, stderr: '' })
  t.match(await run('-a', 'stdnone'), { status: 125, stderr: /--attach is one of stdin/ })
})

t.test('in the background: ps, logs, kill, stop, rm, inspect', async (t) => {
  const { stdout } = await coracle([
    'run',
    '-d',
    '--name',
    'web',
    ...P,
    'busybox',
    'sh',
    '-c',
    'echo up; exec sleep 100',
  ])
  const id = stdout.trim()
  t.match(id, /^[0-9a-f]{64}$/)
  t.match(await coracle(['ps', '-q', '--no-trunc']), { stdout: `${id}\n` })
  t.match(await coracle(['ps']), { stdout: /web\n$/ })
  t.match(await coracle(['rm', 'web']), { status: 1, stderr: /container is running/ })
  t.match(await coracle(['stop', '-t', '5', 'web']), { status: 0, stdout: 'web\n' })
  t.match(await coracle(['logs', '-f', '--tail', '5', 'web']), { stdout: 'up\n' })
  t.match(await coracle(['ps', '-a']), { stdout: /Exited \(143\)/ })
  t.match(JSON.parse((await coracle(['inspect', 'web', 'busybox'])).stdout), [
    { Name: '/web' },
    { Os: 'linux' },
  ])
  t.match(await coracle(['start', 'web']), { status: 0 })
  t.match(await coracle(['kill', '-s', 'KILL', 'web']), { status: 0 })
  t.match(await coracle(['rm', '-f', 'web']), { status: 0, stdout: 'web\n' })
  t.match(await coracle(['images', '-q']), { stdout: 'bbbbbbbbbbbb\n' })
})

t.test('stats', async (t) => {
  const { stdout } = await coracle(['run', '-d', '--name', 'busy', ...P, 'busybox', 'sleep', '1000'])
  const id = stdout.trim()
  const shown = await coracle(['stats', '--no-stream'])
  t.match(shown, { status: 0, stderr: '' })
  t.match(shown.stdout, /^CONTAINER ID +NAME +CPU % +MEM USAGE \/ LIMIT +MEM % +NET I\/O +BLOCK I\/O +PIDS/)
  t.match(
    shown.stdout,
    new RegExp(`^${id.slice(0, 12)} +busy +\\d+\\.\\d\\d% +2MiB / 64MiB +3\\.13% +0B / 0B`, 'm'),
  )
  const [line] = (await coracle(['stats', '--no-stream', '--format', 'json', 'busy'])).stdout.split('\n')
  t.match(JSON.parse(line!), { ID: id, Name: 'busy', BlockIO: '4.1kB / 512B', PIDs: '2', Overhead: '--' })
  const brief = ['stats', '--no-stream', '--format', 'table {{.Name}}\\t{{.PIDs}}']
  t.equal((await coracle(brief)).stdout, 'NAME   PIDS\nbusy   2\n')
  const live = start(['stats', 'busy'])
  for (let seen = ''; (seen.match(/busy/g) ?? []).length < 2;)
    seen += ((await once(live.stdout, 'data')) as [Buffer])[0].toString()
  live.kill('SIGINT')
  t.match(await coracle(['stats', '--no-stream', 'nobody']), { status: 1, stderr: /nobody/ })
  t.match(await coracle(['inspect', '--machine', 'busy']), { status: 125, stderr: /no machine/ })
  const template = ['inspect', '--machine', '--format', '{{.}}', 'busy']
  t.match(await coracle(template), { status: 125, stderr: /text and json/ })
  await coracle(['rm', '-f', 'busy'])
  t.notMatch((await coracle(['stats', '--no-stream'])).stdout, /busy/)
})

t.test('signals are the container’s', async (t) => {
  const child = start([
    'run',
    '--rm',
    ...P,
    'busybox',
    'sh',
    '-c',
    'trap "echo got; exit 9" INT; echo up; while :; do sleep 0.05; done',
  ])
  child.stdout.once('data', () => child.kill('SIGINT'))
  t.match(await ended(child), { status: 9, stdout: 'up\ngot\n' })
})

t.test('a reader that goes ends a container of its own', async (t) => {
  const child = start(['run', '--rm', ...P, 'busybox', 'yes'])
  child.stdout.once('data', () => child.stdout.destroy())
  t.match(await once(child, 'close'), [141])
  t.same(await engine.list(), [])
})

t.test('100 MB through stdin and stdout', async (t) => {
  const child = start(['run', '--rm', '-i', ...P, 'busybox', 'cat'])
  const block = randomBytes(1_000_003)
  const [sent, got] = [createHash('sha256'), createHash('sha256')]
  const feeding = (async () => {
    for (let count = 0; count < 100; count++) {
      sent.update(block)
      if (!child.stdin.write(block)) await once(child.stdin, 'drain')
    }
    child.stdin.end()
  })()
  for await (const chunk of child.stdout) got.update(chunk as Buffer)
  await feeding
  t.equal(got.digest('hex'), sent.digest('hex'))
})

t.test('a load', async (t) => {
  const archive = join(bed.root, 'archive.tar')
  writeFileSync(archive, 'bytes')
  t.match(await coracle(['load', '-i', archive]), { status: 0, stdout: 'Loaded image: busybox:latest\n' })
})

t.test('the command hosts the engine where no daemon runs', async (t) => {
  t.match(await coracle(['ps'], '', ''), { status: 0, stdout: /^CONTAINER ID/ })
  t.match(await coracle(['run', '--pull', 'never', 'nosuch'], '', ''), {
    status: 125,
    stderr: /o such image/,
  })
  const doctor = await coracle(['doctor', '--json'], '', '')
  t.match(JSON.parse(doctor.stdout), {
    hypervisor: /^(kvm|qemu)$/,
    reason: String,
    memory: Number,
    cgroup: Number,
  })
  t.match(await coracle(['version'], '', ''), { status: 0, stdout: /^coracle \d.*\nengine {2}\d/ })
  t.notOk(existsSync(join(bed.root, 'own-run/coracle.sock')))
})

t.test('a daemon, and the commands that find it', async (t) => {
  const daemon = start(['daemon'], '')
  await once(daemon.stderr, 'data')
  t.match(await coracle(['daemon'], '', ''), { status: 125, stderr: /another daemon/ })
  t.match(await coracle(['version'], '', ''), { status: 0 })
  daemon.kill('SIGTERM')
  t.match(await once(daemon, 'close'), [0])
  t.notOk(existsSync(join(bed.root, 'own-run/coracle.sock')))
})

t.test('detach keys', async (t) => {
  const feedTo = async (text: string, ...chunks: string[]): Promise<[string, boolean]> => {
    let detached = false
    const keys = new DetachKeys(parseDetachKeys(text), () => (detached = true))
    for (const chunk of chunks) keys.write(chunk, 'latin1')
    keys.end()
    return [Buffer.concat(await keys.toArray()).toString('latin1'), detached]
  }
  const feed = feedTo.bind(undefined, '')
  t.same(await feed('ab\x10', '\x11'), ['ab', true])
  t.same(await feed('ab\x10', 'c'), ['ab\x10c', false])
  t.same(await feed('\x10\x10', '\x11'), ['\x10', true])
  t.same(await feed('ab\x10'), ['ab\x10', false])
  t.same(await feedTo('a,a,b', 'xa', 'a', 'aa', 'by'), ['xaa', true], 'a prefix of itself')
  t.same(await feedTo('a,a,b', 'a', 'ax'), ['aax', false])
  t.same(await feedTo('ctrl-[', 'ab\x1b'), ['ab', true])
  t.same([...parseDetachKeys('ctrl-@,ctrl-_,ctrl-Z,~')], [0, 31, 26, 126])
  for (const bad of ['ctrl-', 'ctrl-1', 'ab', 'a,', 'é', Array(33).fill('a').join(',')])
    t.throws(() => parseDetachKeys(bad), { code: 'INVALID_ARGUMENT' }, bad)
  for (const words of [
    ['run', 'busybox'],
    ['attach', 'x'],
    ['start', 'x'],
    ['exec', 'x', 'true'],
  ])
    t.match(await coracle([words[0]!, '--detach-keys', 'ctrl-1', ...words.slice(1)]), {
      status: 125,
      stderr: /--detach-keys: invalid detach keys: 'ctrl-1' is no key/,
    })
})

t.test('sizes', async (t) => {
  for (const [text, bytes] of [
    ['1', 1],
    ['1k', 1024],
    ['1.5g', 1610612736],
    ['512MiB', 536870912],
  ] as const)
    t.equal(parseSize(text, '-m'), bytes)
  for (const text of ['', '0', '-1', 'x', '1e9', '1p', 'NaN', '9'.repeat(40)])
    t.throws(() => parseSize(text, '-m'))
  t.same([0, 999, 1234, 2_010_000, 1e9].map(showSize), ['0B', '999B', '1.23kB', '2.01MB', '1GB'])
})

const notReady = ((): string | false => {
  if (process.getuid?.() !== 0) return 'process isolation needs root'
  const { stdout } = spawnSync(process.execPath, [MAIN, 'doctor', '--json'], { encoding: 'utf8' })
  const report = JSON.parse(stdout) as { process: { ready: boolean } }
  return report.process.ready ? false : 'set-up has not been run: npm run setup'
})()

t.test('process isolation, for real', { skip: notReady }, async (t) => {
  const { ImageStore } = await import('../../src/image/store.js')
  const { busyboxImage } = await import('../../src/image/busybox.js')
  await busyboxImage(await ImageStore.open(join(bed.root, 'own-state/images')))
  const run = (...words: string[]): Promise<Ended> => coracle(['run', '--rm', ...P, ...words], 'in', '')
  t.match(await run('busybox', 'sh', '-c', 'echo o; echo e >&2; exit 7'), {
    status: 7,
    stdout: 'o\n',
    stderr: 'e\n',
  })
  t.match(await run('-i', 'busybox', 'cat'), { status: 0, stdout: 'in' })
  t.match(await run('busybox', 'nosuch'), { status: 127 })
  t.match(await run('busybox', '/etc/passwd'), { status: 126 })
  t.match(
    await coracle(['history', '--human=false', '--format', '{{.Size}} {{.CreatedSince}}', 'busybox'], '', ''),
    {
      stdout: /^\d+ \d{4}-\d\d-/,
    },
  )
  const folder = t.testdir({ Dockerfile: 'FROM busybox\nCOPY big /big\n', big: 'a'.repeat(1 << 20) })
  const flags = ['--compress', '--progress=plain', '--load', '--cache-from', 'busybox']
  t.match(await coracle(['build', ...flags, '-t', 'packed', folder], '', ''), {
    status: 0,
    stdout: /Successfully tagged packed:latest/,
  })
  t.match(await run('packed', 'wc', '-c', '/big'), { stdout: '1048576 /big\n' })
  const rule = ['--device-cgroup-rule', 'c 10:200 rw', '--cap-add', 'MKNOD', 'busybox', 'sh', '-c']
  const open = await run(...rule, 'mknod /tun c 10 200 && : < /tun && mknod /fuse c 10 229 && : < /fuse')
  t.match(open, { status: 1, stderr: /fuse: Operation not permitted/ }, 'what the rule says, and no more')
  t.match(await run('--device-cgroup-rule', 'c 1', 'busybox'), {
    status: 125,
    stderr: /invalid device cgroup rule/,
  })
  const beside = start(
    [
      'run',
      '-i',
      '--rm',
      '--name',
      'k8',
      ...P,
      'busybox',
      'sh',
      '-c',
      'while :; do /bin/true; done & echo; sleep 77',
    ],
    '',
  )
  await once(beside.stdout, 'data')
  const seen = await run('--pid', 'container:k8', 'busybox', 'ps', '-o', 'pid,args')
  t.match(seen, { status: 0, stdout: / 1 [^\n]*sleep 77\n[^]* ps -o/ }, 'it is among the processes of k8')
  t.match(await run('--ipc', 'container:k8', 'busybox'), { status: 125, stderr: /with --ipc shareable/ })
  const update = (...words: string[]): Promise<Ended> => coracle(['update', ...words, 'k8'], '', '')
  t.match(await update('-m', '64m', '--memory-swap', '96m', '--cpuset-cpus', '0'), { status: 0 })
  t.match(await update('-m', '128m', '--memory-swap', '128m'), { status: 0 }, 'both up')
  t.match(await update('-m', '32m', '--memory-swap', '40m'), { status: 0 }, 'both down')
  t.match(await update('--memory-swap', '16m'), { status: 1, stderr: /larger than memory limit/ })
  t.match(await coracle(['exec', 'k8', 'grep', 'Cpus_allowed_list', '/proc/self/status'], '', ''), {
    stdout: /\t0\n/,
  })
  if (!isUnified()) {
    const [id] = readdirSync(join(bed.root, 'own-state/containers')).filter((name) => name.length >= 64)
    const at = `/sys/fs/cgroup/memory/coracle-${id!.slice(0, 64)}/memory`
    const limits = ['limit_in_bytes', 'memsw.limit_in_bytes'].map((name) =>
      Number(readFileSync(`${at}.${name}`)),
    )
    t.same(limits, [32 << 20, 40 << 20])
  }
  await coracle(['kill', 'k8'], '', '')
  await once(beside, 'close')
  t.match(await run('--pid', 'container:k8', 'busybox'), { status: 125, stderr: /k8/ }, 'it is gone')
  t.match(await run('--ipc', 'none', 'busybox', 'ls', '/dev/shm'), { status: 1, stderr: /No such file/ })
  const donor = [
    'create',
    '--name',
    'k10',
    ...P,
    '--network',
    'none',
    '--ipc',
    'shareable',
    '--shm-size',
    '1m',
  ]
  await coracle([...donor, 'busybox', 'sh', '-c', 'echo kept > /dev/shm/x; exec sleep 1000'], '', '')
  const joins = ['--ipc', 'container:k10', '--network', 'container:k10', 'busybox', 'sh', '-c']
  t.match(await run(...joins, 'true'), {
    status: 125,
    stderr: /the shared memory of container .*: it does not run/,
  })
  for (let turn = 0; turn < 2; turn++) {
    await coracle(['start', 'k10'], '', '')
    const namespaces = 'readlink /proc/self/ns/ipc; readlink /proc/self/ns/net; ip -o link; cat /etc/hosts'
    const script = `until cat /dev/shm/x; do :; done; echo mine > /dev/shm/y; df -m /dev/shm | tail -n1; ${namespaces}`
    const { stdout, stderr } = await run(...joins, script)
    const inside = await coracle(['exec', 'k10', 'sh', '-c', `cat /dev/shm/y; ${namespaces}`], '', '')
    const [kept, size, ...same] = stdout.split('\n')
    t.equal(kept, 'kept', stderr)
    t.match(size, /^\S+ +1 /)
    t.equal(inside.stdout, ['mine', ...same].join('\n'))
    t.match(await coracle(['inspect', '-f', '{{.HostConfig.IpcMode}}', 'k10'], '', ''), {
      stdout: 'shareable\n',
    })
    await coracle(['stop', '-t', '0', 'k10'], '', '')
  }
  await coracle(['rm', 'k10'], '', '')
  const child = start(
    ['run', '--rm', '--name', 'k9', ...P, 'busybox', 'sh', '-c', 'echo up; exec sleep 1000'],
    '',
  )
  await once(child.stdout, 'data')
  child.kill('SIGKILL')
  t.match(await coracle(['ps'], '', ''), { stdout: /Up .*k9/ })
  const [{ State }] = JSON.parse((await coracle(['inspect', 'k9'], '', '')).stdout) as [
    { State: { Pid: number } },
  ]
  process.kill(State.Pid, 'SIGKILL')
  t.match(
    await coracle(['ps', '-aq'], '', ''),
    { status: 0, stdout: '' },
    '--rm is kept though both were killed',
  )
  t.same(readdirSync(join(bed.root, 'own-state/containers')), ['.lock'])
  t.same(readdirSync(join(bed.root, 'own-run/c')), [])
})

t.test('a daemon for other hosts, by TLS, and contexts that lead to it', async (t) => {
  const write = (folder: string, { authority, certificate, key }: Certificates): string => {
    mkdirSync(join(bed.root, folder))
    const files = { ca: authority, cert: certificate, key }
    for (const [name, text] of Object.entries(files))
      writeFileSync(join(bed.root, folder, `${name}.pem`), text)
    return join(bed.root, folder)
  }
  const folder = write('tls', makeCertificates())
  const stranger = write('stranger', makeCertificates())
  const [ca, cert, key] = ['ca', 'cert', 'key'].map((name) => join(folder, `${name}.pem`))
  const socket = `unix://${join(bed.root, 'tls.sock')}`
  const listen = ['daemon', '-l', socket, '--listen', 'tcp://127.0.0.1:0']
  t.match(await coracle(listen, '', ''), { status: 125, stderr: /root on this host/ })
  t.match(await coracle([...listen, '--tlskey', key!], '', ''), { status: 125, stderr: /all of/ })
  const daemon = start([...listen, '--tlscacert', ca!, '--tlscert', cert!, '--tlskey', key!], '')
  t.teardown(() => daemon.kill('SIGKILL'))
  let host = ''
  for await (const line of createInterface({ input: daemon.stderr })) {
    host = /"address":"(tcp:[^"]+)"/.exec(line)?.[1] ?? host
    if (host) break
  }
  const echo = ['run', '-i', '--rm', ...P, 'busybox', 'cat']
  const tls = { DOCKER_TLS_VERIFY: '1', DOCKER_CERT_PATH: folder }
  t.match(await coracle(echo, 'over TLS', host, tls), { status: 0, stdout: 'over TLS' })
  t.equal((await coracle(['ps'], '', host)).status, 125, 'nobody without TLS')
  const strange = { DOCKER_TLS_VERIFY: '1', DOCKER_CERT_PATH: stranger }
  t.equal((await coracle(['ps'], '', host, strange)).status, 125, 'and no stranger')
  const anonymous = connectTls({ port: Number(host.split(':').at(-1)), ca: readFileSync(ca!) })
  anonymous.on('error', () => undefined)
  anonymous.write('GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n')
  let answered = false
  anonymous.on('data', () => (answered = true))
  await new Promise((resolve) => anonymous.on('close', resolve))
  t.notOk(answered, 'nor one without a certificate')

  const context = (...words: string[]): Promise<Ended> => coracle(['context', ...words], '', '')
  const docker = `host=${host},ca=${ca},cert=${cert},key=${key}`
  t.match(await context('create', 'farm', '--docker', docker, '--description', 'far'), { stdout: 'farm\n' })
  t.equal(statSync(join(bed.root, 'config/coracle/contexts.json')).mode & 0o777, 0o600)
  t.match(await context('create', 'farm', '--docker', docker), { status: 125, stderr: /already/ })
  t.match(await context('create', 'x', '--docker', 'host=ftp://x'), { status: 125, stderr: /tcp:/ })
  t.match(await coracle(['--context', 'farm', ...echo], 'named', ''), { status: 0, stdout: 'named' })
  t.match(await context('use', 'farm'), { stdout: 'farm\n' })
  t.match(await context('ls'), { stdout: /default .*\nfarm \* +far +tcp:.* \(TLS\)\n/ })
  t.match(await context('ls', '--format', '{{.Name}} {{.Current}} {{.DockerEndpoint}}'), {
    stdout: /^default false \nfarm true tcp:\S+\n$/,
  })
  t.match(await context('ls', '-q'), { stdout: 'default\nfarm\n' })
  t.match(await coracle(echo, 'in use', ''), { status: 0, stdout: 'in use' })
  t.notMatch((await context('inspect')).stdout, /KEY/)
  t.match(await context('inspect', '-f', '{{.Endpoints.docker.Host}} {{.Metadata.Description}}', 'farm'), {
    stdout: `${host} far\n`,
  })
  const exported = join(bed.root, 'farm.tar')
  t.match(await context('export', 'farm', exported), { status: 0, stdout: /Written file/ })
  t.equal(statSync(exported).mode & 0o777, 0o600)
  t.match(await context('export', 'farm', exported), { status: 125, stderr: /EEXIST/ })
  t.match(await context('export', 'default', '-'), { status: 125, stderr: /names no host/ })
  t.match(await context('import', 'barn', exported), { status: 0, stdout: 'barn\n' })
  t.match(await coracle(['--context', 'barn', ...echo], 'imported', ''), { status: 0, stdout: 'imported' })
  const foreign = spawnSync('docker', ['context', 'import', 'theirs', exported], {
    env: { ...process.env, DOCKER_CONFIG: join(bed.root, 'docker') },
  })
  t.ok(foreign.error !== undefined || foreign.status === 0, "Docker's client takes it")
  writeFileSync(exported, 'no tar')
  t.match(await context('import', 'bad', exported), { status: /^1/, stderr: /^coracle: / })
  t.match(await context('create', 'copy', '--from', 'barn', '--description', 'near'), { status: 0 })
  t.match(await context('update', 'copy', '--docker', 'host=unix:///x'), { status: 0 })
  t.match(JSON.parse((await context('inspect', 'copy')).stdout), [
    { Metadata: { Description: 'near' }, Endpoints: { docker: { Host: 'unix:///x' } }, TLSMaterial: {} },
  ])
  t.match(await context('create', 'none'), { status: 125, stderr: /--docker and --from/ })
  t.match(await context('rm', 'farm'), { status: 1, stderr: /in use/ })
  t.match(await coracle(['-c', 'gone', 'ps'], '', ''), { status: 125, stderr: /no context 'gone'/ })
  t.match(await coracle(['-c', 'farm', '-H', socket, 'ps'], '', ''), { status: 125, stderr: /two engines/ })
  t.match(await context('rm', '-f', 'farm', 'barn', 'copy'), { status: 0, stdout: 'farm\nbarn\ncopy\n' })
  t.match(await context('show'), { stdout: 'default\n' })
  daemon.kill('SIGTERM')
  t.match(await once(daemon, 'close'), [0])
})

t.test('completion', async (t) => {
  const { stdout } = await coracle(['completion', 'bash'])
  const file = join(bed.root, 'completion')
  writeFileSync(file, stdout)
  const complete = async (...words: string[]): Promise<string[]> => {
    const list = words.map((word) => `'${word}'`).join(' ')
    const line = `coracle() { '${process.execPath}' '${MAIN}' "$@"; }; . '${file}'
      COMP_WORDS=(coracle ${list}); COMP_CWORD=${words.length}; _coracle; printf '%s\\n' "\${COMPREPLY[@]}"`
    const child = spawn('bash', ['-c', line], { env: { ...process.env, DOCKER_HOST: `unix://${path}` } })
    return (await ended(child)).stdout.trim().split('\n')
  }
  t.strictSame(await complete('netw'), ['network'])
  t.ok((await complete('network', '')).includes('create'))
  t.strictSame(await complete('run', '--isol'), ['--isolation'])
  await coracle(['create', '--name', 'completed', ...P, 'busybox'])
  t.strictSame(await complete('start', 'compl'), ['completed'])
  t.strictSame(await complete('container', 'rm', 'compl'), ['completed'])
  t.strictSame(await complete('rename', 'compl'), ['completed'])
  t.ok((await complete('-H', '')).length > 0)
  // After what stands before the command, and by it.
  const here = ['-H', `unix://${path}`]
  t.strictSame(await complete(...here, 'netw'), ['network'])
  t.ok((await complete('--debug', '-H', here[1]!, 'network', '')).includes('create'))
  t.strictSame(await complete('--host', '=', here[1]!, 'start', 'compl'), ['completed'])
  t.strictSame(await complete(...here, 'run', '--isol'), ['--isolation'])
  t.strictSame(await complete(...here, 'container', 'inspect', 'compl'), ['completed'])
  t.strictSame(await complete('-H', 'unix:///nowhere', 'start', 'compl'), [''], 'of another engine')
  t.strictSame(await complete('--tlsv'), ['--tlsverify'])
  await coracle(['volume', 'create', 'kept-volume'])
  t.strictSame(await complete('volume', 'rm', 'kept'), ['kept-volume'])
  t.strictSame(await complete('inspect', 'kept'), ['kept-volume'])
  t.strictSame(await complete('network', 'inspect', 'bri'), ['bridge'])
  t.strictSame(await complete('run', '--network', 'bri'), ['bridge'])
  t.strictSame(await complete('run', '--network', '=', 'bri'), ['bridge'])
  t.strictSame(await complete('image', 'rm', 'busy'), ['busybox:latest'])
  t.strictSame(await complete('--context', 'def'), ['default'])
  t.strictSame(await complete('-c', 'def'), ['default'])
  t.strictSame(await complete('context', 'use', 'def'), ['default'])
  await coracle(['volume', 'rm', 'kept-volume'])
  await coracle(['rm', 'completed'])
  t.match(await coracle(['completion', 'fish']), { status: 125, stderr: /bash and zsh/ })
})

t.test('formats', async (t) => {
  await coracle(['create', '--name', 'shaped', '--label', 'a=b', ...P, 'busybox', 'true'])
  const out = async (...words: string[]): Promise<string> => (await coracle(words)).stdout
  const mine = ['ps', '-a', '--filter', 'label=a=b']
  t.equal(await out(...mine, '--format', '{{.Names}}: {{.State}} {{.Labels}}'), 'shaped: created a=b\n')
  t.equal(
    await out(...mine, '--format', 'table {{.Names}}\\t{{.Image}}'),
    'NAMES    IMAGE\nshaped   busybox\n',
  )
  t.match(JSON.parse(await out(...mine, '--format', 'json')), { Names: 'shaped', Status: 'Created' })
  t.equal(
    await out(...mine, '--format', '{{.Names}}.x {{.Label "a"}}{{.Label "c"}} {{.Mounts}}'),
    'shaped.x b \n',
  )
  t.match(await out(...mine, '--format', '{{.CreatedAt}}'), /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC\n$/)
  t.match(await coracle([...mine, '--format', '{{.Name}}']), { status: 125, stderr: /no field .Name: there/ })
  t.equal(await out('images', '--format', '{{.Repository}}:{{.Tag}}'), 'busybox:latest\n')
  t.match(await out('network', 'ls', '--format', '{{.Name}} {{.IPv6}}'), /^bridge false$/m)
  t.match(
    await out('images', '--digests'),
    /^REPOSITORY +TAG +DIGEST +IMAGE ID +CREATED +SIZE\nbusybox +latest +(<none>|sha256:\w+) /,
  )
  const inspect = (format: string): Promise<string> => out('inspect', '-f', format, 'shaped')
  t.equal(await inspect('{{.State.Status}} {{json .Config.Labels}}'), 'created {"a":"b"}\n')
  t.equal(await inspect('{{range .Config.Cmd}}<{{.}}>{{end}}'), '<true>\n')
  t.equal(await inspect('{{if .State.Running}}yes{{else}}no{{end}}'), 'no\n')
  t.equal(await inspect('{{index .Config.Labels "a" | upper}} {{eq .State.Status "created"}}'), 'B true\n')
  t.equal(await inspect('{{.Config.Labels}} {{.Nothing}} {{len .Config.Cmd}}'), 'map[a:b] <no value> 1\n')
  const bads = ['{{if .A}}', '{{nope .A}}', '{{(.A}}', '{{.A .B}}', '{{.A', '{{$a}}', '{{printf "%s"}}']
  for (const bad of bads)
    t.match(await coracle(['inspect', '-f', bad, 'shaped']), { status: 125, stderr: /bad --format/ })
  await coracle(['rm', 'shaped'])
})

t.test('templates as Go has them', async (t) => {
  const value = {
    Id: 'abc',
    Name: 'web',
    Ports: { '80/tcp': [{ HostPort: '8080' }], '443/tcp': null },
    Labels: { b: '2', a: '1' },
    List: [1, 2, 3],
  }
  const shown: [string, string][] = [
    [
      '{{range $p, $c := .Ports}}{{if $c}}{{$p}} -> {{(index $c 0).HostPort}}{{end}}{{end}}',
      '80/tcp -> 8080',
    ],
    ['{{range $i, $each := .List}}{{if $i}}, {{end}}{{$each}}{{end}}', '1, 2, 3'],
    ['{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}', 'a=1;b=2;'],
    ['{{range .None}}x{{else}}none{{end}} {{with .Name}}{{.}} {{$.Id}}{{end}}', 'none web abc'],
    ['{{if eq .Name "x"}}1{{else if eq .Name "web"}}2{{else}}3{{end}}', '2'],
    ['{{$last := 0}}{{range .List}}{{$last = .}}{{end}}{{$last}}', '3'],
    ['a {{- .Name -}} b {{/* {{no}} */}}c', 'awebb c'],
    ['{{.ID}} {{"}}"}} {{`\\`}}', 'abc }} \\'],
    ['{{printf "%-5s|%03d|%.2f|%q|%v%%" .Name 7 1.5 .Name .List}}', 'web  |007|1.50|"web"|[1 2 3]%'],
    ['{{slice .Name 1}} {{truncate .Name 2}} {{title .Name}} {{split "a:b" ":"}}', 'eb we Web [a b]'],
    [
      '{{and .None .Name}} {{and 1 .Name}} {{or .None "else"}} {{lt 1 2}} {{ge "a" "b"}}',
      '<no value> web else true false',
    ],
    ['{{pad .Name 1 1}}|{{print 1 2 "x"}}|{{.Labels | json | len}}|{{len .List}}', ' web |1 2x|17|3'],
  ]
  for (const [text, result] of shown) t.equal(parseTemplate(text)(value), result, text)
  for (const bad of ['{{index .List 3}}', '{{lt 1 "a"}}', '{{printf "%y" 1}}', '{{$x}}', '{{.Name 1}}'])
    t.throws(() => parseTemplate(bad)(value), { code: 'USAGE' }, bad)
})

t.test('limits, files of settings, start -a, attach and wait', async (t) => {
  const folder = t.testdir({ env: '# none\nA=from a file\nPASSED\n', labels: 'tier=back\n' })
  const limits = [
    '--pids-limit',
    '40',
    '--ulimit',
    'nofile=64:128',
    '--ulimit',
    'core=-1',
    '--shm-size',
    '1m',
  ]
  const more = [
    '--sysctl',
    'net.core.somaxconn=9',
    '--cpu-quota',
    '50000',
    '--stop-timeout',
    '3',
    '--annotation',
    'x=y',
    '--cpuset-cpus',
    '0',
  ]
  const files = [
    '--env-file',
    `${folder}/env`,
    '--label-file',
    `${folder}/labels`,
    '--cidfile',
    `${folder}/id`,
  ]
  const script = 'echo "$A $PASSED $B"; read line; echo "got $line"; exit 6'
  const words = [...limits, ...more, ...files, '-e', 'B=own', '-i', '--name', 'limited', ...P]
  const created = await coracle(['create', ...words, 'busybox', 'sh', '-c', script])
  t.equal(created.status, 0, created.stderr)
  t.equal(readFileSync(`${folder}/id`, 'utf8'), created.stdout.trim())
  t.match(await coracle(['create', ...files, ...P, 'busybox']), {
    status: 125,
    stderr: /--cidfile: cannot make .*EEXIST/,
  })
  const [{ Config, HostConfig }] = JSON.parse((await coracle(['inspect', 'limited'])).stdout)
  t.match(Config, { Labels: { tier: 'back' }, StopTimeout: 3 })
  t.match(HostConfig, {
    PidsLimit: 40,
    ShmSize: 1 << 20,
    NanoCpus: 5e8,
    CpusetCpus: '0',
    Annotations: { x: 'y' },
  })
  t.match(await coracle(['start', '-ai', 'limited'], 'line\n'), {
    status: 6,
    stdout: 'from a file on own\ngot line\n',
  })
  const { bundle } = bed.driver.specs.at(-1)!
  t.match(bundle.process.rlimits, [
    { type: 'RLIMIT_NOFILE', soft: 64, hard: 128 },
    { type: 'RLIMIT_CORE', soft: Number.MAX_SAFE_INTEGER },
  ])
  t.match(bundle.linux, { sysctl: { 'net.core.somaxconn': '9' }, resources: { pids: { limit: 40 } } })
  t.match(await coracle(['wait', 'limited', 'nosuch']), { status: 1, stdout: '6\n', stderr: /nosuch/ })
  await coracle(['start', 'limited'])
  const attached = coracle(['attach', 'limited'], 'later\n')
  const waited = coracle(['wait', 'limited'])
  t.match(await attached, { status: 6, stdout: 'got later\n' })
  t.match(await waited, { stdout: '6\n' })
  for (const [bad, message] of [
    [['--ulimit', 'nofile'], /NAME=SOFT/],
    [['--pids-limit', 'all'], /whole number/],
    [['--env-file', '/nowhere'], /cannot read \/nowhere \(ENOENT\)/],
  ] as const)
    t.match(await coracle(['create', ...bad, ...P, 'busybox']), { status: 125, stderr: message })
  t.match(await coracle(['start', '-a', 'limited', 'other']), { status: 125, stderr: /one container/ })
  await coracle(['rm', 'limited'])
})

t.test('formats of volumes, networks, versions and the engine', async (t) => {
  const out = async (...words: string[]): Promise<string> => (await coracle(words)).stdout
  await coracle(['volume', 'create', '--label', 'a=b', 'shaped'])
  t.equal(await out('volume', 'ls', '--format', '{{.Name}} {{.Driver}} {{.Labels}}'), 'shaped local a=b\n')
  t.match(await out('volume', 'ls'), /^DRIVER +VOLUME NAME\nlocal +shaped\n$/)
  t.match(JSON.parse(await out('volume', 'ls', '--format', 'json')), { Name: 'shaped', Scope: 'local' })
  t.equal(await out('volume', 'inspect', '-f', '{{.Labels.a}}', 'shaped'), 'b\n')
  t.match(await coracle(['volume', 'inspect', '-f', '{{.Name}}', 'nosuch', 'shaped']), {
    status: 1,
    stdout: 'shaped\n',
  })
  await coracle(['volume', 'rm', 'shaped'])
  t.equal(await out('network', 'inspect', '--format', '{{.Name}} {{.Driver}}', 'bridge'), 'bridge bridge\n')
  t.equal(await out('snapshot', 'ls', '--format', '{{.Name}}'), '')
  t.equal(await out('snapshot', 'ls'), 'NAME   CONTAINER   IMAGE   CREATED   SIZE\n')
  t.equal(await out('version', '-f', '{{.Server.ApiVersion}}'), '1.51\n')
  t.equal(await out('info', '-f', '{{.NCPU}} {{.DefaultRuntime}}'), '4 microvm\n')
  t.match(await out('system', 'df'), /^TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE\nImages +1 +\d+ +/)
  t.equal(
    await out('system', 'df', '--format', '{{.Type}}'),
    'Images\nContainers\nLocal Volumes\nBuild Cache\n',
  )
  t.match(
    await out('system', 'df', '-v'),
    /^Images space usage:\n\nREPOSITORY +TAG +IMAGE ID +CREATED +SIZE +SHARED SIZE +UNIQUE SIZE +CONTAINERS\nbusybox [^]*Volumes space usage:[^]*Build cache space usage:\n\nCACHE ID/,
  )
  t.equal(
    await out('system', 'df', '-v', '--format', '{{range .Images}}{{.Tag}} {{.SharedSize}}{{end}}'),
    'latest 0B\n',
  )
  t.match(await coracle(['image', 'prune']), { status: 125, stderr: /all images without a name.*--force/ })
  t.match(await coracle(['image', 'prune', '-f']), { status: 0, stdout: 'Freed: 0B\n' })
  t.match(await coracle(['container', 'prune', '-a']), { status: 125, stderr: /Unknown argument: a/ })
  await coracle(['network', 'create', '--label', 'unneeded', 'lonely'])
  await coracle(['volume', 'create', '--label', 'unneeded', 'named'])
  const id = await out('create', '--label', 'unneeded', ...P, 'busybox', 'true')
  t.match(await coracle(['system', 'prune', '--volumes']), {
    status: 125,
    stderr:
      /containers that do not run; .*networks.*; .*volumes.*; .*images without a name; .*builds.*--force/,
  })
  t.match(await coracle(['system', 'prune', '-f', '--volumes', '--filter', 'until=1h']), { status: 125 })
  t.match(
    await out('system', 'prune', '-f', '--volumes', '--filter', 'label=unneeded'),
    new RegExp(`^${id}lonely\nFreed: \\d+`),
  )
  t.match(await out('builder', 'prune', '-f'), /^Freed: /)
  const sized = (await out('create', ...P, '--platform', 'linux/amd64', 'busybox', 'true')).trim()
  t.match(await out('ps', '-as'), /NAMES +SIZE\n.* \d\S*B \(virtual \d\S*B\)\n/)
  t.match(await out('ps', '-a', '--format', '{{.Size}}'), /^\d\S*B \(virtual /)
  t.notMatch(await out('ps', '-a'), 'virtual')
  t.match(await out('inspect', '-s', '-f', '{{.SizeRw}} {{.SizeRootFs}}', sized), /^\d+ \d{3,}\n$/)
  await coracle(['rm', sized])
  t.match(await coracle(['create', '--platform', 'linux/arm64', '--pull', 'never', 'busybox']), {
    status: 125,
    stderr: /no image of platform linux\/arm64/,
  })
  const unseen = await coracle(['run', '-q', ...P, 'nosuch.example/image'])
  t.match(unseen, { status: 125, stderr: /^coracle: cannot pull image [^\n]*\n$/ }, 'nothing of the attempt')
  t.match(await out('images', 'busybox'), /^REPOSITORY[^\n]*\nbusybox /)
  t.match(await out('images', 'nosuch'), /^REPOSITORY[^\n]*\n$/)
  t.match(await out('volume', 'prune', '-af', '--filter', 'label=unneeded'), /^named\nFreed: /)
  t.equal(
    await out('history', '--format', '{{.Size}}', 'busybox'),
    await out('history', '--format', '{{.Size}}', 'busybox:latest'),
  )
  t.match(await coracle(['network', 'rm', '-f', 'nosuch']), { status: 0 })
  t.match(await coracle(['network', 'rm', 'nosuch']), { status: 1 })
  t.match(await coracle(['inspect', '--type', 'container', 'busybox']), {
    status: 1,
    stderr: /no container is called/,
  })
  t.match(await coracle(['inspect', '--type', 'image', '-f', '{{.Os}}', 'busybox']), { stdout: 'linux\n' })
  t.match(await coracle(['inspect', '-f', '{{.Name}}', 'bridge']), { stdout: 'bridge\n' }, 'a network')
  t.match(await coracle(['inspect', '-s', '-f', '{{.Os}}', 'busybox']), {
    stdout: 'linux\n',
    stderr: /--size is of containers/,
  })
  t.match(await coracle(['container', 'inspect', 'busybox']), { status: 1, stderr: /no container is called/ })
  t.match(await coracle(['image', 'inspect', '-f', '{{.Os}}', 'busybox', 'bridge']), {
    status: 1,
    stdout: 'linux\n',
    stderr: /no image is called bridge/,
  })
  for (const words of [
    ['history', 'busybox'],
    ['save', 'busybox'],
    ['push', 'busybox'],
    ['rmi', 'busybox'],
    ['image', 'inspect', 'busybox'],
    ['load'],
    ['import', '-'],
  ]) {
    const other = await coracle([
      ...words.slice(0, words[0] === 'image' ? 2 : 1),
      '--platform',
      'linux/arm64',
      ...words.slice(words[0] === 'image' ? 2 : 1),
    ])
    t.match(
      other,
      { status: words[0] === 'rmi' ? 1 : 125, stderr: /platform:? linux\/arm64/ },
      words.join(' '),
    )
  }
  t.match(await coracle(['history', '--platform', 'linux/amd64', 'busybox']), { status: 0 })
  t.match(await coracle(['history', '--platform', 'amd64', 'busybox']), {
    status: 125,
    stderr: /OS\/ARCHITECTURE/,
  })
  await coracle(['create', '--name', 'told', ...P, 'busybox', 'true'])
  await coracle(['update', '--cpu-quota', '25000', 'told'])
  t.equal(await out('inspect', '-f', '{{.HostConfig.NanoCpus}}', 'told'), '250000000\n')
  const past = ['events', '--since', '1m', '--until', '0s', '-f', 'container=told', '--format']
  t.match(await out(...past, '{{.Type}} {{.Action}}'), /^container create\ncontainer update\n$/)
  await coracle(['rm', 'told'])
  t.match(await out('info'), /^Containers: \d+\n[^]*Logging Driver: json-file\n/)
})

t.test('container move: to the end, whoever was killed over the one before', async (t) => {
  const { beds, here, there } = await twoDaemons(t)
  const serve = async (of: Engine, { root }: TestBed): Promise<Server> => {
    const api = createApiServer(of).listen(join(root, 'api.sock'))
    await once(api, 'listening')
    return api
  }
  const servers = [await serve(here, beds[0]!), await serve(there, beds[1]!)]
  const close = (each: Server): void => {
    each.close()
    each.closeAllConnections()
  }
  t.teardown(() => servers.forEach(close))
  const at = beds.map(({ root }) => `unix://${join(root, 'api.sock')}`)
  const env = { XDG_CONFIG_HOME: join(beds[0]!.root, 'config') }
  const run = (...words: string[]): Promise<Ended> => coracle(words, '', at[0], env)
  t.match(await run('context', 'create', 'farm', '--docker', `host=${at[1]}`), { status: 0 })
  const move = (word = 'web'): Promise<Ended> => run('container', 'move', '--to', 'farm', word)
  /** As far as that, and then nobody goes on. */
  const half = async (given: boolean): Promise<void> => {
    const [ends, wire] = [new AbortController(), new PassThrough()]
    let id = ''
    const write = async (bytes: Buffer, move: string): Promise<void> => {
      id = move
      wire.write(bytes)
    }
    const sent = here.moves.send('web', write, ends.signal)
    await there.moves.receive(wire, ends.signal)
    if (given) await here.moves.give(id)
    ends.abort()
    await sent.catch(() => undefined)
  }
  const again = async (): Promise<void> => {
    await there.remove('web', true)
    const { id } = await here.create({
      image: 'busybox',
      hypervisor: 'kvm',
      command: ['sleep', '1000'],
      name: 'web',
      networkMode: 'none',
    })
    await here.start(id)
  }
  const isMoved = async ({ status, stdout, stderr }: Ended): Promise<void> => {
    t.equal(status, 0, stderr)
    t.same(await here.list(), [])
    t.match(await there.list(), [
      { id: stdout.trim(), name: 'web', state: { status: 'running', paused: false } },
    ])
    t.equal((await there.list()).length, 1)
  }
  await isMoved(await move())
  await again()
  await half(false)
  await isMoved(await move())
  for (const word of ['name', 'id']) {
    await again()
    const { id } = await here.inspect('web')
    await half(true)
    await isMoved(await move(word === 'id' ? id.slice(0, 12) : 'web'))
  }
  t.match(await move(), { status: 1, stderr: /No such container: web/ })
  // Stopped meanwhile.
  await again()
  const { driver } = beds[1]!
  let stopped: Promise<void> | undefined
  driver.launched = () => void (stopped = here.stop('web', { timeout: 0 }))
  t.match(await move(), { status: 125, stderr: /no container stands still here for the move/ })
  await stopped
  t.match(await here.inspect('web'), { state: { status: 'exited' } })
  t.same(await there.list(), [])
  // The sender's daemon is killed meanwhile.
  await here.start('web')
  driver.launched = () => close(servers[0]!)
  t.match(await move(), { status: 125, stderr: /cannot reach the engine/ })
  driver.launched = () => undefined
  servers[0] = await serve(here, beds[0]!)
  // Its word is lost.
  servers[0].prependListener('request', ({ url, socket }) => {
    if (url?.endsWith('/give') === true) socket.destroy()
  })
  t.match(await move(), { status: 125, stderr: /stands still there; run the same command again/ })
  t.match(await there.inspect('web'), { state: { paused: true } })
  await isMoved(await move())
  await there.remove('web', true)
})
