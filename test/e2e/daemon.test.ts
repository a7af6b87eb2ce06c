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

/** A web server that needs what a database-like service says once it is healthy. */
const COMPOSE = `
name: shop
services:
  db:
    image: busybox
    runtime: process
    command: sh -c 'sleep 1; mkdir /srv; echo row > /srv/table; exec httpd -f -h /srv -p 5432'
    healthcheck: { test: wget -q -O - localhost:5432/table, interval: 300ms, retries: 100 }
  web:
    image: busybox
    runtime: process
    command: sh -c 'mkdir /www; wget -q -O /www/index.html http://db:5432/table && echo serving; exec httpd -f -h /www'
    depends_on: { db: { condition: service_healthy } }
    scale: 3
`

t.test('docker compose: up, ps, logs, exec, scale, down', async (t) => {
  const host = await Host.create()
  t.teardown(() => host.remove())
  const daemon = await Daemon.start(host)
  t.teardown(() => daemon.stop())
  const cwd = t.testdir({ 'compose.yaml': COMPOSE })
  const { argv, env } = await toolCommand('docker-compose')
  const compose = async (...words: string[]): Promise<Result> => {
    const child = spawn(argv[0]!, [...argv.slice(1), ...words], { cwd, env: { ...host.env, ...env } })
    child.stdin.end()
    const result = await collect(child)
    t.equal(result.status, 0, `${words.join(' ')}: ${result.stderr}`)
    return result
  }
  const running = async (): Promise<string[]> => {
    const { stdout } = await compose('ps', '--format', '{{.Service}} {{.State}}:{{.Health}}')
    return stdout.toString().trim().split('\n').sort()
  }
  await compose('up', '-d')
  t.same(await running(), ['db running:healthy', ...Array<string>(3).fill('web running:')])
  const page = await compose('exec', '-T', '--index', '2', 'web', 'cat', '/www/index.html')
  t.equal(page.stdout.toString(), 'row\n', 'it started when the other was healthy')
  t.match((await compose('logs', 'web')).stdout.toString(), /web-[123] +\| serving/)
  await compose('up', '-d', '--scale', 'web=1')
  t.same(await running(), ['db running:healthy', 'web running:'])
  await compose('down', '-t', '1')
  t.equal((await host.coracle(['ps', '-aq'])).stdout.toString(), '')
  t.notMatch((await host.coracle(['network', 'ls'])).stdout.toString(), /shop/)
  await daemon.stop()
  t.same(leftovers(host.run), [])
})
