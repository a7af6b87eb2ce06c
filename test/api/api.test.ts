import { once } from 'node:events'
import { request as httpRequest, type Server } from 'node:http'
import { connect, type Socket } from 'node:net'
import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Duplex, type Readable } from 'node:stream'
import t from 'tap'
import { WebSocket } from 'ws'
import { Query } from '../../src/api/router.js'
import { COMMIT_BODY } from '../../src/api/schemas.js'
import { join as joinStreams } from '../../src/api/routes/streams.js'
import { createApiServer } from '../../src/api/server.js'
import { HARMLESS, refuseFields, refuseParameters } from '../../src/api/unhonoured.js'
import type { Engine } from '../../src/engine/engine.js'
import { FrameParser } from '../../src/engine/frames.js'
import { TestBed } from '../engine/host.js'
import { FIELDS, PARAMETERS, rows } from './reference.js'

interface Answer {
  status: number
  headers: Record<string, string | string[] | undefined>
  text: string
  body: unknown
}

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

async function ask(method: string, url: string, body?: unknown, type = 'application/json'): Promise<Answer> {
  const request = httpRequest({ socketPath: path, method, path: url, agent: false })
  // An answer may come before the whole of a body is sent.
  request.on('error', () => undefined)
  if (body !== undefined) request.setHeader('Content-Type', type)
  request.end(body === undefined || typeof body === 'string' ? body : JSON.stringify(body))
  const [response] = (await once(request, 'response')) as [
    Readable & { statusCode: number; headers: Answer['headers'] },
  ]
  let text = ''
  for await (const chunk of response) text += chunk
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch {
    parsed = undefined
  }
  return { status: response.statusCode, headers: response.headers, text, body: parsed }
}

const PROCESS = { Isolation: 'process' }
const create = async (body: object, name = ''): Promise<string> => {
  const answer = await ask('POST', `/v1.51/containers/create${name && `?name=${name}`}`, {
    Image: 'busybox',
    HostConfig: PROCESS,
    ...body,
  })
  if (answer.status !== 201) throw new Error(answer.text)
  return (answer.body as { Id: string }).Id
}

t.test('versions, headers and addresses', async (t) => {
  for (const url of ['/_ping', '/v1.51/_ping', '/v1.44/_ping']) {
    const { status, headers, text } = await ask('GET', url)
    t.equal(status, 200)
    t.equal(text, 'OK')
    t.match(headers, { 'api-version': '1.51', ostype: 'linux', server: /^Coracle/ })
  }
  t.equal((await ask('HEAD', '/_ping')).status, 200)
  t.match(await ask('GET', '/v1.43/_ping'), { status: 400, body: { message: /too old/ } })
  t.match(await ask('GET', '/v1.52/_ping'), { status: 400, body: { message: /too new/ } })
  t.match(await ask('GET', '/version'), { body: { ApiVersion: '1.51', MinAPIVersion: '1.44' } })
  t.match(await ask('GET', '/info'), { body: { OSType: 'linux', NCPU: 4 } })
  t.match(await ask('GET', '/nosuch'), { status: 404, body: { message: 'page not found' } })
  t.match(await ask('GET', '/containers/%zz/json'), { status: 400 })
  t.match(await ask('GET', '/plugins'), { status: 200, body: [] })
  const swarms = [
    'GET /swarm',
    'POST /swarm/leave',
    'GET /nodes',
    'GET /services/x',
    'GET /tasks',
    'POST /secrets/create',
  ]
  for (const [method, url] of swarms.map((each) => each.split(' ') as [string, string]))
    t.match(await ask(method, url), { status: 503, body: { message: /not a swarm manager/ } }, url)
  const unbuilt = await ask('POST', '/v1.51/session')
  t.match(unbuilt, { status: 501, body: { message: /not built yet/ } })
  t.equal(unbuilt.headers['content-type'], 'application/json')
  t.match(await ask('POST', '/images/create?fromImage=alpine&tag=latest'), {
    status: 500,
    body: { message: /no registry is reached from here/ },
  })
})

