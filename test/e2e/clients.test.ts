import { once } from 'node:events'
import { PassThrough, Readable } from 'node:stream'
import { buffer, text } from 'node:stream/consumers'
import Docker from 'dockerode'
import t, { type Test } from 'tap'
import { pack, extract } from 'tar-stream'
import { DebianRegistry, USER } from '../image/registry/debian-registry.js'
import { Daemon } from './daemon.js'
import { Host, leftovers } from './host.js'

/* Libraries of others against the daemon, as programs use them. */

/** Both streams of a multiplexed one, to its end. */
async function outputs(docker: Docker, stream: NodeJS.ReadableStream): Promise<[string, string]> {
  const [out, err] = [new PassThrough(), new PassThrough()]
  docker.modem.demuxStream(stream, out, err)
  stream.on('end', () => {
    out.end()
    err.end()
  })
  return Promise.all([text(out), text(err)])
}

/** Follows a progress stream to its end. @throws what is an error in it */
const followed = (docker: Docker, stream: NodeJS.ReadableStream): Promise<unknown[]> =>
  new Promise((resolve, reject) =>
    docker.modem.followProgress(stream, (error, all) => (error ? reject(error) : resolve(all as unknown[]))),
  )

/** A daemon, and its end: nothing is left of it. */
async function serve(t: Test): Promise<{ daemon: Daemon; docker: Docker; end: () => Promise<void> }> {
  const host = await Host.create()
  t.teardown(() => host.remove())
  const daemon = await Daemon.start(host)
  t.teardown(() => daemon.stop())
  const end = async (): Promise<void> => {
    await daemon.stop()
    t.same(leftovers(host.run), [])
  }
  return { daemon, docker: new Docker({ socketPath: daemon.socket }), end }
}

const ISOLATIONS = [
  { name: 'process', more: { Runtime: 'process' } },
  { name: 'microvm on qemu', more: { Annotations: { 'coracle.hypervisor': 'qemu' }, Memory: 192 << 20 } },
]

for (const { name, more } of ISOLATIONS)
  t.test(`dockerode: containers, ${name}`, async (t) => {
    const { docker, end } = await serve(t)
    const container = await docker.createContainer({
      Image: 'busybox',
      name: 'db',
      Cmd: ['sh', '-c', 'echo out; echo err >&2; read line; echo "got $line"; exec sleep 1000'],
      OpenStdin: true,
      Labels: { app: 'x' },
      HostConfig: { ...more, LogConfig: { Type: 'json-file', Config: { 'max-size': '1m' } } },
    })
    const events = await docker.getEvents({ filters: { container: [container.id], event: ['die'] } })
    const attached = await container.attach({
      stream: true,
      stdin: true,
      stdout: true,
      stderr: true,
      hijack: true,
    })
    const seen = outputs(docker, attached)
    await container.start()
    attached.write('hello\n')
    const { State, Config, NetworkSettings } = await container.inspect()
    t.match({ State, Config }, { State: { Running: true }, Config: { Labels: { app: 'x' } } })
    t.match(Object.keys(NetworkSettings.Networks), ['bridge'])
    t.match(await docker.listContainers({ filters: { label: ['app=x'] } }), [
      { Names: ['/db'], State: 'running' },
    ])
    const exec = await container.exec({
      Cmd: ['sh', '-c', 'cat; echo bad >&2; exit 3'],
      AttachStdin: true,
      AttachStdout: true,
      AttachStderr: true,
    })
    const run = await exec.start({ hijack: true, stdin: true })
    const ran = outputs(docker, run)
    run.end('to exec')
    t.same(await ran, ['to exec', 'bad\n'])
    t.match(await exec.inspect(), { ExitCode: 3, Running: false })
    t.match(await container.stats({ stream: false }), {
      pids_stats: { current: Number },
      memory_stats: { usage: Number },
    })
    t.match(await container.top({ ps_args: 'aux' }), { Titles: ['USER', 'PID'], Processes: [['root']] })
    const tar = pack()
    tar.entry({ name: 'in/file' }, 'put there')
    tar.finalize()
    await container.putArchive(await buffer(tar), { path: '/tmp' })
    const files: string[] = []
    for await (const entry of Readable.from(await container.getArchive({ path: '/tmp/in' })).pipe(extract()))
      files.push(entry.header.name, String(await buffer(entry)))
    t.same(files, ['in/', '', 'in/file', 'put there'])
    const changed = (await container.changes()) as { Path: string; Kind: number }[]
    t.match(
      changed.find(({ Path }) => Path === '/tmp/in/file'),
      { Kind: 1 },
    )
    await container.update({ PidsLimit: 50 })
    await container.pause()
    t.match(await container.inspect(), { State: { Paused: true }, HostConfig: { PidsLimit: 50 } })
    await container.unpause()
    const logs = String(await container.logs({ stdout: true, stderr: true }))
    t.match(logs, /out\n[^]*got hello\n/)
    const following = outputs(
      docker,
      await container.logs({ stdout: true, stderr: true, follow: true, timestamps: true }),
    )
    const waited = container.wait()
    await container.kill({ signal: 'KILL' })
    t.same(await waited, { StatusCode: 137 })
    t.match(await seen, ['out\ngot hello\n', 'err\n'])
    t.match((await following)[0], /^\d{4}-[^ ]+Z out\n\d{4}-[^ ]+Z got hello\n$/)
    const [event] = (await once(events, 'data')) as [Buffer]
    t.match(JSON.parse(String(event)), {
      Action: 'die',
      Actor: { Attributes: { name: 'db', exitCode: '137' } },
    })
    ;(events as unknown as Readable).destroy()
    await container.restart({ t: 0 })
    await container.rename({ name: 'other' })
    await docker.getContainer('other').remove({ force: true, v: true })
    t.same(await docker.listContainers({ all: true }), [])
    await t.rejects(container.inspect(), /no such container/i)
    const sink = new PassThrough()
    const printed = text(sink)
    const [result] = (await docker.run('busybox', ['echo', 'run'], sink, {
      Tty: true,
      HostConfig: { ...more, AutoRemove: true },
    })) as [object]
    t.match(result, { StatusCode: 0 })
    t.match(await printed, 'run\r\n')
    await end()
  })

