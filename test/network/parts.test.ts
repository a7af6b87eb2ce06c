import { isIPv6 } from 'node:net'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parsePublish } from '../../src/cli/network-options.js'
import {
  Subnet,
  addressBytes,
  addressOfBytes,
  formatAddress,
  parseAddress,
} from '../../src/network/address.js'
import { rulesOf } from '../../src/network/firewall.js'
import { nameFiles } from '../../src/network/files.js'
import { allocate, freeSubnet } from '../../src/network/ipam.js'
import {
  NOERROR,
  NXDOMAIN,
  TYPE_A,
  TYPE_AAAA,
  TYPE_PTR,
  encodeAnswer,
  encodeName,
  parseQuery,
  truncated,
} from '../../src/network/keeper/dns-message.js'
import { TcpFrames, framed } from '../../src/network/keeper/forward.js'
import { View } from '../../src/network/keeper/view.js'
import { choosePorts } from '../../src/network/ports.js'
import type { Attachment, NetworkRecord } from '../../src/network/record.js'
import { NetworkStore } from '../../src/network/store.js'

const BASE: NetworkRecord = {
  version: 1,
  id: '1'.repeat(64),
  name: 'net',
  created: '',
  driver: 'bridge',
  device: 'cb-1',
  internal: false,
  attachable: false,
  ipv4: true,
  ipv6: false,
  subnets: [{ subnet: '10.1.0.0/29', gateway: '10.1.0.1' }],
  options: {},
  ipamOptions: {},
  labels: {},
  endpoints: {},
}

t.test('addresses are written as they are read', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 4, maxLength: 4 }), (bytes) => {
      const address = addressOfBytes(bytes)
      return addressBytes(parseAddress(formatAddress(address))!).equals(bytes)
    }),
  )
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
      const text = formatAddress(addressOfBytes(bytes))
      return isIPv6(text) && addressBytes(parseAddress(text)!).equals(bytes)
    }),
  )
  fc.assert(fc.property(fc.string(), (text) => parseAddress(text) === undefined || text.length > 1))
  for (const [text, canonical] of [
    ['2001:DB8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['::', '::'],
    ['::ffff:10.0.0.1', '::ffff:a00:1'],
    ['fd00::', 'fd00::'],
  ] as const)
    t.equal(formatAddress(parseAddress(text)!), canonical)
  t.equal(Subnet.parse('10.1.2.3/16')?.toString(), '10.1.0.0/16')
  t.equal(Subnet.parse('10.0.0.0/33'), undefined)
  t.equal(Subnet.parse('10.0.0.0'), undefined)
  t.end()
})

t.test('subnets out of the pools overlap nothing that is taken', (t) => {
  const taken: Subnet[] = [Subnet.parse('172.16.0.0/13')!]
  for (let i = 0; i < 50; i++) {
    const next = freeSubnet(4, taken, Buffer.alloc(32))
    t.notOk(
      taken.some((each) => each.overlaps(next)),
      next.toString(),
    )
    taken.push(next)
  }
  t.match(freeSubnet(6, [], Buffer.alloc(32, 7)).toString(), /^fd07:707:707:.*\/64$/)
  const all = ['172.16.0.0/12', '10.64.0.0/10'].map((text) => Subnet.parse(text)!)
  t.throws(() => freeSubnet(4, all, Buffer.alloc(32)), { code: 'CONFLICT', message: /fully subnetted/ })
  t.end()
})

t.test('places on a network are given out once', (t) => {
  let record = BASE
  const given: string[] = []
  for (let i = 0; i < 5; i++) {
    const endpoint = allocate(record, {})
    given.push(endpoint.addresses[0]!)
    record = { ...record, endpoints: { ...record.endpoints, [`c${i}`]: endpoint } }
  }
  t.same(given, ['10.1.0.2', '10.1.0.3', '10.1.0.4', '10.1.0.5', '10.1.0.6'])
  t.throws(() => allocate(record, {}), { code: 'CONFLICT', message: /no available/ })
  t.throws(() => allocate(record, { ipv4: '10.1.0.4' }), { code: 'ADDRESS_IN_USE', status: 403 })
  t.throws(() => allocate(record, { ipv4: '10.1.0.7' }), { code: 'ADDRESS_IN_USE' }, 'broadcast')
  t.throws(() => allocate(BASE, { ipv4: '10.2.0.4' }), { code: 'INVALID_ARGUMENT' })
  t.throws(() => allocate(BASE, { ipv6: 'fd00::2' }), { code: 'INVALID_ARGUMENT' })
  t.equal(allocate(BASE, {}).mac, '02:42:0a:01:00:02', 'by the address')
  const ranged = {
    ...BASE,
    subnets: [{ subnet: '10.1.0.0/24', range: '10.1.0.16/30', gateway: '10.1.0.16' }],
  }
  t.same(allocate(ranged, {}).addresses, ['10.1.0.17'])
  t.end()
})

