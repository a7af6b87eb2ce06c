import { spawn } from 'node:child_process'
import t from 'tap'
import { toolCommand } from '../../src/debian/index.js'
import { Daemon } from './daemon.js'
import { Host, type Result, collect, leftovers } from './host.js'

/** What only a daemon does for its containers, and tools of others against it. */
const ISOLATIONS = [
  { name: 'process', flags: ['--isolation', 'process'] },
  { name: 'microvm on qemu', flags: ['--hypervisor', 'qemu', '-m', '192m'] },
]

for (const { name, flags } of ISOLATIONS)
  t.test(`health checks: ${name}`, async (t) => {
    const host = await Host.create()
    t.teardown(() => host.remove())
    const daemon = await Daemon.start(host)
    t.teardown(() => daemon.stop())
    const health = async (): Promise<{ Status: string; Log: { ExitCode: number; Output: string }[] }> => {
      const [{ State }] = JSON.parse((await host.coracle(['inspect', 'sick'])).stdout.toString())
      return State.Health
    }
    const until = async (status: string): Promise<void> => {
      while ((await health()).Status !== status) continue
    }
    const check = 'test -e /well && echo fine || { echo missing >&2; exit 3; }'
    const words = ['--health-cmd', check, '--health-interval', '300ms', '--health-retries', '2']
    const started = await host.coracle([
      'run',
      '-d',
      '--name',
      'sick',
      ...words,
      ...flags,
      'busybox',
      'sleep',
      '1000',
    ])
    t.equal(started.status, 0, started.stderr)
    t.notMatch(started.stderr, /none runs/, 'the daemon carries it out')
    await until('unhealthy')
    t.match((await health()).Log.at(-1), { ExitCode: 3, Output: 'missing\n' })
    t.match((await host.coracle(['ps'])).stdout.toString(), /\(unhealthy\)/)
    await host.coracle(['exec', 'sick', 'touch', '/well'])
    await until('healthy')
    t.match((await health()).Log.at(-1), { ExitCode: 0, Output: 'fine\n' })
    t.ok((await health()).Log.length <= 5)
    t.match(
      (await host.coracle(['ps', '--filter', 'health=healthy'])).stdout.toString(),
      /\(healthy\) .*sick/,
    )
    t.equal((await host.coracle(['rm', '-f', 'sick'])).status, 0)
    const past = ['events', '--since', '1h', '--until', '0s', '-f', 'container=sick', '--format', 'json']
    const actions = (await host.coracle(past)).stdout.toString()
    for (const action of ['health_status: unhealthy', 'health_status: healthy'])
      t.ok(actions.includes(`"${action}"`), action)
    await daemon.stop()
    t.same(leftovers(host.run), [])
  })

/**
 * A web server, on ports of the host, that needs what a database-like service says once it is healthy, whose rows are
 * in a volume: one more with each start.
 */
const composeFile = (settings: string, replicas: number): string => `
name: shop
x-all: &all { image: busybox, ${settings} }
services:
  db:
    <<: *all
    command: sh -c 'sleep 1; echo row >> /data/table; exec httpd -f -h /data -p 5432'
    volumes: [ 'rows:/data' ]
    healthcheck: { test: wget -q -O - localhost:5432/table, interval: 300ms, retries: 100 }
  web:
    <<: *all
    command: sh -c 'mkdir /www; wget -q -O /www/index.html http://db:5432/table && echo serving; exec httpd -f -h /www'
    ports: [ '80' ]
    healthcheck: { test: wget -q -O - localhost, interval: 300ms, retries: 100 }
    depends_on: { db: { condition: service_healthy } }
    scale: ${replicas}
volumes: { rows: {} }
`

for (const { name, settings, replicas } of [
  { name: 'process', settings: 'runtime: process', replicas: 3 },
  {
    name: 'microvm on qemu',
    settings: 'mem_limit: 192m, annotations: { coracle.hypervisor: qemu }',
    replicas: 1,
  },
])
  t.test(`docker compose: up, ps, logs, exec, ports, volumes, scale, down: ${name}`, async (t) => {
    const host = await Host.create()
    t.teardown(() => host.remove())
    const daemon = await Daemon.start(host)
    t.teardown(() => daemon.stop())
    const cwd = t.testdir({ 'compose.yaml': composeFile(settings, replicas) })
    const { argv, env } = await toolCommand('docker-compose')
    const call = (words: string[]): Promise<Result> => {
      const child = spawn(argv[0]!, [...argv.slice(1), ...words], { cwd, env: { ...host.env, ...env } })
      child.stdin.end()
      return collect(child)
    }
    t.teardown(() => call(['down', '-v', '-t', '0']))
    const compose = async (...words: string[]): Promise<string> => {
      const { status, stdout, stderr } = await call(words)
      t.equal(status, 0, `${words.join(' ')}: ${stderr}`)
      return stdout.toString()
    }
    const text = async (...words: string[]): Promise<string> => (await host.coracle(words)).stdout.toString()
    const running = async (): Promise<string[]> =>
      (await compose('ps', '--format', '{{.Service}} {{.State}}:{{.Health}}')).trim().split('\n').sort()
    /** What the web servers answer on the ports of the host. */
    const pages = async (): Promise<string[]> => {
      const found = []
      for (let index = 1; index <= replicas; index++) {
        const port = (await compose('port', '--index', `${index}`, 'web', '80')).trim().split(':').at(-1)
        found.push(await (await fetch(`http://127.0.0.1:${port}/`)).text())
      }
      return found
    }
    await compose('up', '-d', '--wait')
    t.same(await running(), ['db running:healthy', ...Array<string>(replicas).fill('web running:healthy')])
    t.same(await pages(), Array<string>(replicas).fill('row\n'), 'each started when the other was healthy')
    const asked = [
      'exec',
      '-T',
      '--index',
      `${replicas}`,
      'web',
      'wget',
      '-q',
      '-O',
      '-',
      'http://db:5432/table',
    ]
    t.equal(await compose(...asked), 'row\n', 'the other is reached by its name')
    t.match(await compose('logs', 'web'), /web-[123] +\| serving/)
    t.match(await text('volume', 'ls'), /shop_rows/)
    if (replicas > 1) {
      await compose('up', '-d', '--wait', '--scale', 'web=1')
      t.same(await running(), ['db running:healthy', 'web running:healthy'])
    }
    await compose('down', '-t', '1')
    t.equal(await text('ps', '-aq'), '')
    t.notMatch(await text('network', 'ls'), /shop/)
    await compose('up', '-d', '--wait')
    t.same(await pages(), Array<string>(replicas).fill('row\nrow\n'), 'the volume outlived them')
    await compose('down', '-v', '-t', '1')
    t.notMatch(await text('volume', 'ls'), /shop/)
    await daemon.stop()
    t.same(leftovers(host.run), [])
  })
