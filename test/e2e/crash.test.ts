import { once } from 'node:events'
import { request } from 'node:http'
import { connect } from 'node:net'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { tar } from '../image/tar-builder.js'
import { FakeRegistry } from '../image/registry/fake-registry.js'
import { Daemon } from './daemon.js'
import { Host, cgroups, interfaces, leftovers } from './host.js'

/** So often is the daemon killed. */
const KILLS = 50
/** It lives for up to so many acknowledged changes each time, and for up to this long after them, in ms. */
const CHANGES = 10
const MOMENT = 100

interface Answer {
  readonly status: number
  readonly text: string
}

/** What is known of a thing: what was acknowledged last, or, where the answer did not come, nothing. */
type Known = 'there' | 'running' | 'gone' | undefined
type Kind = 'containers' | 'volumes' | 'networks' | 'images'

/** Clients of a daemon that may be gone at any moment. */
class Clients {
  readonly known = new Map<string, Known>()
  readonly complaints: string[] = []
  /** Every container that there was. */
  readonly ids: string[] = []
  acknowledged: string[] = []
  readonly #socket: string

  constructor(socket: string) {
    this.#socket = socket
  }

  /** @throws where the daemon ends before its answer does */
  call(method: string, path: string, body: object | Buffer = {}, signal?: AbortSignal): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const type = Buffer.isBuffer(body) ? 'application/x-tar' : 'application/json'
      const asked = request({
        socketPath: this.#socket,
        agent: false,
        method,
        path,
        ...(signal ? { signal } : {}),
        headers: { 'Content-Type': type },
      })
      asked.on('error', reject).on('response', (response) => {
        let text = ''
        response.setEncoding('utf8').on('data', (piece: string) => (text += piece))
        response.on('error', reject).on('end', () => resolve({ status: response.statusCode!, text }))
      })
      asked.end(
        method === 'GET' || method === 'DELETE'
          ? undefined
          : Buffer.isBuffer(body)
            ? body
            : JSON.stringify(body),
      )
    })
  }

  /** Has one thing changed: until it is acknowledged, nothing is known of it. */
  async change(
    kind: Kind,
    name: string,
    to: Known,
    ...[method, path, body]: Parameters<Clients['call']>
  ): Promise<void> {
    const key = `${kind}/${name}`
    this.known.set(key, undefined)
    const { status, text } = await this.call(method, path, body)
    if (status >= 400 || text.includes('"errorDetail"'))
      this.complaints.push(`${method} ${path}: ${status} ${text}`)
    this.known.set(key, to)
    this.acknowledged.push(`${method} ${kind}`)
    if (kind === 'containers' && path.startsWith('/containers/create'))
      this.ids.push((JSON.parse(text) as { Id: string }).Id)
  }

  /** What the daemon has, as {@link known} has it. */
  async present(): Promise<Map<string, Known>> {
    const list = async <T>(path: string): Promise<T> => JSON.parse((await this.call('GET', path)).text) as T
    const found = new Map<string, Known>()
    for (const { Names, State } of await list<{ Names: string[]; State: string }[]>('/containers/json?all=1'))
      found.set(`containers/${Names[0]!.slice(1)}`, State === 'running' ? 'running' : 'there')
    for (const { Name } of (await list<{ Volumes: { Name: string }[] }>('/volumes')).Volumes)
      found.set(`volumes/${Name}`, 'there')
    for (const { Name } of await list<{ Name: string }[]>('/networks')) found.set(`networks/${Name}`, 'there')
    for (const { RepoTags } of await list<{ RepoTags: string[] }[]>('/images/json'))
      for (const tag of RepoTags) found.set(`images/${tag}`, 'there')
    return found
  }

  /** Holds what is there against what is known, and knows it from then on. */
  async check(): Promise<string[]> {
    const present = await this.present()
    const wrong: string[] = []
    for (const [key, known] of this.known) {
      const is = present.get(key) ?? 'gone'
      if (known !== undefined && is !== known) wrong.push(`${key} is ${is}, and ${known} was acknowledged`)
      this.known.set(key, is)
    }
    return wrong
  }

  /** Brings it to `gone` or back, from whatever it is. */
  async container(name: string, network: string): Promise<void> {
    const known = this.known.get(`containers/${name}`)
    const at = `/containers/${name}`
    const settings = { NetworkMode: network, Isolation: 'process', Binds: ['kept:/kept'] }
    const body = { Image: 'busybox', Cmd: ['sleep', '1000'], HostConfig: settings }
    if (known === undefined || known === 'gone')
      await this.change('containers', name, 'there', 'POST', `/containers/create?name=${name}`, body)
    else if (known === 'there' && Math.random() < 0.8)
      await this.change('containers', name, 'running', 'POST', `${at}/start`)
    else if (known === 'running' && Math.random() < 0.5)
      await this.change('containers', name, 'there', 'POST', `${at}/stop?t=0`)
    else await this.change('containers', name, 'gone', 'DELETE', `${at}?force=1`)
  }

  async thing(kind: Kind, name: string, make: Parameters<Clients['call']>, remove: string): Promise<void> {
    const there = this.known.get(`${kind}/${name}`) === 'there'
    if (there) await this.change(kind, name, 'gone', 'DELETE', remove)
    else await this.change(kind, name, 'there', ...make)
  }
}