t.test('networks: checks, and what processes do at the same time', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-networks-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const open = (): NetworkStore => new NetworkStore({ state: folder, run: `${folder}/run`, taken: () => [] })
  const stores = [open(), open(), open(), open()]
  const made = await Promise.all(
    stores.map(async (store, i) => {
      using _lock = await store.lock()
      store.addPredefined()
      return store.add({ name: `n${i}`, ipv6: i === 0 })
    }),
  )
  const [store] = stores as [NetworkStore]
  t.same(
    store
      .list()
      .map(({ name }) => name)
      .sort(),
    ['bridge', 'host', 'n0', 'n1', 'n2', 'n3', 'none'],
  )
  const subnets = store.list().flatMap((each) => each.subnets.map(({ subnet }) => Subnet.parse(subnet)!))
  for (const a of subnets) t.equal(subnets.filter((b) => a.overlaps(b)).length, 1, a.toString())
  const ids = Array.from({ length: 20 }, (_, i) => `c${i}`)
  const places = await Promise.all(
    ids.map(async (id, i) => {
      const mine = stores[i % 4]!
      using _lock = await mine.lock()
      return mine.reserve(made[0]!.id, id, {})
    }),
  )
  t.equal(new Set(places.map(({ addresses }) => addresses[0])).size, 20)
  t.equal(new Set(places.map(({ addresses }) => addresses[1])).size, 20)
  t.same(open().reserve(made[0]!.id, 'c3', {}), places[3], 'kept')
  store.free('c3')
  t.notOk(store.find('n0').endpoints['c3'])
  for (const [request, code] of [
    [{ name: 'n1' }, 'CONFLICT'],
    [{ name: 'host' }, 'FORBIDDEN'],
    [{ name: '../x' }, 'INVALID_ARGUMENT'],
    [{ name: 'x', driver: 'overlay' }, 'NO_SUCH_NETWORK'],
    [{ name: 'x', driver: 'macvlan' }, 'INVALID_ARGUMENT'],
    [{ name: 'x', driver: 'macvlan', options: { parent: '../eth0' } }, 'INVALID_ARGUMENT'],
    [{ name: 'x', subnets: [{ subnet: store.find('n1').subnets[0]!.subnet }] }, 'FORBIDDEN'],
    [{ name: 'x', subnets: [{ subnet: '10.1.0.0/24', gateway: '10.2.0.1' }] }, 'INVALID_ARGUMENT'],
    [{ name: 'x', subnets: [{ subnet: 'fd00::/64' }] }, 'INVALID_ARGUMENT'],
    [{ name: 'x', subnets: [{ gateway: '10.2.0.1' }] }, 'INVALID_ARGUMENT'],
    [{ name: 'x', options: { 'com.docker.network.driver.mtu': '9e9' } }, 'INVALID_ARGUMENT'],
    [{ name: 'x', options: { 'com.docker.network.bridge.name': 'a"; drop' } }, 'INVALID_ARGUMENT'],
    [{ name: 'x', options: { 'com.docker.network.bridge.host_binding_ipv4': 'here' } }, 'INVALID_ARGUMENT'],
    [{ name: 'x', options: { 'com.docker.network.container_iface_prefix': 'e' } }, 'NOT_IMPLEMENTED'],
    [
      { name: 'x', driver: 'macvlan', options: { parent: 'eth0', macvlan_mode: 'private' } },
      'NOT_IMPLEMENTED',
    ],
  ] as const)
    t.throws(() => store.add(request), { code }, JSON.stringify(request))
})

