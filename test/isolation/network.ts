import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readFileSync, readdirSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'
import t from 'tap'
import { CLONE_NEWNET, unshare } from '@coracle/sys'
import { launchSandbox, type SandboxInterface } from '../../src/isolation/index.js'
import { exec, execOf } from './exec.js'
import { OUTPUT, choose, collect, running, runs, specOf, traces } from './sandbox.js'

export const ip = (words: string): string => execFileSync('ip', words.split(' '), { encoding: 'utf8' })

/**
 * Moves this process's main thread, and with it every process that it starts, into a network namespace that ends with
 * them, and makes a bridge there: 10.77.0.1/24 and fd77::1/64.
 */
export function makeBridge(): void {
  unshare(CLONE_NEWNET)
  ip('link set lo up')
  ip('link add br0 type bridge')
  // The address of a bridge would else change with its ports.
  ip('link set br0 address 02:77:00:00:00:01')
  ip('addr add 10.77.0.1/24 dev br0')
  ip('addr add fd77::1/64 dev br0 nodad')
  ip('link set br0 up')
}

let taps = 0

/** An interface of a guest on that bridge, with the tap behind it. @param host the last number of its addresses */
export function bridged(host: number, more: Partial<SandboxInterface> = {}): SandboxInterface {
  const tap = `tap${taps++}`
  ip(`tuntap add ${tap} mode tap`)
  ip(`link set ${tap} master br0 up`)
  return {
    name: 'eth0',
    mac: `02:77:00:00:00:${host.toString(16).padStart(2, '0')}`,
    addresses: [`10.77.0.${host}/24`, `fd77::${host}/64`],
    gateways: ['10.77.0.1', 'fd77::1'],
    mtu: 1500,
    tap,
    ...more,
  }
}

const VHOST_NET = '/dev/vhost-net'

/** The kernel's threads that carry frames for somebody: its own, or since 6.4 further ones of who asked for it. */
const carriers = (): string[] => [...new Set(readdirSync('/proc').flatMap(threads))].filter(isCarrier)

function threads(pid: string): string[] {
  try {
    return /^\d+$/.test(pid) ? readdirSync(`/proc/${pid}/task`) : []
  } catch {
    return []
  }
}

function isCarrier(thread: string): boolean {
  try {
    return readFileSync(`/proc/${thread}/comm`, 'latin1').startsWith('vhost-')
  } catch {
    return false
  }
}

async function listen(port: number): Promise<Server> {
  const server = createServer({ allowHalfOpen: true })
  server.listen(port, '10.77.0.1')
  await once(server, 'listening')
  return server
}

async function* random(bytes: number, sum: ReturnType<typeof createHash>): AsyncGenerator<Buffer> {
  for (let left = bytes; left > 0;) {
    const piece = randomBytes(Math.min(left, 1 << 18))
    sum.update(piece)
    left -= piece.length
    yield piece
  }
}

/**
 * Two guests and the host on one bridge. The bytes go from the host into the one, by IPv6 into the other, and back to
 * the host: so each guest receives and sends all of them. On kvm the host's kernel carries the first one's frames, its VMM
 * those of the second.
 */
