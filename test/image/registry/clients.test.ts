import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, readdirSync, statSync } from 'node:fs'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { createApiServer } from '../../../src/api/server.js'
import { PLAIN_CONFIG, type RegistryConfig } from '../../../src/image/registry/config.js'
import { Registry } from '../../../src/image/registry/registry.js'
import { ImageStore } from '../../../src/image/store.js'
import { TestBed } from '../../engine/host.js'
import { dockerArchive } from '../archive-builder.js'
import { Scratch } from '../mounts.js'
import { sha256, stream, tar } from '../tar-builder.js'
import { DebianRegistry, USER } from './debian-registry.js'
import { FakeRegistry } from './fake-registry.js'

const CLI = fileURLToPath(new URL('../../../src/cli/main.js', import.meta.url))

/** An API server over a real store and registry client; containers are not run here. */
async function serve(t: { teardown(work: () => Promise<void>): void }, config: RegistryConfig) {
  const bed = new TestBed()
  const scratch = new Scratch()
  const store = await ImageStore.open(join(scratch.folder, 'images'))
  const registry = new Registry(store, () => config)
  const engine = await bed.open({ images: store, registry })
  const api = createApiServer(engine)
  const socket = join(scratch.folder, 'api.sock')
  api.listen(socket)
  await once(api, 'listening')
  t.teardown(async () => {
    api.closeAllConnections()
    await new Promise((resolve) => api.close(resolve))
    await bed.close()
    scratch[Symbol.dispose]()
  })
  const run = (program: string, words: string[], stdin = '') =>
    collect(program, words, stdin, {
      ...process.env,
      HOME: scratch.folder,
      DOCKER_CONFIG: join(scratch.folder, 'docker'),
      DOCKER_HOST: `unix://${socket}`,
      CORACLE_ROOT: join(scratch.folder, 'state'),
    })
  return {
    store,
    socket,
    folder: scratch.folder,
    docker: (...words: string[]) => run('docker', words),
    coracle: (words: string[], stdin?: string) => run(process.execPath, [CLI, ...words], stdin),
  }
}

async function collect(program: string, words: string[], stdin: string, env: NodeJS.ProcessEnv) {
  const child = spawn(program, words, { env, stdio: 'pipe' })
  const texts = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk: Buffer) => (texts.stdout += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (texts.stderr += chunk.toString()))
  child.stdin.on('error', () => undefined)
  child.stdin.end(stdin)
  const [status] = (await once(child, 'close')) as [number | null]
  return { status, ...texts }
}

const layers = [tar({ name: 'a', content: 'a' }), tar({ name: 'b', content: 'b'.repeat(1_000_000) })]

const noDocker = spawnSync('docker', ['--version']).error ? "docker's client is not in PATH" : false

t.test("Docker's client", { skip: noDocker }, async (t) => {
  await using server = await DebianRegistry.start()
  const { store, docker } = await serve(t, server.config)
  const name = `${server.host}/app:1`
  await store.load(stream(dockerArchive({ layers, names: ['app:1'] })))

  t.match(await docker('tag', 'app:1', name), { status: 0 })
  const refused = await docker('push', name)
  t.equal(refused.status, 1)
  t.match(refused.stderr, /access denied/)
  t.match(await docker('login', '-u', USER.username, '-p', 'wrong', server.host), {
    status: 1,
    stderr: /denied/,
  })
  t.match(await docker('login', '-u', USER.username, '-p', USER.password, server.host), {
    status: 0,
    stdout: /Login Succeeded/,
  })
  const pushed = await docker('push', name)
  t.equal(pushed.status, 0, pushed.stderr)
  t.match(pushed.stdout, /Pushed[^]*1: digest: sha256:[0-9a-f]{64} size: \d+/)

  store.remove(store.get(name).id, { force: true })
  const pulled = await docker('pull', name)
  t.equal(pulled.status, 0, pulled.stderr)
  t.match(pulled.stdout, /Pulling from[^]*Pull complete[^]*Digest: sha256:[^]*Downloaded newer image/)
  t.match((await docker('pull', name)).stdout, /Image is up to date/)
  t.match((await docker('pull', '-a', `${server.host}/app`)).stdout, /1: Pulling from/)
  t.match((await docker('images')).stdout, /app +1 /)
  const digest = /sha256:[0-9a-f]{64}/.exec(pulled.stdout)![0]
  t.match(await docker('pull', `${server.host}/app@${digest}`), { status: 0 })
  const none = await docker('pull', `${server.host}/none`)
  t.match(none, { status: 1, stderr: /is not there/ })
  t.match(await docker('pull', '--platform', 'linux/arm64', name), { status: 1, stderr: /linux\/amd64/ })
})