const attachment = (name: string, network: string, address: string, more: object = {}): Attachment => ({
  version: 1,
  container: name.repeat(64).slice(0, 64),
  run: name,
  owner: { pid: 1, startTime: '1' },
  launched: true,
  control: '',
  interfaces: [
    {
      network,
      endpoint: '',
      link: `cv${name}`,
      name: 'eth0',
      mac: '',
      addresses: [address],
      names: [name, 'both'],
    },
  ],
  ports: [],
  resolvers: [],
  files: [],
  ...more,
})

t.test('names are those of the asker’s networks', (t) => {
  const other: NetworkRecord = {
    ...BASE,
    id: '2'.repeat(64),
    name: 'closed',
    internal: true,
    subnets: [{ subnet: '10.2.0.0/24', gateway: '10.2.0.1' }],
  }
  const view = new View(new Map([BASE, other].map((each) => [each.id, each])), [
    attachment('a', BASE.id, '10.1.0.2/29'),
    attachment('b', BASE.id, '10.1.0.3/29', { resolvers: ['9.9.9.9'] }),
    attachment('c', other.id, '10.2.0.2/24'),
  ])
  const ask = (network: string, from: string, name: string, type = TYPE_A): unknown =>
    view.resolve(network, parseAddress(from)!, name, type)
  const addresses = (...all: string[]): object => ({
    code: NOERROR,
    answers: all.map((text) => ({ address: parseAddress(text)! })),
  })
  t.same(ask(BASE.id, '10.1.0.2', 'b'), addresses('10.1.0.3'))
  t.same(ask(BASE.id, '10.1.0.2', 'b.net'), addresses('10.1.0.3'))
  t.same(ask(BASE.id, '10.1.0.2', 'b', TYPE_AAAA), addresses(), 'the name is there, the type is not')
  t.equal((ask(BASE.id, '10.1.0.2', 'both') as { answers: [] }).answers.length, 2)
  t.same(ask(BASE.id, '10.1.0.2', 'c'), { forward: [] }, 'another network’s')
  t.same(ask(BASE.id, '10.1.0.3', 'x.example'), { forward: ['9.9.9.9'] }, 'its own resolvers')
  t.same(
    ask(other.id, '10.2.0.2', 'x.example'),
    { code: NXDOMAIN, answers: [] },
    'an internal network asks nobody',
  )
  t.equal(ask(other.id, '10.1.0.2', 'c'), undefined, 'from another network')
  t.same(ask(BASE.id, '10.1.0.2', '3.0.1.10.in-addr.arpa', TYPE_PTR), {
    code: NOERROR,
    answers: [{ name: 'b.net' }],
  })
  t.same(ask(BASE.id, '10.1.0.2', 'host.docker.internal'), addresses('10.1.0.1'))
  t.end()
})

t.test('DNS messages: any bytes are a question or nothing', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
      const message = Buffer.from(bytes)
      const question = parseQuery(message)
      if (question) encodeAnswer(message, question, NXDOMAIN)
      return true
    }),
  )
  const label = fc.stringMatching(/^[a-z0-9-]{1,63}$/)
  fc.assert(
    fc.property(fc.array(label, { minLength: 1, maxLength: 3 }), fc.nat(0xffff), (labels, id) => {
      const name = labels.join('.')
      const head = Buffer.from([id >> 8, id & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
      const message = Buffer.concat([head, encodeName(name), Buffer.from([0, TYPE_A, 0, 1])])
      const question = parseQuery(message)
      if (question?.name !== name || question.id !== id || !question.isInternet) return false
      const answer = encodeAnswer(message, question, NOERROR, [{ address: parseAddress('10.0.0.1')! }])
      return (
        answer.readUInt16BE(6) === 1 &&
        answer.subarray(-4).equals(Buffer.from([10, 0, 0, 1])) &&
        parseQuery(answer) === undefined &&
        (truncated(answer, question).readUInt16BE(2) & 0x200) !== 0
      )
    }),
  )
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 300 })),
      fc.integer({ min: 1, max: 50 }),
      (messages, size) => {
        const all = Buffer.concat(messages.map((each) => framed(Buffer.from(each))))
        const frames = new TcpFrames()
        const found: Buffer[] = []
        for (let at = 0; at < all.length; at += size) found.push(...frames.push(all.subarray(at, at + size)))
        return found.length === messages.length && found.every((each, i) => each.equals(messages[i]!))
      },
    ),
  )
  t.end()
})