t.test('the daemon is killed at any moment of a busy time', { timeout: 900_000 }, async (t) => {
  const host = await Host.create()
  t.teardown(() => host.remove())
  await using registry = await FakeRegistry.start()
  registry.image([tar({ name: 'a', content: 'a' }), tar({ name: 'b', content: 'b'.repeat(1_000_000) })], '1')
  const app = `${registry.host}/app`
  let daemon = await Daemon.start(host)
  t.teardown(() => daemon.stop())
  const clients = new Clients(daemon.socket)
  const dockerfile = (): Buffer =>
    tar(
      { name: 'Dockerfile', content: 'FROM busybox\nCOPY file /file\nRUN cat /file > /copy\n' },
      { name: 'file', content: String(Math.random()) },
    )
  const work = [
    () => clients.container('aa', 'none'),
    () => clients.container('bb', 'bridge'),
    () => clients.container('cc', 'bridge'),
    () => clients.thing('volumes', 'vv', ['POST', '/volumes/create', { Name: 'vv' }], '/volumes/vv'),
    () => clients.thing('networks', 'nn', ['POST', '/networks/create', { Name: 'nn' }], '/networks/nn'),
    () =>
      clients.thing(
        'images',
        'built:latest',
        ['POST', '/build?t=built&networkmode=none&isolation=process', dockerfile()],
        '/images/built',
      ),
    () =>
      clients.thing(
        'images',
        `${app}:1`,
        ['POST', `/images/create?fromImage=${app}&tag=1`],
        `/images/${app}:1`,
      ),
  ]
  for (let i = 0; i < KILLS; i++) {
    let dead = false
    // Not all each time: what takes longer is to get somewhere too.
    const some = work.filter((_, at) => at === i % work.length || Math.random() < 0.4)
    const busy = some.map(async (each) => {
      while (!dead)
        try {
          await each()
        } catch (error) {
          if (!dead) clients.complaints.push(String(error))
          return
        }
    })
    const enough = clients.acknowledged.length + Math.random() * CHANGES
    while (clients.acknowledged.length < enough && clients.complaints.length === 0) await sleep(1)
    await sleep(Math.random() * MOMENT)
    dead = true
    await daemon.kill()
    await Promise.all(busy)
    daemon = await Daemon.start(host)
    t.same(await clients.check(), [], `after ${i + 1} kills`)
  }
  t.same([...new Set(clients.complaints)], [])
  for (const kind of ['containers', 'volumes', 'networks', 'images'])
    for (const method of ['POST', 'DELETE'])
      t.ok(clients.acknowledged.includes(`${method} ${kind}`), `${method} ${kind} was acknowledged`)
  for (const name of ['aa', 'bb', 'cc'])
    if (clients.known.get(`containers/${name}`) !== 'gone')
      await clients.change('containers', name, 'gone', 'DELETE', `/containers/${name}?force=1`)
  for (const volume of ['kept', 'vv']) await clients.call('DELETE', `/volumes/${volume}`)
  await daemon.stop()
  t.same(leftovers(host.run), [])
  t.same(leftovers(host.state), [])
  t.same(cgroups(clients.ids), [])
  t.same(interfaces(host.run), [])
  const files = (...folder: string[]): string[] => {
    const path = join(...folder)
    return existsSync(path) ? readdirSync(path).filter((name) => !/lock$|^index.json$/.test(name)) : []
  }
  for (const name of ['containers', 'volumes', 'snapshots']) t.same(files(host.state, name), [], name)
  t.same(files(host.state, 'images', 'tmp'), [])
  t.same(files(host.run, 'net', 'attachments'), [])
  t.same(files(host.run, 'net', 'ns'), [])
})