t.test('coracle', async (t) => {
  await using server = await DebianRegistry.start()
  const { store, coracle, folder } = await serve(t, server.config)
  const name = `${server.host}/team/app:1`
  await store.load(stream(dockerArchive({ layers, names: ['app:1'] })))

  t.match(await coracle(['tag', 'app:1', name]), { status: 0 })
  t.match(await coracle(['push', name]), { status: 1, stderr: /access denied.*coracle login/ })
  const login = ['login', '-u', USER.username, '--password-stdin', server.host]
  t.match(await coracle(login, 'wrong'), { status: 1, stderr: /access denied/ })
  t.match(await coracle(login, `${USER.password}\n`), { status: 0, stdout: 'Login Succeeded\n' })
  const file = join(folder, 'state/credentials.json')
  t.equal(statSync(file).mode & 0o777, 0o600, 'nobody else reads it')
  t.strictSame(Object.keys((JSON.parse(readFileSync(file, 'utf8')) as { auths: object }).auths), [
    server.host,
  ])
  t.match(await coracle(['push', name]), { status: 0, stdout: /1: digest: sha256:/ })

  store.remove(store.get(name).id, { force: true })
  t.match(await coracle(['create', '--pull', 'never', '--isolation', 'process', name]), {
    status: 125,
    stderr: /no such image/,
  })
  const created = await coracle(['create', '--isolation', 'process', name])
  t.equal(created.status, 0, created.stderr)
  t.match(created.stderr, /is not here: pulling it[^]*Downloaded newer image/)
  t.match(created.stdout, /^[0-9a-f]{64}\n$/, 'stdout has the id alone')
  t.match(await coracle(['create', '--pull', 'always', '--isolation', 'process', name]), {
    status: 0,
    stderr: /up to date/,
  })
  t.match(await coracle(['pull', '-q', name]), { status: 0, stdout: `${name}\n` })
  t.match(await coracle(['create', '--isolation', 'process', `${server.host}/none`]), {
    status: 125,
    stderr: /cannot pull image/,
  })
  t.match(await coracle(['create', '--pull', 'sometimes', name]), { status: 125, stderr: /--pull is one of/ })

  t.match(await coracle(['logout', server.host]), { status: 0, stdout: /Removed/ })
  t.match(await coracle(['logout', server.host]), { status: 0, stdout: /Not logged in/ })
  t.match(await coracle(['pull', name]), { status: 1, stderr: /access denied/ })
})

t.test('a client that goes in the middle of a pull', async (t) => {
  await using fake = await FakeRegistry.start()
  const { store, socket } = await serve(t, PLAIN_CONFIG)
  fake.image(layers, '1')
  const stalled = new Promise<() => void>((resolve) => {
    fake.trick = (request, response) => {
      if (!request.url!.endsWith(`/blobs/${sha256(layers[1]!)}`)) return false
      response.writeHead(200).write('b')
      resolve(() => request.socket.destroyed)
      response.on('close', () => broken())
      return true
    }
  })
  let broken = (): void => undefined
  const closed = new Promise<void>((resolve) => (broken = resolve))
  const request = httpRequest({
    socketPath: socket,
    method: 'POST',
    path: `/images/create?fromImage=${fake.host}/app&tag=1`,
  })
  request.on('error', () => undefined)
  request.end()
  await stalled
  t.not(readdirSync(join(store.root, 'tmp')).length, 0)
  request.destroy()
  await closed
  while (readdirSync(join(store.root, 'tmp')).length > 0) await new Promise(setImmediate)
  t.strictSame(store.list(), [])
})

t.test('requests that are wrong', async (t) => {
  const { socket } = await serve(t, PLAIN_CONFIG)
  const post = async (path: string, auth?: string) => {
    const request = httpRequest({
      socketPath: socket,
      method: path.startsWith('/dist') ? 'GET' : 'POST',
      path,
      headers: auth === undefined ? {} : { 'X-Registry-Auth': auth },
    })
    request.end()
    const [response] = (await once(request, 'response')) as [IncomingMessage]
    let text = ''
    for await (const chunk of response) text += String(chunk)
    return { status: response.statusCode, ...(JSON.parse(text) as { message: string }) }
  }
  const base64 = (text: string): string => Buffer.from(text).toString('base64url')
  for (const [path, status, message, auth] of [
    ['/images/create?fromImage=UPPER/..', 400, /invalid image name/],
    ['/images/create?fromSrc=http://files.example/a.tar', 400, /from no other address/],
    ['/images/create?fromImage=a&tag=b/c', 400, /invalid image name/],
    ['/images/create?fromImage=a&tag=1', 400, /X-Registry-Auth/, '!!'],
    ['/images/create?fromImage=a&tag=1', 400, /X-Registry-Auth/, base64('[]')],
    ['/images/create?fromImage=a&tag=1', 400, /username/, base64('{"username":7}')],
    ['/images/create?fromImage=a&tag=1&platform=windows', 400, /linux\/amd64/],
    ['/images/none/push?tag=1', 404, /no such image/],
    ['/images/none/push', 404, /does not exist locally/],
    ['/distribution/a:b:c/json', 400, /invalid image name/],
  ] as const)
    t.match(await post(path, auth), { status, message }, `${path} ${auth ?? ''}`)
})