t.test('bad bodies', async (t) => {
  const refused: [unknown, RegExp, string?][] = [
    ['{', /invalid JSON/],
    ['[]', /must be object/],
    ['{}', /Image/],
    [{ Image: '' }, /Image/],
    [{ Image: 5 }, /Image must be string/],
    [{ Image: 'busybox', Env: [1] }, /Env/],
    [{ Image: 'busybox', HostConfig: { Memory: 'much' } }, /HostConfig.Memory/],
    [{ Image: 'busybox', HostConfig: { NanoCpus: 1e30 } }, /HostConfig.NanoCpus/],
    [
      { Image: 'busybox', HostConfig: { BlkioDeviceReadBps: [{ Path: '/dev/sda', Rate: 0 }] } },
      /HostConfig.BlkioDeviceReadBps/,
    ],
    [
      { Image: 'busybox', HostConfig: { Annotations: { 'coracle.network-send-bps': 'all' } } },
      /network-send-bps is a number/,
    ],
    [{ Image: 'busybox', HostConfig: { LogConfig: { Type: 'syslog' } } }, /no log driver named 'syslog'/],
    [{ Image: 'busybox', HostConfig: { LogConfig: { Config: { tag: 'x' } } } }, /unknown log opt 'tag'/],
    [{ Image: 'busybox', HostConfig: { Isolation: 'hyperv' } }, /unknown isolation/],
    [{ Image: 'busybox', HostConfig: { Runtime: 'constructor' } }, /unknown isolation/],
    [
      { Image: 'busybox', HostConfig: { Annotations: { 'coracle.hypervisor': 'xen' } } },
      /unknown hypervisor/,
    ],
    [{ Image: 'busybox', HostConfig: { Annotations: { 'coracle.user': '0' } } }, /engine's own/],
    [{ Image: 'busybox' }, /Content-Type/, 'text/plain'],
    [JSON.stringify({ Image: 'x', Cmd: ['y'.repeat(5 * 1024 * 1024)] }), /larger than/],
  ]
  for (const [body, message, type] of refused) {
    const answer = await ask('POST', '/containers/create', body, type)
    t.equal(answer.status, 400)
    t.match(answer.body, { message })
  }
  t.match(await ask('POST', '/containers/create', { Image: 'nosuch' }), { status: 404 })
  for (const HostConfig of [
    { Binds: ['/:/host:rshared'] },
    { BlkioWeightDevice: [{ Path: '/x', Weight: 10 }] },
  ])
    t.match(await ask('POST', '/containers/create', { Image: 'busybox', HostConfig }), { status: 501 })
  for (const bridge of [{ GwPriority: 1 }, { IPAMConfig: { LinkLocalIPs: ['169.254.1.1'] } }]) {
    const body = { Image: 'busybox', NetworkingConfig: { EndpointsConfig: { bridge } } }
    t.match(await ask('POST', '/containers/create', body), { status: 501 })
  }
  for (const HostConfig of [
    { DeviceCgroupRules: ['c 1:3 r'] },
    { PidMode: 'container:x' },
    { IpcMode: 'container:x' },
    { IpcMode: 'shareable' },
  ])
    t.match(await ask('POST', '/containers/create', { Image: 'busybox', HostConfig }), {
      status: 400,
      body: { message: /a microVM cannot .*--isolation process/ },
    })
  for (const NetworkMode of ['nosuch', 'container:nosuch'])
    t.match(
      await ask('POST', '/containers/create', {
        Image: 'busybox',
        HostConfig: { Isolation: 'process', NetworkMode },
      }),
      { status: 400, body: { message: /nosuch/ } },
      'a 404 would have the client fetch the image',
    )
  for (const CgroupParent of ['/', '../x', '/a/../b', 'a/memory.max', '/a b', '/tasks', '/coracle-x'])
    t.match(await ask('POST', '/containers/create', { Image: 'busybox', HostConfig: { CgroupParent } }), {
      status: 400,
      body: { message: /--cgroup-parent/ },
    })
  for (const HostConfig of [{ PidMode: 'host' }, { Devices: [{ PathOnHost: '/dev/null' }] }])
    t.match(await ask('POST', '/containers/create', { Image: 'busybox', HostConfig }), {
      status: 400,
      body: { message: /--isolation process/ },
    })
  for (const [HostConfig, message] of [
    [{ NetworkMode: 'host' }, /a microVM has a kernel of its own.*--isolation process/],
    [{ NetworkMode: 'container:other' }, /a microVM has a kernel of its own/],
    [{ PortBindings: { '80/sctp': [] } }, /tcp or udp/],
    [{ PortBindings: { '80/tcp': [{ HostPort: '90-80' }] } }, /invalid port specification: "90-80"/],
    [{ PortBindings: { '0/tcp': [] } }, /invalid port specification/],
    [{ Dns: ['resolver.example'] }, /is not an ip address/],
    [
      {
        NetworkMode: 'none',
        Isolation: 'process',
        Sysctls: {},
        PortBindings: { '80/tcp': [{ HostPort: 1 }] },
      },
      /HostPort must be string/,
    ],
  ] as const)
    t.match(await ask('POST', '/containers/create', { Image: 'busybox', HostConfig }), {
      status: 400,
      body: { message },
    })
  t.match(
    await ask('POST', '/containers/create', { Image: 'busybox', HostConfig: { NetworkMode: 'nope' } }),
    {
      status: 400,
      body: { message: 'network nope not found' },
    },
  )
  t.match(await ask('GET', '/containers/json?filters={'), { status: 400 })
  t.match(await ask('GET', '/containers/json?filters={"nosuch":["a"]}'), { status: 400 })
  t.match(await ask('POST', '/containers/none/wait?condition=never'), { status: 400 })
  t.match(await ask('POST', '/containers/none/stop?t=soon'), { status: 400 })
  t.same(await engine.list(), [])
})

t.test('the life of a container', async (t) => {
  const id = await create({ Cmd: ['sleep', '100'], Labels: { a: 'b' } }, 'life')
  t.match(await ask('POST', '/containers/create?name=life', { Image: 'busybox' }), { status: 409 })
  t.equal((await ask('POST', `/containers/${id}/start`)).status, 204)
  t.equal((await ask('POST', '/containers/life/start')).status, 304)
  const filters = encodeURIComponent('{"label":{"a=b":true},"status":["running"]}')
  t.match((await ask('GET', `/containers/json?filters=${filters}`)).body, [
    { Names: ['/life'], State: 'running' },
  ])
  t.same((await ask('GET', '/containers/json?filters={"label":["a=c"]}')).body, [])
  t.match((await ask('GET', '/containers/life/json')).body, { State: { Running: true }, Name: '/life' })
  t.equal((await ask('DELETE', '/containers/life')).status, 409)
  t.equal((await ask('POST', '/containers/life/kill?signal=TERM')).status, 204)
  t.match((await ask('POST', '/containers/life/wait')).body, { StatusCode: 143 })
  t.equal((await ask('POST', '/containers/life/kill')).status, 409)
  t.equal((await ask('POST', '/containers/life/stop')).status, 304)
  t.equal((await ask('DELETE', '/containers/life')).status, 204)
  t.equal((await ask('DELETE', '/containers/life')).status, 404)
})

t.test('images', async (t) => {
  t.match((await ask('GET', '/images/json')).body, [{ RepoTags: ['busybox:latest'] }])
  t.match((await ask('GET', '/images/busybox:latest/json')).body, { Os: 'linux' })
  t.equal((await ask('GET', '/images/a/b/c:d/json')).status, 404)
  for (const [name, value, count] of [
    ['before', 'busybox', 0],
    ['since', 'busybox', 0],
    ['until', '2026-01-01T00:00:00Z', 0],
    ['until', '2027-01-01T00:00:00Z', 1],
  ] as const) {
    const filters = encodeURIComponent(JSON.stringify({ [name]: [value] }))
    t.equal(((await ask('GET', `/images/json?filters=${filters}`)).body as []).length, count, name)
  }
  t.match(
    (await ask('POST', '/images/load', 'bytes', 'application/x-tar')).text,
    /Loaded image: busybox:latest/,
  )
})

/** Attaches by hand, as a client on the wire would. @param early bytes that go right behind the head */
async function hijack(
  id: string,
  query: string,
  head = '',
  early = '',
): Promise<{ socket: Socket; head: string; rest: Buffer }> {
  const socket = connect({ path, allowHalfOpen: true })
  socket.write(
    `POST /v1.51/containers/${id}/attach?${query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n${head}\r\n${early}`,
  )
  let seen = Buffer.alloc(0)
  for (;;) {
    const [chunk] = (await once(socket, 'data')) as [Buffer]
    seen = Buffer.concat([seen, chunk])
    const end = seen.indexOf('\r\n\r\n')
    if (end < 0) continue
    socket.pause()
    return { socket, head: seen.toString('latin1', 0, end), rest: seen.subarray(end + 4) }
  }
}

t.test('attach: the body is skipped, early stdin is kept, EOF is a half-close', async (t) => {
  const id = await create({ Cmd: ['sh', '-c', 'cat; echo end >&2'], OpenStdin: true, StdinOnce: true })
  const { socket, head } = await hijack(
    id,
    'stream=1&stdin=1&stdout=1&stderr=1',
    'Content-Length: 4\r\n',
    'BODYearly ',
  )
  t.match(head, /^HTTP\/1\.1 101 UPGRADED/)
  t.match(head, /Upgrade: tcp/)
  t.match(head, /multiplexed-stream/)
  t.equal((await ask('POST', `/containers/${id}/start`)).status, 204)
  socket.end('late')
  const out = ['', '', '']
  const parser = new FrameParser()
  for await (const chunk of socket)
    parser.push(chunk as Buffer, (stream, data) => (out[stream] += data.toString()))
  t.same(out, ['', 'early late', 'end\n'])
  const refused = await hijack('nosuch', 'stream=1')
  t.match(refused.head, /^HTTP\/1\.1 404 /)
  refused.socket.destroy()
  const text = async (part: string): Promise<string> => {
    const { socket, rest } = await hijack(id, part)
    let all = ''
    const parser = new FrameParser()
    const take = (_stream: number, data: Buffer): void => void (all += data.toString())
    parser.push(rest, take)
    for await (const chunk of socket) parser.push(chunk as Buffer, take)
    return all
  }
  t.equal(await text('logs=1&stdout=1'), 'early late', 'what was put out before')
  t.equal((await ask('POST', `/containers/${id}/attach?stdout=1`)).status, 400)
  await engine.remove(id)
})

t.test('attach: keys that leave a terminal', async (t) => {
  const id = await create({ Cmd: ['cat'], Tty: true, OpenStdin: true })
  const typed = async (keys: string, bytes: string): Promise<void> => {
    const { socket } = await hijack(id, `stream=1&stdin=1&stdout=1&detachKeys=${keys}`)
    if ((await engine.inspect(id)).state.status !== 'running') await engine.start(id)
    socket.write(bytes, 'latin1')
    socket.resume()
    await once(socket, 'end')
    socket.destroy()
  }
  await typed('', 'x\x10\x11')
  await typed('ctrl-x,d', 'x\x10\x11\x18d')
  t.match((await engine.inspect(id)).state, { status: 'running' }, 'it goes on')
  const refused = await hijack(id, 'stream=1&stdin=1&detachKeys=ctrl-1')
  t.match(refused.head, /^HTTP\/1\.1 400 /)
  refused.socket.destroy()
  await engine.remove(id, true)
})

t.test('attach: a client that reads slowly gets all, though it has ended its side', async (t) => {
  let isSlow = true
  let goOn!: () => void
  const written: string[] = []
  const client = new Duplex({
    read: () => undefined,
    write: (chunk: Buffer, _encoding, done) => {
      written.push(chunk.toString())
      if (isSlow) goOn = done
      else done()
    },
  })
  const workload = new Duplex({ read: () => undefined, write: (_chunk, _encoding, done) => done() })
  const closed = once(client, 'close')
  const joined = joinStreams(
    { tty: false, openStdin: true, stdinOnce: true },
    Promise.resolve(workload),
    client,
    client,
    {
      stdin: true,
      keys: undefined,
    },
  )
  workload.push('first ')
  workload.push('last')
  workload.push(null)
  await joined
  client.push(null)
  await once(client, 'end')
  isSlow = false
  goOn()
  await closed
  t.equal(written.join(''), 'first last')
})

t.test('attach: a connection goes with its client where the container did not start', async (t) => {
  const id = await create({ Cmd: ['true'] })
  const [[taken], { socket, head }] = await Promise.all([
    once(server, 'connection') as Promise<[Socket]>,
    hijack(id, 'stream=1&stdin=1&stdout=1'),
  ])
  t.match(head, /^HTTP\/1\.1 101 /)
  socket.write('what it would have read')
  await engine.remove(id)
  await once(socket.resume(), 'end')
  const gone = once(taken, 'close')
  socket.end()
  await gone
})

t.test('attach by websocket', async (t) => {
  const url = (id: string, query: string): string =>
    `ws+unix://${path}:/v1.51/containers/${id}/attach/ws?${query}`
  const id = await create({ Cmd: ['sh', '-c', 'cat; echo end >&2'], OpenStdin: true, StdinOnce: true })
  const socket = new WebSocket(url(id, 'stream=1&stdin=1&stdout=1&stderr=1'))
  const said: Buffer[] = []
  socket.on('message', (data: Buffer, isBinary) => said.push(Buffer.concat([data, Buffer.from([+isBinary])])))
  await once(socket, 'open')
  await engine.start(id)
  const bytes = Buffer.from(randomBytes(1500).toString('hex'))
  socket.send(bytes)
  socket.send('text')
  const all = (): Buffer => Buffer.concat(said.map((each) => each.subarray(0, -1)))
  while (all().length < bytes.length + 4) await once(socket, 'message')
  t.ok(all().equals(Buffer.concat([bytes, Buffer.from('text')])), 'no frames of streams in it')
  t.ok(said.every((each) => each.at(-1) === 1))
  const closed = once(socket, 'close')
  await engine.kill(id, 'KILL')
  t.equal((await closed)[0], 1005, 'closed as it should be')
  const logs = new WebSocket(url(id, 'logs=1&stdout=1'))
  const [first] = (await once(logs, 'message')) as [Buffer]
  t.ok(first.subarray(0, 4).equals(bytes.subarray(0, 4)), 'what was put out before')
  await once(logs, 'close')
  for (const [where, status] of [
    ['nosuch', 404],
    [id, 400],
  ] as const) {
    const [, answer] = (await once(
      new WebSocket(url(where, where === id ? '' : 'stream=1')).on('error', () => undefined),
      'unexpected-response',
    )) as [unknown, { statusCode: number }]
    t.equal(answer.statusCode, status)
  }
  t.match(await ask('GET', `/containers/${id}/attach/ws?stream=1`), {
    status: 400,
    body: { message: /websocket/ },
  })
  const wrong = connect(path).end(
    `GET /containers/${id}/attach/ws?stream=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n`,
  )
  t.match(String((await once(wrong, 'data'))[0]), /^HTTP\/1\.1 400 [^]*no websocket/)
  await once(wrong, 'close')
  await engine.remove(id, true)
})

t.test('100 MB each way, unchanged', async (t) => {
  const id = await create({ Cmd: ['cat'], OpenStdin: true, StdinOnce: true })
  const { socket, rest } = await hijack(id, 'stream=1&stdin=1&stdout=1&stderr=1')
  t.equal(rest.length, 0)
  t.equal((await ask('POST', `/containers/${id}/start`)).status, 204)
  const block = randomBytes(1_000_003)
  const sent = createHash('sha256')
  const feeding = (async () => {
    for (let count = 0; count < 100; count++) {
      sent.update(block)
      if (!socket.write(block)) await once(socket, 'drain')
    }
    socket.end()
  })()
  const got = createHash('sha256')
  const parser = new FrameParser()
  for await (const chunk of socket) parser.push(chunk as Buffer, (_stream, data) => got.update(data))
  await feeding
  t.equal(got.digest('hex'), sent.digest('hex'))
  await engine.remove(id, true)
})

const haveDocker = spawnSync('docker', ['--version']).status === 0

t.test("Docker's own client", { skip: haveDocker ? false : 'there is no docker client here' }, async (t) => {
  const run = async (
    words: string[],
    input = '',
  ): Promise<{ status: number; stdout: string; stderr: string }> => {
    const child = spawn('docker', ['-H', `unix://${path}`, ...words], {
      env: { PATH: process.env['PATH'], HOME: bed.root, DOCKER_CLI_HINTS: 'false' },
    })
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', (data: Buffer) => (stdout += data.toString()))
    child.stderr.on('data', (data: Buffer) => (stderr += data.toString()))
    child.stdin.end(input)
    const timer = setTimeout(() => child.kill('SIGKILL'), 30_000)
    const [status] = (await once(child, 'close')) as [number]
    clearTimeout(timer)
    return { status, stdout, stderr }
  }
  const P = ['--runtime', 'process']
  t.match(await run(['run', '--rm', ...P, 'busybox', 'echo', 'hi']), {
    status: 0,
    stdout: 'hi\n',
    stderr: '',
  })
  t.match(await run(['run', '--rm', 'busybox', 'true']), { status: 0, stderr: /hypervisor=qemu: / })
  t.match(await run(['run', '--rm', '-i', ...P, 'busybox', 'cat'], 'in'), { status: 0, stdout: 'in' })
  t.match(await run(['run', '--rm', ...P, 'busybox', 'sh', '-c', 'echo e >&2; exit 7']), {
    status: 7,
    stderr: 'e\n',
  })
  t.match(await run(['run', '--rm', ...P, 'busybox', 'nosuch']), { status: 127 })
  t.match(await run(['run', '--rm', ...P, 'busybox', '/etc/passwd']), { status: 126 })
  t.match(await run(['run', '--rm', ...P, 'nosuch']), {
    status: 125,
    stderr: /no registry is reached from here/,
  })
  t.match(await run(['run', '-d', ...P, '--name', 'dd', 'busybox', 'sh', '-c', 'echo out; exec sleep 100']), {
    status: 0,
  })
  t.match(await run(['logs', '--tail', '1', 'dd']), { status: 0 })
  t.match(await run(['ps', '--format', '{{.Names}} {{.State}}']), { stdout: 'dd running\n' })
  t.match(await run(['update', '--cpus', '0.5', '--memory', '64m', '--cpu-shares', '512', 'dd']), {
    status: 0,
    stdout: 'dd\n',
  })
  const limits = '{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.CpuShares}}'
  t.match(await run(['inspect', '-f', limits, 'dd']), { stdout: '500000000 67108864 512\n' })
  t.match(await run(['update', '--cpuset-cpus', '0', 'dd']), { status: 0 })
  t.match(await run(['stop', '-t', '5', 'dd']), { status: 0 })
  t.match(await run(['inspect', '-f', '{{.State.ExitCode}}', 'dd']), { stdout: '143\n' })
  t.match(await run(['rm', 'dd']), { status: 0 })
  t.match(await run(['images', '-q', '--no-trunc']), { stdout: /^sha256:b+\n$/ })
  t.match(await run(['load'], 'archive'), { status: 0, stdout: /Loaded image: busybox:latest/ })
  t.match(await run(['ps', '-aq']), { stdout: '' })
})

t.test('events, renaming, pruning and restart policies over the wire', async (t) => {
  const since = Date.now() / 1000
  const id = await create(
    {
      Cmd: ['true'],
      HostConfig: { ...PROCESS, RestartPolicy: { Name: 'on-failure', MaximumRetryCount: 2 } },
    },
    'evented',
  )
  t.match(await ask('POST', `/containers/${id}/rename?name=renamed`), { status: 204 })
  t.match(await ask('POST', '/containers/renamed/rename?name='), { status: 400 })
  t.match((await ask('GET', '/containers/renamed/json')).body, {
    Name: '/renamed',
    HostConfig: { RestartPolicy: { Name: 'on-failure', MaximumRetryCount: 2 } },
  })
  for (const RestartPolicy of [
    { Name: 'sometimes' },
    { Name: 'always', MaximumRetryCount: 1 },
    { Name: 'on-failure', MaximumRetryCount: -1 },
  ])
    t.match(await ask('POST', '/containers/create', { Image: 'busybox', HostConfig: { RestartPolicy } }), {
      status: 400,
      body: { message: /invalid restart policy/ },
    })
  t.match(
    await ask('POST', '/containers/create', {
      Image: 'busybox',
      HostConfig: { AutoRemove: true, RestartPolicy: { Name: 'always' } },
    }),
    { status: 400, body: { message: /AutoRemove/ } },
  )
  const only = encodeURIComponent(JSON.stringify({ label: ['nosuch'] }))
  t.match((await ask('POST', `/containers/prune?filters=${only}`)).body, { ContainersDeleted: [] })
  const others = encodeURIComponent(JSON.stringify({ 'label!': ['nosuch'], until: ['0s'] }))
  const pruned = (await ask('POST', `/containers/prune?filters=${others}`)).body as {
    ContainersDeleted: string[]
  }
  t.ok(pruned.ContainersDeleted.includes(id))
  const filters = encodeURIComponent(JSON.stringify({ container: { [id]: true }, event: { rename: true } }))
  const { text } = await ask(
    'GET',
    `/events?since=${since}&until=${Date.now() / 1000 + 1}&filters=${filters}`,
  )
  t.match(JSON.parse(text), {
    Type: 'container',
    Action: 'rename',
    Actor: { ID: id, Attributes: { name: 'renamed', oldName: '/evented' } },
    scope: 'local',
  })
  t.match(await ask('GET', '/events?since=yesterday'), { status: 400 })
})

t.test('a log with a bound, and none', async (t) => {
  const LogConfig = { Type: 'json-file', Config: { 'max-size': '1k', 'max-file': '3' } }
  const id = await create({ HostConfig: { ...PROCESS, LogConfig } })
  t.match(await ask('GET', `/containers/${id}/json`), {
    body: { HostConfig: { LogConfig }, LogPath: /log$/ },
  })
  const quiet = await create({ HostConfig: { ...PROCESS, LogConfig: { Type: 'none', Config: {} } } })
  t.match(await ask('GET', `/containers/${quiet}/json`), { body: { LogPath: '' } })
  t.match(await ask('GET', `/containers/${quiet}/logs?stdout=1`), {
    status: 501,
    body: { message: 'configured logging driver does not support reading' },
  })
  for (const each of [id, quiet]) await ask('DELETE', `/containers/${each}`)
})

t.test("what runs, in ps's columns", async (t) => {
  const id = await create({ Cmd: ['sleep', '100'], HostConfig: { ...PROCESS, Init: true } }, 'topped')
  t.match(await ask('GET', `/containers/${id}/json`), { body: { Path: 'sleep', HostConfig: { Init: true } } })
  const top = async (ps?: string): Promise<Answer> =>
    ask('GET', `/v1.51/containers/topped/top${ps === undefined ? '' : `?ps_args=${encodeURIComponent(ps)}`}`)
  t.match(await top(), { status: 409, body: { message: /is not running/ } })
  await ask('POST', `/containers/${id}/start`)
  t.equal(bed.driver.specs.at(-1)!.init, true)
  const now = /^(\d\d:\d\d|[A-Z][a-z]{2}\d\d)$/
  t.match((await top()).body, {
    Titles: ['UID', 'PID', 'PPID', 'C', 'STIME', 'TTY', 'TIME', 'CMD'],
    Processes: [
      ['root', '7', '0', '30', now, 'pts/1', '00:05:05', 'sh -c a?b'],
      ['33', '8', '0', '30', now, '?', '00:05:05', '[worker]'],
    ],
  })
  t.match((await top('aux')).body, {
    Titles: 'USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND'.split(' '),
    Processes: [
      ['root', '7', /^30\.[45]$/, '1.6', '8192', '1024', 'pts/1', 'Ss+', now, '5:05', 'sh -c a?b'],
      [],
    ],
  })
  t.match((await top('-eo pid,comm,etime=AGE')).body, {
    Titles: ['PID', 'COMMAND', 'AGE'],
    Processes: [
      ['7', 'sh) S 1', /^16:4\d$/],
      ['8', 'worker', /^16:4\d$/],
    ],
  })
  t.match((await top('ax')).body, { Titles: ['PID', 'TTY', 'STAT', 'TIME', 'COMMAND'] })
  t.match((await top('-A')).body, { Titles: ['PID', 'TTY', 'TIME', 'CMD'] })
  t.match((await top('-A -f -o pid -o user')).body, { Titles: ['PID', 'USER'] })
  for (const [ps, what] of [
    ['-eT', "the option 'T'"],
    ['-o', 'an empty list'],
    ['-eo pid,constructor', "the column 'constructor'"],
    ['--forest', "'--forest'"],
    ['1; rm', "the option '1'"],
  ] as const)
    t.match(await top(ps), { status: 400, body: { message: new RegExp(`ps_args: ${what}.*-ef, aux`) } }, ps)
  t.match(await ask('GET', '/containers/nobody/top'), { status: 404 })
  await ask('DELETE', `/containers/${id}?force=1`)
})

t.test('stats in Docker’s shape', async (t) => {
  const id = await create({ Cmd: ['sleep', '1000'], HostConfig: PROCESS }, 'measured')
  const idle = await ask('GET', `/containers/${id}/stats?stream=0`)
  t.match(idle, {
    status: 200,
    body: { id, name: '/measured', read: '0001-01-01T00:00:00Z', memory_stats: {} },
  })
  t.equal((await ask('POST', `/containers/${id}/start`)).status, 204)
  const first = await ask('GET', `/containers/${id}/stats?stream=false&one-shot=true`)
  t.match(first.body, {
    read: /^20.*Z$/,
    preread: '0001-01-01T00:00:00Z',
    pids_stats: { current: 2 },
    blkio_stats: {
      io_service_bytes_recursive: [
        { major: 254, minor: 0, op: 'read', value: 4096 },
        { major: 254, minor: 0, op: 'write', value: 512 },
      ],
    },
    cpu_stats: {
      cpu_usage: { total_usage: 2e9, usage_in_kernelmode: 5e8 },
      system_cpu_usage: 100e9,
      online_cpus: 2,
      throttling_data: { periods: 0 },
    },
    precpu_stats: { cpu_usage: { total_usage: 0 } },
    memory_stats: { usage: 3 << 20, limit: 64 << 20, stats: { inactive_file: 1 << 20 } },
  })
  t.notHas(first.body, { precpu_stats: { online_cpus: Number } })
  const second = await ask('GET', `/containers/${id}/stats?stream=false`)
  t.match(second.body, { preread: /^20/, precpu_stats: { cpu_usage: { total_usage: 2e9 }, online_cpus: 2 } })

  const request = httpRequest({ socketPath: path, path: `/v1.51/containers/${id}/stats`, agent: false }).end()
  const [response] = (await once(request, 'response')) as [Readable]
  let text = ''
  for await (const chunk of response) if ((text += chunk).split('\n').length > 2) break
  t.match(
    text
      .split('\n')
      .slice(0, 2)
      .map((line) => JSON.parse(line) as object),
    [{ id }, { id, preread: /^20/ }],
  )
  t.match(await ask('GET', `/containers/${id}/machine`), { status: 400, body: { message: /no machine/ } })
  t.equal((await ask('GET', '/containers/nobody/stats')).status, 404)
  await ask('DELETE', `/containers/${id}?force=1`)
})

t.test('networks: create, list, inspect, connect, disconnect, prune, remove', async (t) => {
  const label = { 'api-test': 'networks' }
  const made = await ask('POST', '/networks/create', {
    Name: 'back',
    Driver: 'bridge',
    Internal: true,
    IPAM: { Config: [{ Subnet: '10.213.0.0/24', Gateway: '10.213.0.9', IPRange: '10.213.0.128/25' }] },
    Options: { 'com.docker.network.driver.mtu': '1400' },
    Labels: label,
  })
  t.equal(made.status, 201, made.text)
  const { Id } = made.body as { Id: string }
  const refused: [unknown, number, RegExp][] = [
    [{ Name: 'back' }, 409, /already exists/],
    [{ Name: '' }, 400, /Name/],
    [{ Name: 'x', Driver: 'nosuch' }, 404, /could not find plugin/],
    [{ Name: 'x', IPAM: { Driver: 'nosuch' } }, 400, /IPAM driver/],
    [{ Name: 'x', IPAM: { Config: [{ Subnet: 'here' }] } }, 400, /subnet/i],
    [{ Name: 'x', IPAM: { Config: [{ Subnet: '10.213.0.0/25' }] } }, 403, /overlap/],
    [{ Name: 'x', Scope: 'swarm' }, 501, /not built yet/],
  ]
  for (const [body, status, message] of refused)
    t.match(await ask('POST', '/networks/create', body), { status, body: { message } }, JSON.stringify(body))
  const list = async (filters: object): Promise<string[]> => {
    const answer = await ask('GET', `/networks?filters=${encodeURIComponent(JSON.stringify(filters))}`)
    t.equal(answer.status, 200, answer.text)
    return (answer.body as { Name: string }[]).map(({ Name }) => Name).sort()
  }
  t.same(await list({}), ['back', 'bridge', 'host', 'none'])
  t.same(await list({ type: ['custom'] }), ['back'])
  t.same(await list({ label: { 'api-test=networks': true } }), ['back'])
  t.same(await list({ driver: ['null'] }), ['none'])
  t.equal((await ask('GET', '/networks?filters={"nosuch":["1"]}')).status, 400)
  const id = await create({
    Cmd: ['true'],
    NetworkingConfig: { EndpointsConfig: { back: { Aliases: ['db'] } } },
  })
  t.match(await ask('GET', `/networks/${Id.slice(0, 8)}`), {
    status: 200,
    body: {
      ...{ Name: 'back', Id, Scope: 'local', Driver: 'bridge', Internal: true, EnableIPv4: true },
      IPAM: { Config: [{ Subnet: '10.213.0.0/24', Gateway: '10.213.0.9', IPRange: '10.213.0.128/25' }] },
      Labels: label,
    },
  })
  t.match(await ask('GET', '/networks/nosuch'), { status: 404, body: { message: /nosuch/ } })
  t.equal((await ask('DELETE', '/networks/bridge')).status, 403, 'what is always there stays')
  const second = await create({ Cmd: ['true'] })
  t.equal((await ask('POST', '/networks/back/connect', { Container: second })).status, 200)
  const networks = async (): Promise<string[]> => {
    const { body } = await ask('GET', `/containers/${second}/json`)
    return Object.keys((body as { NetworkSettings: { Networks: object } }).NetworkSettings.Networks).sort()
  }
  t.same(await networks(), ['back', 'bridge'])
  t.equal((await ask('POST', '/networks/back/connect', { Container: 'nosuch' })).status, 404)
  t.equal((await ask('POST', '/networks/nosuch/connect', { Container: second })).status, 404)
  t.equal((await ask('POST', '/networks/back/connect', { Container: 5 })).status, 400)
  t.equal((await ask('POST', '/networks/back/disconnect', { Container: second })).status, 200)
  t.same(await networks(), ['bridge'])
  t.not(
    (await ask('POST', '/networks/back/disconnect', { Container: second })).status,
    200,
    'it was not on it',
  )
  const prune = `/networks/prune?filters=${encodeURIComponent('{"label":["api-test=networks"]}')}`
  t.match(await ask('POST', prune), { status: 200, body: { NetworksDeleted: [] } }, 'a container is on it')
  for (const each of [id, second]) t.equal((await ask('DELETE', `/containers/${each}`)).status, 204)
  t.match(await ask('POST', prune), { status: 200, body: { NetworksDeleted: ['back'] } })
  t.equal((await ask('DELETE', `/networks/${Id}`)).status, 404)
})

/** The paths of Docker's reference for 1.51, by their methods. */
const REFERENCE = `
GET /containers/json /containers/x/json /containers/x/top /containers/x/logs /containers/x/changes /containers/x/export
GET /containers/x/stats /containers/x/attach/ws /containers/x/archive /images/json /images/x/json /images/x/history
GET /images/search /images/x/get /images/get /info /version /_ping /system/df /events?until=1 /exec/x/json /volumes
GET /volumes/x /networks /networks/x /plugins /plugins/privileges /plugins/x/json /swarm /swarm/unlockkey /nodes
GET /nodes/x /services /services/x /services/x/logs /tasks /tasks/x /tasks/x/logs /secrets /secrets/x /configs
GET /configs/x /distribution/x/json
HEAD /_ping /containers/x/archive
PUT /containers/x/archive /volumes/x
POST /containers/create /containers/x/resize /containers/x/start /containers/x/stop /containers/x/restart
POST /containers/x/kill /containers/x/update /containers/x/rename /containers/x/pause /containers/x/unpause
POST /containers/x/attach /containers/x/wait /containers/prune /containers/x/exec /exec/x/start /exec/x/resize /build
POST /build/prune /images/create /images/x/push /images/x/tag /images/prune /images/load /auth /commit /volumes/create
POST /volumes/prune /networks/create /networks/x/connect /networks/x/disconnect /networks/prune /plugins/pull
POST /plugins/create /plugins/x/enable /plugins/x/disable /plugins/x/upgrade /plugins/x/push /plugins/x/set /swarm/init
POST /swarm/join /swarm/leave /swarm/update /swarm/unlock /nodes/x/update /services/create /services/x/update
POST /secrets/create /secrets/x/update /configs/create /configs/x/update /session
DELETE /containers/x /images/x /volumes/x /networks/x /plugins/x /nodes/x /services/x /secrets/x /configs/x
`

t.test("every endpoint of Docker's reference answers", async (t) => {
  for (const line of REFERENCE.trim().split('\n')) {
    const [method = '', ...paths] = line.split(' ')
    for (const url of paths) {
      const { status, text } = await ask(
        method,
        `/v1.51${url}`,
        method === 'POST' || method === 'PUT' ? {} : undefined,
      )
      t.notMatch(text, /page not found|internal error/, `${method} ${url}`)
      t.ok(status < 500 || [500, 501, 503].includes(status), `${status} ${text}`)
      if (status === 501) t.match(JSON.parse(text), { message: /not built yet/ })
    }
  }
  for (const some of ['keep-storage=1g', 'reserved-space=5'])
    t.match(await ask('POST', `/build/prune?${some}`), { status: 501 }, some)
  t.match(await ask('POST', '/build/prune?filters={"label":["x"]}'), { status: 400 })
  t.match(await ask('POST', '/build/prune?keep-storage=0&filters={"until":["24h"]}'), { status: 200 })
  t.match(await ask('GET', '/images/search?term=x'), {
    status: 500,
    body: { message: /no registry is reached/ },
  })
  t.match(await ask('GET', '/images/search?term=x&limit=101'), { status: 400 })
  t.match(await ask('GET', '/images/search?term=x&filters={"is-automated":["true"]}'), {
    status: 200,
    body: [],
  })
  t.match(await ask('PUT', '/volumes/x', {}), { status: 503, body: { message: /not a swarm manager/ } })
})

t.test('platforms: of each image there is one', async (t) => {
  const platform = (architecture: string, os = 'linux'): string =>
    `platform=${encodeURIComponent(JSON.stringify({ os, architecture }))}`
  for (const path of ['/images/busybox/json', '/images/busybox/history']) {
    t.equal((await ask('GET', `${path}?${platform('amd64')}`)).status, 200)
    t.match(await ask('GET', `${path}?${platform('arm64')}`), {
      status: 404,
      body: { message: /linux\/arm64/ },
    })
    t.match(await ask('GET', `${path}?platform=linux/amd64`), { status: 400, body: { message: /no JSON/ } })
    t.match(await ask('GET', `${path}?platform=null`), { status: 400 })
    t.match(await ask('GET', `${path}?${platform('amd64', '')}`), {
      status: 400,
      body: { message: /both OS/ },
    })
  }
  for (const [method, path] of [
    ['GET', '/images/busybox/get'],
    ['GET', '/images/get?names=busybox'],
    ['POST', '/images/busybox/push'],
    ['POST', '/images/load'],
    ['DELETE', '/images/busybox'],
  ] as const) {
    const asked = platform('arm64').replace('platform', method === 'DELETE' ? 'platforms' : 'platform')
    const answer = await ask(method, `${path}${path.includes('?') ? '&' : '?'}${asked}`)
    t.match(answer, { status: 404, body: { message: /not for platform linux\/arm64/ } }, path)
  }
})

t.test('what takes the disk', async (t) => {
  const { images } = bed.images
  const own = { diffId: `sha256:${'e'.repeat(64)}`, path: '/nowhere', size: 6 << 20, used: 5_000_000 }
  const other = {
    ...images[0]!,
    id: `sha256:${'d'.repeat(64)}`,
    tags: ['other:1'],
    digests: ['other@sha256:1'],
  }
  bed.images.images = [...images, { ...other, layers: [...other.layers, own] }]
  t.teardown(() => (bed.images.images = images))
  t.match((await ask('GET', '/images/json')).body, [{ SharedSize: -1 }, { RepoDigests: ['other@sha256:1'] }])
  t.match((await ask('GET', '/images/json?shared-size=1')).body, [
    { SharedSize: 1_000_000 },
    { SharedSize: 1_000_000 },
  ])
  const id = await create({})
  const { body } = await ask('GET', '/system/df')
  t.match(body, {
    LayersSize: 6_000_000,
    Images: [
      { Containers: Number, SharedSize: 1_000_000 },
      { Containers: 0, SharedSize: 1_000_000 },
    ],
    Volumes: [],
    BuildCache: [],
  })
  const { Containers } = body as { Containers: { Id: string }[] }
  t.match(
    Containers.find(({ Id }) => Id === id),
    { SizeRw: Number, SizeRootFs: 1_000_000 },
  )
  t.same(Object.keys((await ask('GET', '/system/df?type=volume&type=build-cache')).body as object).sort(), [
    'BuildCache',
    'Volumes',
  ])
  t.match(await ask('GET', '/system/df?type=networks'), { status: 400 })
  await ask('DELETE', `/containers/${id}`)
})

/**
 * The compiled code of the API, without the tables and schemas that name what it may not use, and with what is handed on
 * whole: a health check, and the configuration of a commit.
 */
function codeOfApi(): string {
  const folder = join(import.meta.dirname, '../../src/api')
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.js') && !/(schemas|unhonoured)\.js$/.test(name))
    .concat('../engine/health-check.js')
  const handed = Object.keys(COMMIT_BODY.properties).join(' ')
  return [handed, ...names.map((name) => readFileSync(join(folder, name), 'utf8'))].join('\n')
}

t.test("no parameter or field of Docker's reference is dropped in silence", async (t) => {
  const code = codeOfApi()
  const isRefused = (refuse: () => void): boolean => {
    try {
      refuse()
      return false
    } catch (error) {
      t.match(error, { code: /^(NOT_IMPLEMENTED|INVALID_ARGUMENT)$/ })
      return true
    }
  }
  const walk = (
    text: string,
    refuse: (where: string, name: string) => void,
    uses: (name: string) => RegExp,
  ) => {
    const seen = new Map<string, Set<string>>()
    for (const [where, name] of rows(text)) {
      seen.set(where, (seen.get(where) ?? new Set()).add(name))
      const refused = isRefused(() => refuse(where, name))
      const harmless = HARMLESS[where]?.[name]
      t.notOk(refused && harmless, `${where} ${name} is one of both`)
      t.ok(
        refused || harmless || uses(name).test(code),
        `${name} of ${where} is honoured, refused or harmless`,
      )
    }
    return seen
  }
  const seen = new Map([
    ...walk(
      PARAMETERS,
      (where, name) => refuseParameters(where, new Query(`${name}=1`)),
      (name) => new RegExp(`['"]${name}['"]`),
    ),
    ...walk(
      FIELDS,
      (where, name) => refuseFields(where, { [name]: [{ a: 1 }] }),
      (name) => new RegExp(`\\b${name}\\b`),
    ),
  ])
  for (const [where, names] of Object.entries(HARMLESS))
    for (const name of Object.keys(names)) t.ok(seen.get(where)?.has(name), `${name} of ${where} is Docker's`)
  for (const [method, url] of [
    ['DELETE', '/containers/x?link=1'],
    ['POST', '/build?squash=1'],
    ['POST', '/build?remote=https%3A%2F%2Fhost%2Fx.git'],
  ] as const)
    t.match(await ask(method, url), { status: 501, body: { message: /not built yet/ } }, url)
  t.match(await ask('POST', '/build?memswap=-1&squash=0&version=2'), {
    status: 501,
    body: { message: /BuildKit/ },
  })
  const id = await create({}, 'reference')
  t.teardown(() => ask('DELETE', `/containers/${id}`))
  for (const [path, body, status, message] of [
    ['/containers/create', { Image: 'busybox', HostConfig: { CpuCount: 2 } }, 400, /CpuCount is for Windows/],
    ['/containers/create', { Image: 'busybox', HostConfig: { KernelMemoryTCP: 1 } }, 501, /KernelMemoryTCP/],
    ['/containers/create', { Image: 'busybox', Shell: ['/bin/bash', '-c'] }, 501, /Shell/],
    [
      '/containers/create',
      { Image: 'busybox', HostConfig: { NanoCpus: 1e9, CpuQuota: 5000 } },
      400,
      /Conflicting options/,
    ],
    ['/containers/create', { Image: 'busybox', HostConfig: { CpuPeriod: 10 } }, 400, /1ms/],
    ['/containers/create', { Image: 'busybox', HostConfig: { CpuQuota: 10 } }, 400, /1ms/],
    [
      '/containers/create',
      { Image: 'busybox', HostConfig: { Mounts: [{ Type: 'tmpfs', Target: '/a', ImageOptions: {} }] } },
      400,
      /ImageOptions must not/,
    ],
    [`/containers/${id}/update`, { Ulimits: [{ Name: 'nofile', Soft: 1, Hard: 1 }] }, 501, /Ulimits/],
    [`/containers/${id}/update`, { OomKillDisable: true }, 501, /OomKillDisable/],
    ['/networks/create', { Name: 'x', ConfigFrom: { Network: 'y' } }, 501, /ConfigFrom/],
    [
      '/networks/create',
      { Name: 'x', Options: { 'com.docker.network.bridge.gateway_mode_ipv4': 'routed' } },
      501,
      /gateway_mode_ipv4/,
    ],
    [
      '/networks/create',
      { Name: 'x', Options: { 'com.docker.network.bridge.host_binding_ipv4': '::1' } },
      400,
      /IPv4 address/,
    ],
    [
      '/networks/bridge/connect',
      { Container: id, EndpointConfig: { DriverOpts: { 'com.docker.network.endpoint.ifname': 'x' } } },
      501,
      /ifname/,
    ],
  ] as const)
    t.match(await ask('POST', path, body), { status, body: { message } }, JSON.stringify(body))
  // What Docker's client sends of an update that changes one thing.
  const nothing = {
    BlkioWeightDevice: [],
    Devices: null,
    OomKillDisable: false,
    MemorySwappiness: -1,
    Init: null,
  }
  const update = { ...nothing, CpuCount: 0, Ulimits: null, PidsLimit: 50, RestartPolicy: { Name: '' } }
  t.match(await ask('POST', `/containers/${id}/update`, update), { status: 200 })
})

t.test('what a query asks for is done', async (t) => {
  const id = await create(
    {
      ExposedPorts: { '8080/tcp': {}, '53/udp': {} },
      NetworkDisabled: true,
      NetworkingConfig: { EndpointsConfig: { bridge: {} } },
    },
    'asked',
  )
  t.teardown(() => ask('DELETE', `/containers/${id}`))
  t.match(await ask('GET', `/containers/${id}/json`), {
    body: { HostConfig: { NetworkMode: 'none', BlkioDeviceReadBps: null } },
  })
  const limited = await create({
    HostConfig: { Isolation: 'microvm', BlkioDeviceWriteBps: [{ Path: '/dev/sda', Rate: 1000 }] },
  })
  t.teardown(() => ask('DELETE', `/containers/${limited}`))
  t.match(await ask('GET', `/containers/${limited}/json`), {
    body: { HostConfig: { BlkioDeviceWriteBps: [{ Path: '/dev/sda', Rate: 1000 }] } },
  })
  const list = async (filters: object): Promise<boolean> => {
    const url = `/containers/json?all=1&filters=${encodeURIComponent(JSON.stringify(filters))}`
    return ((await ask('GET', url)).body as { Id: string }[]).some((each) => each.Id === id)
  }
  for (const [filters, found] of [
    [{ expose: ['8080'] }, true],
    [{ expose: ['8000-9000/tcp'] }, true],
    [{ expose: ['53'] }, false],
    [{ expose: ['53/udp'] }, true],
    [{ publish: ['8080'] }, false],
    [{ 'is-task': ['false'] }, true],
    [{ 'is-task': ['true'] }, false],
    [{ isolation: ['process'] }, true],
    [{ isolation: ['microvm'] }, false],
  ] as const)
    t.equal(await list(filters), found, JSON.stringify(filters))
  t.equal((await ask('GET', '/containers/json?all=1&filters={"expose":["web"]}')).status, 400)
  for (const name of ['dangling', 'all'])
    t.equal((await ask('POST', `/containers/prune?filters={"${name}":["true"]}`)).status, 400, name)
  t.equal((await ask('POST', '/images/prune?filters={"all":["true"]}')).status, 400)
  t.equal((await ask('GET', '/networks/bridge?scope=local&verbose=true')).status, 200)
  t.equal((await ask('GET', '/networks/bridge?scope=swarm')).status, 404)
  t.match(await ask('GET', '/images/busybox/json?manifests=1&platform=%7B%7D'), {
    status: 400,
    body: { message: /conflicting options/ },
  })
})