t.test('dockerode: images, networks and volumes', async (t) => {
  const { docker, end } = await serve(t)
  await using registry = await DebianRegistry.start({ plain: true })
  const repository = `${registry.host}/team/app`
  await docker.getImage('busybox').tag({ repo: repository, tag: 'v1' })
  const image = docker.getImage(`${repository}:v1`)
  await followed(docker, await image.push())
  const { Id } = await image.inspect()
  await image.remove()
  await t.rejects(image.inspect(), /no such image/i)
  const steps = await followed(docker, await docker.pull(`${repository}:v1`))
  t.match(steps.at(-1), { status: new RegExp(`Status: .*${repository}:v1`) })
  t.equal((await image.inspect()).Id, Id)
  await t.rejects(docker.pull(`${repository}:v2`), /v2/)
  t.ok((await docker.listImages()).some(({ RepoTags }) => RepoTags?.includes(`${repository}:v1`)))
  t.ok((await image.history()).length > 0)
  const saved = await buffer(await image.get())
  await image.remove({ force: true })
  await followed(docker, await docker.loadImage(Readable.from([saved])))
  t.equal((await image.inspect()).Id, Id)

  await using locked = await DebianRegistry.start({ plain: true, password: true })
  const base = `${locked.host}/team/base`
  await docker.getImage('busybox').tag({ repo: base })
  await followed(docker, await docker.getImage(base).push({ authconfig: USER }))
  await docker.getImage(base).remove()
  const dockerfile = pack()
  dockerfile.entry({ name: 'Dockerfile' }, `FROM ${base}\nLABEL from=base\n`)
  dockerfile.finalize()
  const context = await buffer(dockerfile)
  const build = async (auths: object): Promise<unknown> =>
    followed(
      docker,
      await docker.buildImage(Readable.from([context]), { t: 'derived', registryconfig: auths } as object),
    )
  t.match(JSON.stringify(await build({})), /errorDetail.*(denied|authori)/i)
  await build({
    'elsewhere.example': { username: 'nobody', password: 'x' },
    [`http://${locked.host}/v2/`]: USER,
  })
  t.match(await docker.getImage('derived').inspect(), { Config: { Labels: { from: 'base' } } })

  const network = await docker.createNetwork({ Name: 'back', Labels: { app: 'x' } })
  const volume = await docker.createVolume({ Name: 'data' })
  t.match(await volume.inspect(), { Name: 'data', Driver: 'local' })
  const server = await docker.createContainer({
    Image: 'busybox',
    Cmd: ['sh', '-c', 'echo served > /srv/index.html; exec httpd -f -h /srv'],
    ExposedPorts: { '80/tcp': {} },
    HostConfig: {
      Runtime: 'process',
      Binds: ['data:/srv'],
      PortBindings: { '80/tcp': [{ HostPort: '' }] },
      NetworkMode: 'back',
    },
    NetworkingConfig: { EndpointsConfig: { back: { Aliases: ['web'] } } },
  })
  await server.start()
  const other = await docker.createContainer({
    Image: 'busybox',
    Cmd: ['wget', '-q', '-O-', 'http://web'],
    HostConfig: { Runtime: 'process' },
  })
  await network.connect({ Container: other.id })
  await docker.getNetwork('bridge').disconnect({ Container: other.id })
  const answer = outputs(docker, await other.attach({ stream: true, stdout: true, stderr: true }))
  await other.start()
  t.same(await answer, ['served\n', ''], 'by its alias')
  const [binding] = (await server.inspect()).NetworkSettings.Ports['80/tcp'] ?? []
  t.equal(
    await (await fetch(`http://127.0.0.1:${binding!.HostPort}`)).text(),
    'served\n',
    'at the port of the host',
  )
  const { Containers } = (await network.inspect()) as { Containers: object }
  t.ok(server.id in Containers)
  t.match(await docker.listNetworks({ filters: { label: ['app=x'] } }), [{ Name: 'back' }])
  await t.rejects(volume.remove(), /in use/)
  for (const each of [server, other]) await each.remove({ force: true })
  await network.remove()
  await volume.remove()
  t.match(await docker.pruneContainers(), { SpaceReclaimed: 0 })
  t.match(await docker.info(), { Name: String, LoggingDriver: 'json-file' })
  t.match(await docker.version(), { ApiVersion: '1.51' })
  t.equal(String(await docker.ping()), 'OK')
  t.match(await docker.df(), { Containers: [], Volumes: [] })
  await end()
})

