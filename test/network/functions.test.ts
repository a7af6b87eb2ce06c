import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { Fd, O_RDONLY } from '@coracle/sys'
import { Networking } from '../../src/engine/networking.js'
import { CoracleError } from '../../src/errors.js'
import type { FunctionHost } from '../../src/network/functions.js'
import { Networks, type AttachPlan } from '../../src/network/networks.js'
import { Rtnetlink } from '../../src/network/rtnetlink.js'

if (process.getuid?.() !== 0) {
  t.plan(0, 'networks need root')
  process.exit(0)
}

/*
 * Networks of virtual functions, without an adapter: pairs of links stand for its functions and their ports. What an
 * adapter does is in test/sriov, and in the lab.
 */

const OURS = '198.18.79.1'
const VLAN = 12

/** Two functions. Each is made anew when it is claimed, and lies on the host when it is given back. */
class Ports implements FunctionHost {
  readonly asked: object[] = []
  readonly #taken = new Map<string, number>()
  readonly #netlink = new Rtnetlink()

  readonly find = (adapter: string): void => {
    if (adapter !== 'pf0') throw new CoracleError('DEVICE_UNUSABLE', `adapter ${adapter} has no SR-IOV`)
  }
  readonly claim: FunctionHost['claim'] = async (owner, order, wanted) => {
    const port = [0, 1].find((each) => ![...this.#taken.values()].includes(each))
    if (port === undefined) throw new CoracleError('DEVICE_IN_USE', 'all 2 virtual functions are in use')
    this.#taken.set(`${owner} ${order}`, port)
    this.asked.push(wanted)
    const [ours, theirs] = this.names(port)
    using own = Fd.open('/proc/self/ns/net', O_RDONLY)
    this.#netlink.createVeth({ name: ours! }, { name: theirs!, mac: wanted.mac }, own)
    const { index } = this.#netlink.link(ours!)!
    this.#netlink.addAddress(index, `${OURS}/24`)
    this.#netlink.setLink(index, { up: true })
    return this.#netlink.link(theirs!)!.index
  }
  readonly release = async (owner: string, order?: number): Promise<string[]> => {
    for (const [key, port] of this.#taken)
      if (order === undefined ? key.startsWith(`${owner} `) : key === `${owner} ${order}`) {
        this.#taken.delete(key)
        this.#netlink.deleteLink(this.names(port)[0]!)
      }
    return []
  }

  get taken(): string[] {
    return [...this.#taken.keys()]
  }
  names(port: number): string[] {
    return [`fp${port}-${process.pid}`, `fv${port}-${process.pid}`]
  }
}

t.test('containers on a network of virtual functions', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-functions-'))
  const ports = new Ports()
  const init = { state: join(folder, 'state'), run: join(folder, 'run'), functions: ports }
  const networks = await Networks.open({ ...init, keeper: async () => undefined })
  const sriov = {
    name: 'fast',
    driver: 'sriov',
    subnets: [{ subnet: '198.18.79.0/24', gateway: OURS }],
    options: { parent: 'pf0', vlan: String(VLAN) },
  }
  for (const [options, message] of [
    [{}, /needs the option parent, an adapter/],
    [{ parent: '../pf0' }, /is no name of a network device/],
    [{ parent: 'pf0', vlan: '4095' }, /vlan: it is a number from 1 to 4094/],
    [{ parent: 'pf0', vlan: '1x' }, /vlan/],
  ] as const)
    await t.rejects(networks.create({ ...sriov, options }), { code: 'INVALID_ARGUMENT', message })
  await t.rejects(networks.create({ ...sriov, options: { parent: 'eth0' } }), { code: 'DEVICE_UNUSABLE' })
  await t.rejects(networks.create({ ...sriov, internal: true }), { message: /cannot be internal/ })
  t.match(await networks.create(sriov), { driver: 'sriov', device: 'pf0' })

  const plan = (container: string, isolation: AttachPlan['isolation'], network = 'fast'): AttachPlan => {
    const run = join(folder, 'containers', container)
    mkdirSync(run, { recursive: true })
    return {
      container: container.repeat(32),
      name: container,
      isolation,
      hostname: container,
      domainname: '',
      control: join(run, 'control.sock'),
      mode: network,
      networks: [[network, {}]],
      ports: [],
      resolvers: [],
      search: undefined,
      resolverOptions: undefined,
      extraHosts: [],
    }
  }
  const [a, b, c] = ['aa', 'bb', 'cc'].map((name) => plan(name, 'process')) as [
    AttachPlan,
    AttachPlan,
    AttachPlan,
  ]
  const inside = async (of: AttachPlan, ...words: string[]): Promise<string> => {
    const path = networks.attachment(of.container)!.namespace!
    const { stdout } = await promisify(execFile)('nsenter', [`--net=${path}`, ...words], { timeout: 60_000 })
    return stdout
  }
  const server = createServer((socket) => socket.on('error', () => undefined).end('reached'))
  server.listen(0)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const reach = (of: AttachPlan): Promise<string> =>
    inside(of, 'bash', '-c', `exec 3<>/dev/tcp/${OURS}/${port}; cat <&3`)
  t.teardown(async () => {
    server.close()
    for (const { container } of networks.attachments()) await networks.detach(container)
    rmSync(folder, { recursive: true, force: true })
  })
  const plug = async (): Promise<void> => undefined

  await t.test('a process container has the function itself, set up', async (t) => {
    const { network, devices } = await networks.attach(a)
    t.match(network, { interfaces: [{ name: 'eth0', addresses: ['198.18.79.2/24'], gateways: [OURS] }] })
    t.same(devices, [])
    t.match(ports.asked, [{ adapter: 'pf0', mac: '02:42:c6:12:4f:02', vlan: VLAN }])
    t.match(
      await inside(a, 'ip', 'addr', 'show', 'eth0'),
      /link\/ether 02:42:c6:12:4f:02[^]*inet 198.18.79.2\/24/,
    )
    t.match(await inside(a, 'ip', 'route'), `default via ${OURS} dev eth0`)
    t.equal(await reach(a), 'reached')
    await t.rejects(networks.remove('fast'), { code: 'FORBIDDEN', message: /active endpoints/ })
  })

  await t.test('as many as there are, and each is given back', async (t) => {
    await networks.attach(b)
    await t.rejects(networks.attach(c), { code: 'DEVICE_IN_USE' })
    t.equal(networks.attachment(c.container), undefined)
    t.equal(ports.taken.length, 2)
    await networks.detach(b.container)
    t.same(ports.taken, [`${join(folder, 'containers', 'aa')} 0`])
    const later = plan('cc', 'process', 'bridge')
    await networks.attach(later)
    await networks.connect(later, 'fast', {}, plug)
    t.match(await inside(c, 'ip', 'route', 'get', OURS), / dev eth1 /, 'one that runs gets one, too')
    await networks.disconnect(c.container, networks.find('fast').id, plug)
    t.same(ports.taken.length, 1)
    t.notMatch(await inside(c, 'ip', 'addr'), /eth1/)
    await networks.detach(c.container)
  })

  await t.test('a microVM has it as a device, from its start to its end', async (t) => {
    const vm = plan('dd', 'microvm')
    const { network, devices } = await networks.attach(vm)
    t.same(network!.interfaces, [])
    t.match(devices, [
      { kind: 'sriov', adapter: 'pf0', vlan: VLAN, name: 'eth0', gateways: [OURS], mtu: 1500 },
    ])
    t.equal(ports.taken.length, 1, 'who launches it takes it')
    await t.rejects(networks.disconnect(vm.container, networks.find('fast').id, plug), {
      code: 'CONFLICT',
      message: /is a microVM that runs.*stop it first/,
    })
    await networks.detach(vm.container)
    const networking = new Networking(networks)
    const settle = (isolation: 'microvm' | 'process', hypervisor?: 'kvm' | 'qemu', from?: string): unknown =>
      networking.settle(
        {
          image: '',
          networkMode: 'fast',
          ports: [{ protocol: 'tcp', containerPort: 80 }],
          ...(from && { from }),
        },
        { isolation, ...(hypervisor && { hypervisor }) },
        (id) => id,
      )
    t.match(settle('process'), { warnings: [/published ports are discarded/] })
    t.match(settle('microvm', 'kvm'), { request: { networkMode: 'fast' } })
    t.throws(() => settle('microvm', 'qemu'), { code: 'INVALID_ARGUMENT', message: /--hypervisor kvm alone/ })
    t.throws(() => settle('microvm', 'kvm', 'saved'), { message: /goes on from a snapshot/ })
  })

  await networks.detach(a.container)
  t.same(ports.taken, [])
  t.equal((await networks.remove('fast')).name, 'fast')
})
