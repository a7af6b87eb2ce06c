import t from 'tap'
import { Daemon } from './daemon.js'
import { Host, leftovers } from './host.js'

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