t.test('published ports', async (t) => {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as { port: number }
  const request = { protocol: 'tcp', containerPort: 80, hostAddress: '127.0.0.1' } as const
  await t.rejects(choosePorts([{ ...request, hostPorts: [port, port] }], [], 'web (id)'), {
    code: 'PORT_IN_USE',
    status: 500,
    message: new RegExp(
      `endpoint web \\(id\\): failed to bind host port 127.0.0.1:${port}/tcp: address already in use`,
    ),
  })
  const [free] = await choosePorts([request], [], '')
  t.ok(free!.hostPort > 0)
  const wanted = { ...request, hostPorts: [free!.hostPort, free!.hostPort] as const }
  await t.rejects(choosePorts([wanted], [{ ...free!, hostAddress: '0.0.0.0' }], ''), {
    message: /port is already allocated/,
  })
  t.equal((await choosePorts([wanted], [{ ...free!, protocol: 'udp' }], '')).length, 1)
  const [both] = [await choosePorts([{ protocol: 'udp', containerPort: 53 }], [], '')]
  t.same(
    both.map(({ hostAddress }) => hostAddress),
    ['0.0.0.0', '::'],
  )
  t.equal(both[0]!.hostPort, both[1]!.hostPort)
  for (const [text, expected] of [
    ['80', { port: '80/tcp', HostIp: '', HostPort: '' }],
    ['8080:80', { port: '80/tcp', HostIp: '', HostPort: '8080' }],
    ['8080-8090:80/udp', { port: '80/udp', HostIp: '', HostPort: '8080-8090' }],
    ['127.0.0.1::80', { port: '80/tcp', HostIp: '127.0.0.1', HostPort: '' }],
    ['[::1]:8080:80', { port: '80/tcp', HostIp: '::1', HostPort: '8080' }],
  ] as const)
    t.same(parsePublish(text), [expected], text)
  t.same(
    parsePublish('8000-8001:80-81').map(({ port: inside, HostPort }) => `${HostPort}:${inside}`),
    ['8000:80/tcp', '8001:81/tcp'],
  )
  for (const text of ['', 'a', '80:', '0:80', '1:2:3:4', '80/sctp', '1-2:80-82', '70000'])
    t.throws(() => parsePublish(text), { code: 'USAGE' }, text)
})

t.test('rules and files', (t) => {
  const port = { protocol: 'tcp', containerPort: 80, hostAddress: '0.0.0.0', hostPort: 8080 } as const
  const networks = new Map([[BASE.id, BASE]])
  t.equal(rulesOf(networks, []), '', 'nothing attached, no table')
  const rules = rulesOf(networks, [attachment('a', BASE.id, '10.1.0.2/29', { ports: [port] })])
  t.match(rules, /tcp dport 8080 dnat ip to 10\.1\.0\.2:80/)
  t.match(rules, /ip saddr 10\.1\.0\.0\/29 oifname != "cb-1" masquerade/)
  const closed = rulesOf(new Map([[BASE.id, { ...BASE, internal: true }]]), [
    attachment('a', BASE.id, '10.1.0.2/29', { ports: [port] }),
  ])
  t.notMatch(closed, /dnat ip to|!= "cb-1" masquerade/)
  t.match(closed, /iifname "cb-1" drop/)
  const init = {
    hostname: 'web',
    domainname: 'example.org',
    addresses: ['10.1.0.2'],
    servers: ['10.1.0.1'],
    resolvers: [],
    search: ['a.example', 'b.example'],
    options: ['ndots:2'],
    extraHosts: ['db:10.9.9.9', 'me:host-gateway', 'six=[fd00::1]'],
    gateway: '10.1.0.1',
  }
  const files = Object.fromEntries(nameFiles(init).map(({ path, content }) => [path, content]))
  t.match(
    files['/etc/hosts'],
    /10\.9\.9\.9\tdb\n10\.1\.0\.1\tme\nfd00::1\tsix\n10\.1\.0\.2\tweb\.example\.org\tweb\n$/,
  )
  t.equal(files['/etc/resolv.conf'], 'nameserver 10.1.0.1\nsearch a.example b.example\noptions ndots:2\n')
  t.equal(files['/etc/hostname'], 'web\n')
  t.throws(() => nameFiles({ ...init, extraHosts: ['db'] }), { code: 'INVALID_ARGUMENT' })
  t.end()
})