export function testNetwork(hypervisor: 'kvm' | 'qemu', bytes: number): void {
  t.setTimeout(1_900_000)
  t.test('guests on a bridge', { timeout: 1_900_000 }, async (t) => {
    choose({ isolation: 'microvm', hypervisor })
    makeBridge()
    const source = await listen(6000)
    const sink = await listen(6001)
    t.teardown(() => [source, sink].forEach((server) => server.close()))
    const guest = { memory: 192 * 2 ** 20, diskSize: 64 * 2 ** 20 }
    const hosts = '127.0.0.1 localhost\n10.77.0.2 first\n'
    const looks =
      'busybox ip addr show dev eth0; busybox ip addr show dev eth1; busybox ip route; cat /etc/hosts;'
    // A listener whose own input ends would end the connection: this one's is a pipe that never does.
    const serve = 'busybox mkfifo /never; busybox nc -l -p 5000 0<>/never | busybox nc 10.77.0.1 6001'
    const first = specOf(['sh', '-c', `${looks} ${serve}`], {
      ...guest,
      network: {
        // Not in the order of the guest kernel's own names.
        interfaces: [
          bridged(3, { name: 'eth1', addresses: [], gateways: [], mtu: 1400 }),
          bridged(2, { name: 'eth0', ...(hypervisor === 'kvm' ? { vhost: VHOST_NET } : {}) }),
        ],
        files: [{ path: '/etc/hosts', content: hosts }],
      },
    })
    const second = specOf(['sh', '-c', 'busybox nc 10.77.0.1 6000 | busybox nc fd77::2 5000'], {
      ...guest,
      network: { interfaces: [bridged(4)] },
    })
    const one = await launchSandbox(first)
    const output = collect(await one.attach(OUTPUT))
    const arrived = once(sink, 'connection') as Promise<[Socket]>
    await one.start()
    const failed = one.wait().then((exit) => {
      throw new Error(`the first guest ended early: ${JSON.stringify(exit)}`)
    })
    failed.catch(() => undefined)
    const [back] = await Promise.race([arrived, failed])
    if (hypervisor === 'kvm') t.equal(carriers().length, 1, 'one adapter is carried by the kernel')
    t.match(ip('link show'), /tap1: .*LOWER_UP/, 'a tap has a carrier while its guest lives')
    const two = await launchSandbox(second)
    const complaints = collect(await two.attach(OUTPUT))
    const [[out]] = await Promise.all([once(source, 'connection') as Promise<[Socket]>, two.start()])
    const [sent, got] = [createHash('sha256'), createHash('sha256')]
    let count = 0
    back.on('data', (chunk: Buffer) => {
      got.update(chunk)
      count += chunk.length
    })
    const ended = once(back, 'end')
    const fed = pipeline(Readable.from(random(bytes, sent)), out)
    const [error] = (await Promise.allSettled([fed, two.wait()])) as { reason?: Error }[]
    t.equal((await complaints)[2].toString(), '')
    if (error?.reason) throw error.reason
    await ended
    back.end()
    t.equal(count, bytes)
    t.equal(got.digest('hex'), sent.digest('hex'))
    t.match(await two.wait(), { exitCode: 0 })
    t.match(await one.wait(), { exitCode: 0 })
    const said = (await output)[1].toString()
    t.match(said, /eth0: .*mtu 1500[^]*inet 10\.77\.0\.2\/24 brd 10\.77\.0\.255[^]*inet6 fd77::2\/64/)
    t.match(said, /eth1: .*mtu 1400[^]*02:77:00:00:00:03/)
    t.notMatch(/eth1: [^]*default/.exec(said)?.[0] ?? said, /inet /, 'no address was given')
    t.match(said, /default via 10\.77\.0\.1 dev eth0/)
    t.ok(said.endsWith(hosts), 'its own /etc/hosts')
    for (const spec of [first, second]) t.strictSame(traces(spec), [])
    t.notMatch(ip('link show'), /tap\d+: .*[,<]LOWER_UP/, 'the taps are free again')
    t.strictSame(carriers(), [])
    for (const spec of [first, second])
      t.equal(readFileSync(`${spec.stateDirectory}/monitor.log`, 'utf8'), '')
  })

  t.test('adapters come and go while a guest runs', { timeout: 900_000 }, async (t) => {
    const server = await listen(6002)
    t.teardown(() => server.close())
    server.on('connection', (socket) => socket.end('hello').resume())
    const first = bridged(5)
    const { spec, sandbox } = await running(['sleep', '1000'], {
      memory: 192 * 2 ** 20,
      diskSize: 64 * 2 ** 20,
      network: { interfaces: [first] },
    })
    const said = async (...args: string[]): Promise<string> => {
      const output = await exec(sandbox, execOf(args))
      return output[1].toString() + output[2].toString()
    }
    const kernel = hypervisor === 'kvm' ? { vhost: VHOST_NET } : {}
    const second = bridged(6, { name: 'eth1', gateways: [], mtu: 1400, ...kernel })
    await sandbox.setInterfaces([first, second])
    t.match(await said('ip', 'addr', 'show', 'eth1'), /mtu 1400[^]*02:77:00:00:00:06[^]*10\.77\.0\.6/)
    t.match(await said('ip', 'route'), /default via 10\.77\.0\.1 dev eth0/)
    // The one of the start goes, and with it the way out.
    const heir = { ...second, gateways: first.gateways }
    await sandbox.setInterfaces([heir])
    t.notMatch(await said('ip', 'addr'), /eth0/)
    t.match(await said('ip', 'route'), /default via 10\.77\.0\.1 dev eth1/)
    t.equal(await said('busybox', 'nc', '10.77.0.1', '6002'), 'hello')
    t.equal(carriers().length, hypervisor === 'kvm' ? 1 : 0, 'carried by the kernel, where that is wanted')
    ip(`link delete ${first.tap}`)
    // One whose tap another has, and then one that is, in the place of the one before.
    const missing = { ...bridged(7), tap: heir.tap! }
    await t.rejects(sandbox.setInterfaces([heir, missing]))
    t.equal(await said('busybox', 'nc', '10.77.0.1', '6002'), 'hello', 'it has what it had')
    await sandbox.setInterfaces([])
    t.notMatch(await said('ip', 'addr'), /eth/)
    t.strictSame(carriers(), [])
    await sandbox.setInterfaces([bridged(8, kernel)])
    t.equal(await said('busybox', 'nc', '10.77.0.1', '6002'), 'hello')
    if (hypervisor === 'kvm') {
      const folder = join(runs, 'saved with network')
      mkdirSync(folder)
      await sandbox.snapshot(folder)
      t.equal(await said('busybox', 'nc', '10.77.0.1', '6002'), 'hello', 'the kernel goes on after a rest')
      t.equal(carriers().length, 1)
    }
    await sandbox.destroy()
    t.strictSame(traces(spec), [])
  })
}