t.test(
  "clients that get into each other's way, are many, slow, or go in the middle",
  { timeout: 600_000 },
  async (t) => {
    const host = await Host.create()
    t.teardown(() => host.remove())
    await using registry = await FakeRegistry.start()
    registry.image([tar({ name: 'b', content: 'b'.repeat(1_000_000) })], '1')
    const daemon = await Daemon.start(host)
    t.teardown(() => daemon.stop())
    const clients = new Clients(daemon.socket)
    const ping = async (): Promise<string> => (await clients.call('GET', '/_ping')).text
    const settings = { NetworkMode: 'none', Isolation: 'process' }

    await t.test('one name', async (t) => {
      const body = { Image: 'busybox', Cmd: ['sleep', '1000'], HostConfig: settings }
      const all = (...asked: Parameters<Clients['call']>): Promise<number[]> =>
        Promise.all([1, 2, 3, 4].map(async () => (await clients.call(...asked)).status))
      for (let i = 0; i < 5; i++) {
        const created = await all('POST', '/containers/create?name=one', body)
        t.same(created.sort(), [201, 409, 409, 409])
        const started = await all('POST', '/containers/one/start')
        t.same(started.sort(), [204, 304, 304, 304])
        const removed = await all('DELETE', '/containers/one?force=1')
        t.equal(removed.filter((status) => status === 204).length, 1, `${removed}`)
        t.ok(
          removed.every((status) => [204, 404, 409].includes(status)),
          `${removed}`,
        )
      }
      // And all of it at once: whatever comes of it, nothing fails and nothing stays.
      const calls = [
        ['POST', '/containers/create?name=one', body],
        ['POST', '/containers/one/start'],
        ['POST', '/containers/one/stop?t=0'],
        ['DELETE', '/containers/one?force=1'],
      ] as const
      const answers = await Promise.all(
        Array.from({ length: 40 }, (_, i) => clients.call(...(calls[i % calls.length] as (typeof calls)[0]))),
      )
      t.same(
        answers.filter(({ status }) => status >= 500),
        [],
      )
      await clients.call('DELETE', '/containers/one?force=1')
    })

    await t.test('a thousand connections, and slow ones', async (t) => {
      const slow =
        'POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"Im'
      const sockets = await Promise.all(
        Array.from({ length: 1000 }, async (_, i) => {
          const socket = connect(daemon.socket).on('error', () => undefined)
          await once(socket, 'connect')
          if (i % 2) socket.write(i % 4 === 1 ? slow : slow.slice(0, 20))
          return socket
        }),
      )
      t.equal(await ping(), 'OK')
      for (const socket of sockets) socket.destroy()
      t.equal(await ping(), 'OK')
      const open = (): number => readdirSync(`/proc/${daemon.pid}/fd`).length
      while (open() > 100) await sleep(10)
    })

    await t.test('a client that goes in the middle of a build, a pull, a run', async (t) => {
      const rest = (): string[] =>
        ['containers', 'images/tmp', 'builds'].flatMap((name) =>
          readdirSync(join(host.state, name)).filter(
            (each) => !each.startsWith('.') && !each.includes('lock'),
          ),
        )
      const dockerfile = tar({
        name: 'Dockerfile',
        content: 'FROM busybox\nRUN echo a > /a\nRUN sleep 1000\n',
      })
      registry.trick = (request) => /blobs/.test(request.url!)
      for (const [method, path, body] of [
        ['POST', '/build?networkmode=none&isolation=process', dockerfile],
        ['POST', `/images/create?fromImage=${registry.host}/app&tag=1`, {}],
      ] as const)
        for (const moment of [0, 10, 50, 200, 500, 1000, 1500]) {
          const going = new AbortController()
          const answered = clients.call(method, path, body, going.signal).catch(() => undefined)
          await sleep(moment)
          going.abort()
          await answered
        }
      while (rest().length > 0) await sleep(20)
      t.same(rest(), [])
      const id = (
        JSON.parse(
          (
            await clients.call('POST', '/containers/create', {
              Image: 'busybox',
              Cmd: ['sh', '-c', 'while :; do echo line; done'],
              HostConfig: settings,
            })
          ).text,
        ) as { Id: string }
      ).Id
      const going = new AbortController()
      const at = `/containers/${id}`
      t.equal((await clients.call('POST', `${at}/start`)).status, 204)
      const gone = [
        'attach?stream=1&stdout=1',
        'wait?condition=next-exit',
        'logs?follow=1&stdout=1',
        'stats',
      ].map((path) =>
        clients
          .call(
            path.startsWith('logs') || path === 'stats' ? 'GET' : 'POST',
            `${at}/${path}`,
            {},
            going.signal,
          )
          .catch(() => undefined),
      )
      await sleep(500)
      going.abort()
      await Promise.all(gone)
      t.match((await clients.call('GET', `${at}/json`)).text, /"Status":"running"/, 'it goes on without them')
      t.equal((await clients.call('DELETE', `${at}?force=1`)).status, 204)
    })
    t.equal(await ping(), 'OK')
    await daemon.stop()
    t.same(leftovers(host.run), [])
    t.same(leftovers(host.state), [])
  },
)
