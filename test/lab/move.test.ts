import { request } from 'node:http'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Daemon } from '../e2e/daemon.js'
import { Host, interfaces, leftovers } from '../e2e/host.js'

t.setTimeout(1_900_000)

/** Asks a daemon: without the command line, which takes seconds to start in the lab. Says so as soon as it is answered. */
async function ask<T>(t: Test, daemon: Daemon, method: string, path: string, body?: object): Promise<T> {
  const asked = request({ socketPath: daemon.socket, agent: false, method, path })
  asked.setHeader('Content-Type', 'application/json')
  const answer = new Promise<string>((resolve, reject) => {
    asked.on('error', reject).on('response', (response) => {
      text(response).then((said) => {
        if (response.statusCode! < 400) resolve(said)
        else reject(new Error(`${method} ${path}: ${response.statusCode} ${said}`))
      }, reject)
    })
  })
  asked.end(body && JSON.stringify(body))
  const said = await answer
  t.comment(`${new Date().toISOString()} ${method} ${path}`)
  return (said === '' ? undefined : JSON.parse(said)) as T
}

interface Listed {
  Id: string
  Names: string[]
  State: string
  Labels: Record<string, string>
}
const list = (t: Test, daemon: Daemon): Promise<Listed[]> => ask(t, daemon, 'GET', '/containers/json?all=1')

t.test('a container moves to another daemon', { timeout: 1_900_000 }, async (t) => {
  const hosts = [await Host.create(), await Host.create()]
  t.teardown(() => hosts.forEach((host) => host.remove()))
  const daemons = await Promise.all(hosts.map((host) => Daemon.start(host)))
  const [here, there] = daemons as [Daemon, Daemon]
  t.teardown(async () => {
    for (const daemon of daemons) {
      await ask(t, daemon, 'DELETE', '/containers/web?force=1').catch(() => undefined)
      await daemon.stop()
    }
  })
  const [{ env, state }] = hosts as [Host, Host]
  env['XDG_CONFIG_HOME'] = state
  const coracle = async (...words: string[]): Promise<string> => {
    const { status, stdout, stderr } = await hosts[0]!.coracle(words)
    t.comment(`${new Date().toISOString()} ${words.join(' ')}`)
    t.equal(status, 0, `${words.join(' ')}: ${stderr}`)
    return stdout.toString()
  }
  await coracle('context', 'create', 'farm', '--docker', `host=unix://${there.socket}`)
  // Counts in its memory alone, and says so to whoever asks.
  const script = [
    'echo kept > /kept; mkdir -p /www; cd /www; httpd -p 80; n=0',
    'while :; do n=$((n+1)); echo $n > next; mv next count; sleep 0.2; done',
  ].join('; ')
  const { Id: first } = await ask<{ Id: string }>(t, here, 'POST', '/containers/create?name=web', {
    Image: 'busybox',
    Cmd: ['sh', '-c', script],
    Labels: { a: 'b' },
    HostConfig: {
      Isolation: 'microvm',
      Memory: 192 << 20,
      Annotations: { 'coracle.hypervisor': 'kvm' },
    },
  })
  await ask(t, here, 'POST', `/containers/${first}/start`)
  const count = async (daemon: Daemon): Promise<number> => {
    const { NetworkSettings } = await ask<{
      NetworkSettings: { Networks: Record<string, { IPAddress: string }> }
    }>(t, daemon, 'GET', '/containers/web/json')
    const address = NetworkSettings.Networks['bridge']!.IPAddress
    for (;;) {
      // Its server may not be up yet.
      const answer = await fetch(`http://${address}/count`, { signal: AbortSignal.timeout(60_000) }).catch(
        (error: Error) => t.comment(String(error.cause ?? error)),
      )
      if (answer?.ok) return Number(await answer.text())
      await sleep(500)
    }
  }
  const before = await count(here)
  t.ok(before > 0, `${before}`)

  const second = (await coracle('container', 'move', '--to', 'farm', 'web')).trim()
  t.match(second, /^[0-9a-f]{64}$/)
  t.not(second, first)
  t.same(await list(t, here), [], 'it is gone here')
  t.match(await list(t, there), [{ Id: second, Names: ['/web'], State: 'running', Labels: { a: 'b' } }])
  const after = await count(there)
  t.ok(after >= before && after < before + 2000, `it goes on where it was: ${before}, ${after}`)
  await sleep(1000)
  t.ok((await count(there)) > after, 'it counts on, and is reached on the network there')

  // Killed meanwhile.
  await ask(t, there, 'POST', '/containers/web/pause')
  await ask(t, there, 'DELETE', '/containers/web?force=1')
  for (const daemon of daemons) await daemon.stop()
  for (const host of hosts) {
    t.same(leftovers(host.run), [])
    t.same(interfaces(host.run), [])
  }
})