t.test('testcontainers, with microVMs', async (t) => {
  const { daemon, end } = await serve(t)
  // Its reaper is a container of an image of its own, and this host is to need none from outside.
  const settings = { DOCKER_HOST: `unix://${daemon.socket}`, TESTCONTAINERS_RYUK_DISABLED: 'true' }
  Object.assign(process.env, settings)
  t.teardown(() => {
    for (const name of Object.keys(settings)) Reflect.deleteProperty(process.env, name)
  })
  const { GenericContainer, Network, Wait } = await import('testcontainers')
  const quota = { memory: 0.2, cpu: 1 }
  const network = await new Network().start()
  const script = 'mkdir /www; cp /page /www/index.html; echo ready to serve; exec httpd -f -h /www -p 80'
  const web = await new GenericContainer('busybox')
    .withCommand(['sh', '-c', script])
    .withCopyContentToContainer([{ content: 'from the test', target: '/page' }])
    .withExposedPorts(80)
    .withNetwork(network)
    .withNetworkAliases('web')
    .withResourcesQuota(quota)
    .withEnvironment({ MODE: 'test' })
    .withWaitStrategy(Wait.forAll([Wait.forListeningPorts(), Wait.forLogMessage('ready to serve')]))
    .start()
  const page = await fetch(`http://${web.getHost()}:${web.getMappedPort(80)}`)
  t.equal(await page.text(), 'from the test')
  t.match(await web.exec(['sh', '-c', 'echo $MODE; exit 4']), { exitCode: 4, output: 'test\n' })
  await web.copyContentToContainer([{ content: 'later', target: '/www/later' }])
  t.equal(await (await fetch(`http://${web.getHost()}:${web.getMappedPort(80)}/later`)).text(), 'later')
  const client = await new GenericContainer('busybox')
    .withCommand(['sh', '-c', 'wget -qO /got http://web/later; echo done; exec sleep 1000'])
    .withNetwork(network)
    .withResourcesQuota(quota)
    .withHealthCheck({ test: ['CMD', 'test', '-e', '/got'], interval: 300, timeout: 30_000, retries: 300 })
    .withWaitStrategy(Wait.forHealthCheck())
    .start()
  t.match(await client.exec('cat /got'), { exitCode: 0, output: 'later' })
  t.match(await text(await client.copyArchiveFromContainer('/got')), /later/)
  const logs = await web.logs()
  t.match(String((await once(logs, 'data'))[0]), /ready to serve/)
  await web.restart()
  t.equal((await fetch(`http://${web.getHost()}:${web.getMappedPort(80)}`)).status, 200)
  for (const each of [client, web]) await each.stop()
  await network.stop()
  await end()
})
