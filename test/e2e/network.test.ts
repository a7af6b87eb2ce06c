import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { createSocket } from 'node:dgram'
import { createServer, connect } from 'node:net'
import { networkInterfaces } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Fd, O_RDONLY } from '@coracle/sys'
import { toolCommand } from '../../src/debian/index.js'
import { parseAddress } from '../../src/network/address.js'
import { Rtnetlink } from '../../src/network/rtnetlink.js'
import { Host, leftovers } from './host.js'

if (process.getuid?.() !== 0) {
  t.plan(0, 'networks need root')
  process.exit(0)
}

const host = await Host.create()
t.teardown(() => host.remove())
const PROCESS = ['--isolation', 'process']

/** @returns stdout of a command that must end well */
async function ok(...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await host.coracle(words)
  if (status !== 0) throw new Error(`coracle ${words.join(' ')}: ${status} ${stderr}`)
  return stdout.toString()
}

const start = (name: string, ...words: string[]): Promise<string> =>
  ok('run', '-d', '--name', name, ...PROCESS, ...words)

/** A container that serves `text` at port 80. */
const serve = (name: string, text: string, ...words: string[]): Promise<string> =>
  start(
    name,
    ...words,
    'busybox',
    'sh',
    '-c',
    `mkdir /www; echo ${text} > /www/index.html; exec httpd -f -p 80 -h /www`,
  )

const exec = (name: string, ...words: string[]): Promise<string> => ok('exec', name, ...words)

interface Inspected {
  NetworkSettings: {
    SandboxKey: string
    Networks: Record<string, { IPAddress: string; GlobalIPv6Address: string; MacAddress: string }>
  }
  State: { Pid: number }
}

const inspect = async (name: string): Promise<Inspected> =>
  (JSON.parse(await ok('inspect', name)) as [Inspected])[0]

/** What this test's run folder has of the host's network. */
async function traces(): Promise<string[]> {
  const links = readdirSync('/sys/class/net').filter((name) => {
    try {
      return readFileSync(`/sys/class/net/${name}/ifalias`, 'utf8').includes(host.run)
    } catch {
      return false
    }
  })
  const { argv } = await toolCommand('nft')
  const rules = execFileSync(argv[0]!, [...argv.slice(1), 'list', 'tables'], { encoding: 'utf8' })
  const { createHash } = await import('node:crypto')
  const tag = createHash('sha256').update(host.run).digest('hex').slice(0, 8)
  const folder = join(host.run, 'net')
  const files = ['attachments', 'ns'].flatMap((name) => {
    const path = join(folder, name)
    return existsSync(path) ? readdirSync(path).map((file) => `${name}/${file}`) : []
  })
  return [
    ...links,
    ...(rules.includes(`coracle_${tag}`) ? [`table coracle_${tag}`] : []),
    ...files,
    ...leftovers(host.run),
  ]
}

/** How long what is sure to come may take, in ms: others use the machine too. */
const PATIENCE = 60_000

/** Resolves when nothing of the run folder is left; the keeper may be at it. */
async function clean(): Promise<string[]> {
  const deadline = Date.now() + PATIENCE
  for (;;) {
    const left = await traces()
    if (left.length === 0 || Date.now() > deadline) return left
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** What a server on `address` answers to HTTP; undefined where it cannot be reached, or says nothing for `patience` ms. */
function get(address: string, port: number, patience = PATIENCE): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port })
    let all = ''
    socket.setTimeout(patience, () => socket.destroy())
    socket.on('connect', () => socket.write('GET / HTTP/1.0\r\n\r\n'))
    socket.on('data', (chunk: Buffer) => (all += chunk.toString()))
    socket.on('error', () => undefined)
    socket.on('close', () => resolve(all === '' ? undefined : all.split('\r\n\r\n')[1]))
  })
}

const outside = Object.values(networkInterfaces())
  .flat()
  .find((each) => each && !each.internal && each.family === 'IPv4')?.address

t.test('by name on one network, and not at all from another', { timeout: 600_000 }, async (t) => {
  await ok('network', 'create', '--ipv6', 'front')
  await ok('network', 'create', '--internal', 'back')
  await serve('web', 'hello', '--network', 'front', '--network-alias', 'www')
  await start(
    'one',
    '--network',
    'front',
    '--hostname',
    'unit',
    '--add-host',
    'x:10.9.9.9',
    'busybox',
    'sleep',
    '1000',
  )
  await start('two', '--network', 'back', 'busybox', 'sleep', '1000')
  for (const name of ['web', 'www', 'web.front'])
    t.equal(await exec('one', 'wget', '-qO-', `http://${name}/`), 'hello\n', name)
  const { NetworkSettings } = await inspect('web')
  const { IPAddress, GlobalIPv6Address } = NetworkSettings.Networks['front']!
  t.equal(await exec('one', 'wget', '-qO-', `http://[${GlobalIPv6Address}]/`), 'hello\n', 'IPv6')
  t.match(await exec('one', 'nslookup', IPAddress), /web\.front/)
  const files = await exec('one', 'cat', '/etc/hosts', '/etc/hostname', '/etc/resolv.conf')
  t.match(files, /10\.9\.9\.9\tx\n.*\tunit\n/)
  t.match(files, /^unit\nnameserver /m)
  t.equal((await host.coracle(['exec', 'two', 'ping', '-c1', '-W1', IPAddress])).status, 1, 'apart')
  t.equal((await host.coracle(['exec', 'two', 'nslookup', 'web'])).status, 1, 'no name of it')
  t.notMatch(await exec('two', 'ip', 'route'), /default/, 'an internal network leads nowhere')

  await ok('network', 'connect', '--alias', 'second', 'back', 'one')
  t.match(await exec('one', 'ip', '-o', 'addr', 'show', 'eth1'), /inet /, 'while it runs')
  t.match(await exec('two', 'ping', '-c1', 'second'), / 0% packet loss/)
  t.equal((await host.coracle(['network', 'connect', 'back', 'one'])).status, 1, 'it is there already')
  await ok('network', 'disconnect', 'back', 'one')
  t.notMatch(await exec('one', 'ip', 'addr'), /eth1/)
  t.equal((await host.coracle(['network', 'rm', 'front'])).status, 1, 'it has users')

  await ok('restart', '-t', '0', 'web')
  t.equal(
    (await inspect('web')).NetworkSettings.Networks['front']!.IPAddress,
    IPAddress,
    'a restart keeps the address',
  )
  t.equal(await exec('one', 'wget', '-qO-', 'http://web/'), 'hello\n')
  const fixed = await host.coracle([
    'run',
    '--rm',
    ...PROCESS,
    '--network',
    'front',
    '--ip',
    IPAddress,
    'busybox',
    'true',
  ])
  t.match(fixed.stderr, /Address already in use/)
  await ok('rm', '-f', 'web', 'one', 'two')
  await ok('network', 'rm', 'front', 'back')
  t.same(await clean(), [], 'nothing is left')
})

t.test('published ports: from the host, from outside, from containers', { timeout: 600_000 }, async (t) => {
  const taken = createServer()
  taken.listen(0, '0.0.0.0')
  await once(taken, 'listening')
  t.teardown(() => taken.close())
  const { port: busy } = taken.address() as { port: number }
  await serve('web', 'hello', '-p', '80')
  const port = Number(/0\.0\.0\.0:(\d+)/.exec(await ok('port', 'web', '80'))![1])
  t.match(await ok('ps'), new RegExp(`0\\.0\\.0\\.0:${port}->80/tcp`))
  for (const address of ['127.0.0.1', '::1', ...(outside ? [outside] : [])])
    t.equal(await get(address, port), 'hello\n', address)
  const gateway = (await exec('web', 'ip', 'route')).match(/default via (\S+)/)![1]!
  t.equal(await exec('web', 'wget', '-qO-', `http://${gateway}:${port}/`), 'hello\n', 'by itself')
  // Another host: a namespace whose packets come in by a link of its own.
  await t.test('from outside', async (t) => {
    const space = spawn('unshare', ['--net', 'sh', '-c', 'echo up; exec sleep 1000'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    await once(space.stdout, 'data')
    const name = `e2e${process.pid}`
    using netlink = new Rtnetlink()
    try {
      using fd = Fd.open(`/proc/${space.pid}/ns/net`, O_RDONLY)
      using other = new Rtnetlink(fd)
      netlink.createVeth({ name }, { name: 'eth0' }, fd)
      for (const [side, link, address] of [
        [netlink, name, '198.18.77.1/30'],
        [other, 'eth0', '198.18.77.2/30'],
      ] as const) {
        const { index } = side.link(link)!
        side.addAddress(index, address)
        side.setLink(index, { up: true })
      }
      other.addDefaultRoute(other.link('eth0')!.index, parseAddress('198.18.77.1')!)
      const inside = (...words: string[]): string =>
        execFileSync('nsenter', ['--net', '--target', String(space.pid), ...words], { encoding: 'utf8' })
      const { argv } = await toolCommand('busybox')
      t.equal(inside(...argv, 'wget', '-qO-', `http://198.18.77.1:${port}/`), 'hello\n')
      const own = (await inspect('web')).NetworkSettings.Networks['bridge']!.IPAddress
      t.throws(() => inside(...argv, 'ping', '-c1', '-W1', own), 'not what is not published')
    } finally {
      netlink.deleteLink(name)
      space.kill()
    }
  })
  const run = (...words: string[]): ReturnType<Host['coracle']> =>
    host.coracle(['run', '--rm', ...PROCESS, ...words, 'busybox', 'true'])
  t.match(await run('-p', `${port}:80`), { status: 125, stderr: /port is already allocated/ })
  t.match(await run('-p', `${busy}:80`), { status: 125, stderr: /address already in use/ })
  t.equal((await run('-p', `${busy}-${busy + 5}:80`)).status, 0, 'the next of a range')
  const binding = 'com.docker.network.bridge.host_binding_ipv4=127.0.0.1'
  await ok('network', 'create', '-o', binding, 'inward')
  await serve('within', 'inside', '--network', 'inward', '-p', '80')
  const [, within] = /^80\/tcp -> 127\.0\.0\.1:(\d+)\n$/.exec(await ok('port', 'within')) ?? []
  t.equal(await get('127.0.0.1', Number(within)), 'inside\n', "at the network's own address, and there alone")
  await ok('rm', '-f', 'within')
  await ok('network', 'rm', 'inward')
  await start('echo', '-p', '127.0.0.1::7/udp', 'busybox', 'sleep', '1000')
  const udp = Number(/^7\/udp -> 127\.0\.0\.1:(\d+)/.exec(await ok('port', 'echo'))![1])
  const { SandboxKey } = (await inspect('echo')).NetworkSettings
  const script =
    "const s=require('dgram').createSocket('udp4');s.on('message',(m,r)=>s.send(m,r.port,r.address));s.bind(7,()=>console.log('up'))"
  const echo = spawn('nsenter', [`--net=${SandboxKey}`, process.execPath, '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(echo.stdout, 'data')
  const socket = createSocket('udp4')
  const answered = once(socket, 'message')
  socket.send('ping', udp, '127.0.0.1')
  t.equal(String(((await answered) as [Buffer])[0]), 'ping', 'UDP')
  socket.close()
  echo.kill()
  await ok('rm', '-f', 'web', 'echo')
  t.equal(await get('127.0.0.1', port, 2000), undefined)
  t.same(await clean(), [])
})

t.test('none, host and another container’s', { timeout: 600_000 }, async (t) => {
  t.notMatch(await ok('run', '--rm', ...PROCESS, '--network', 'none', 'busybox', 'ip', 'addr'), /eth0/)
  const all = await ok('run', '--rm', ...PROCESS, '--network', 'host', 'busybox', 'ip', '-o', 'link')
  t.match(all, new RegExp(readdirSync('/sys/class/net').find((name) => name !== 'lo') ?? 'lo'))
  await serve('web', 'hello')
  t.equal(
    await ok(
      'run',
      '--rm',
      ...PROCESS,
      '--network',
      'container:web',
      'busybox',
      'wget',
      '-qO-',
      'http://127.0.0.1/',
    ),
    'hello\n',
  )
  const ask = ['--link', 'web:db', 'busybox', 'wget', '-qO-', 'http://db/']
  t.equal(await ok('run', '--rm', ...PROCESS, ...ask), 'hello\n', 'a link is a further name')
  t.equal(await ok('run', '--rm', '--hypervisor', 'qemu', ...ask), 'hello\n', 'also for a microVM')
  const linked = await ok('create', ...PROCESS, '--link', 'web', 'busybox', 'cat', '/etc/hosts')
  t.match(await ok('start', '-a', linked.trim()), /\d\tweb\n/)
  await ok('stop', '-t', '1', 'web')
  t.match(await host.coracle(['start', '-a', linked.trim()]), {
    stderr: /Cannot link to web, AS web: it does not run/,
  })
  await ok('rm', linked.trim())
  await ok('start', 'web')
  for (const [words, message] of [
    [['--link', 'web', '--network', 'none'], /conflicting options: links/],
    [['--link', 'nosuch'], /nosuch/],
    [['--link', 'a:b:c'], /bad format for links/],
  ] as const)
    t.match(await host.coracle(['run', '--rm', ...PROCESS, ...words, 'busybox', 'true']), {
      status: 125,
      stderr: message,
    })
  for (const mode of ['sriov', 'sriov=eth0'])
    t.match(await host.coracle(['run', '--rm', '--network', mode, 'busybox', 'true']), {
      status: 125,
      stderr: /is a device, not a network: use --device sriov=/,
    })
  for (const mode of ['host', 'container:web'])
    t.match(await host.coracle(['run', '--rm', '--network', mode, 'busybox', 'true']), {
      status: 125,
      stderr: /a microVM has a kernel of its own .*--isolation process/,
    })
  await ok('rm', '-f', 'web')
  t.same(await clean(), [])
})

t.test('a macvlan: containers of both kinds on a link of the host', { timeout: 600_000 }, async (t) => {
  using netlink = new Rtnetlink()
  const [parent, peer] = [`e2ep${process.pid}`, `e2eq${process.pid}`]
  using own = Fd.open('/proc/self/ns/net', O_RDONLY)
  netlink.createVeth({ name: parent }, { name: peer }, own)
  t.teardown(() => execFileSync('ip', ['link', 'delete', parent]))
  for (const name of [parent, peer]) netlink.setLink(netlink.link(name)!.index, { up: true })
  const create = ['network', 'create', '-d', 'macvlan', '--subnet', '198.18.78.0/24']
  await ok(...create, '-o', `parent=${parent}`, 'lan')
  await serve('web', 'hello', '--network', 'lan', '--ip', '198.18.78.5')
  await start('one', '--network', 'lan', 'busybox', 'sleep', '1000')
  t.equal(await exec('one', 'wget', '-qO-', 'http://198.18.78.5/'), 'hello\n')
  netlink.addAddress(netlink.link(peer)!.index, '198.18.78.200/24')
  t.equal(await get('198.18.78.5', 80), 'hello\n', 'from the other end of the link')
  const qemu = ['--hypervisor', 'qemu', '-m', '192m', '--network', 'lan', '--ip', '198.18.78.6']
  const page = 'mkdir /w; echo mine > /w/index.html; exec httpd -f -h /w'
  await ok('run', '-d', '--name', 'vm', ...qemu, 'busybox', 'sh', '-c', page)
  const { MacAddress } = (await inspect('vm')).NetworkSettings.Networks['lan']!
  t.match(await exec('vm', 'cat', '/sys/class/net/eth0/address'), MacAddress)
  t.equal(await exec('vm', 'wget', '-qO-', 'http://198.18.78.5/'), 'hello\n', 'out of a microVM')
  t.equal(await exec('one', 'wget', '-qO-', 'http://198.18.78.6/'), 'mine\n', 'and into it')
  t.equal(await get('198.18.78.6', 80), 'mine\n', 'as from the other end of the link')
  await ok('network', 'disconnect', 'lan', 'vm')
  t.notMatch(await exec('vm', 'ip', 'addr'), /eth0/)
  await ok('network', 'connect', '--ip', '198.18.78.7', 'lan', 'vm')
  t.equal(await exec('one', 'wget', '-qO-', 'http://198.18.78.7/'), 'mine\n', 'connected while it runs')
  await ok('rm', '-f', 'vm')
  t.same(
    (await traces()).filter((each) => /^c[tm]/.test(each)),
    [],
    'its links are gone with it',
  )
  await ok('network', 'disconnect', 'lan', 'one')
  t.notMatch(await exec('one', 'ip', 'addr'), /eth0/)
  await ok('network', 'connect', 'lan', 'one')
  t.equal(await exec('one', 'wget', '-qO-', 'http://198.18.78.5/'), 'hello\n', 'and back')
  await ok('rm', '-f', 'web', 'one')
  await ok('network', 'rm', 'lan')
  await ok(...create, '-o', 'parent=nosuch', 'none-such')
  const refused = await host.coracle(['run', '--rm', ...PROCESS, '--network', 'none-such', 'busybox', 'true'])
  t.match(refused, { status: 125, stderr: /needs the device nosuch: there is none/ })
  await ok('network', 'rm', 'none-such')
  t.same(await clean(), [])
})

t.test('a microVM is connected and cut off while it runs', { timeout: 600_000 }, async (t) => {
  await ok('network', 'create', 'back')
  await serve('web', 'hello', '--network', 'back')
  const qemu = ['--hypervisor', 'qemu', '-m', '192m', '-p', '80']
  const page = 'mkdir /w; echo mine > /w/index.html; exec httpd -f -h /w'
  await ok('run', '-d', '--name', 'vm', ...qemu, 'busybox', 'sh', '-c', page)
  await ok('network', 'connect', '--alias', 'second', 'back', 'vm')
  t.equal(await exec('vm', 'wget', '-qO-', 'http://web/'), 'hello\n')
  t.equal(await exec('web', 'wget', '-qO-', 'http://second/'), 'mine\n')
  t.match(await exec('vm', 'ip', 'route'), /default via \S+ dev eth0/)
  await ok('network', 'disconnect', 'bridge', 'vm')
  t.same(Object.keys((await inspect('vm')).NetworkSettings.Networks), ['back'])
  t.match(await exec('vm', 'ip', 'route'), /default via \S+ dev eth1/, 'the way out is the other')
  const port = Number(/0\.0\.0\.0:(\d+)/.exec(await ok('port', 'vm', '80'))![1])
  t.equal(await get('127.0.0.1', port), 'mine\n', 'its port is reached by the network that is left')
  await ok('pause', 'vm')
  t.match(await host.coracle(['network', 'connect', 'bridge', 'vm']), { status: 125, stderr: /is paused/ })
  await ok('unpause', 'vm')
  await ok('restart', '-t', '0', 'vm')
  t.equal(await exec('vm', 'wget', '-qO-', 'http://web/'), 'hello\n', 'it starts with what it had')
  await ok('rm', '-f', 'web', 'vm')
  await ok('network', 'rm', 'back')
  t.same(await clean(), [])
})

t.test('killed at any place', { timeout: 600_000 }, async (t) => {
  // The monitor, with nobody of ours about: the keeper takes it away.
  await start('aa', 'busybox', 'sleep', '1000')
  process.kill((await inspect('aa')).State.Pid, 'SIGKILL')
  t.same(await clean(), [], 'the monitor')
  // The keeper: the next command starts it anew, and names go on.
  await serve('bb', 'hello', '-p', '80')
  await start('cc', 'busybox', 'sleep', '1000')
  const { pid } = JSON.parse(readFileSync(join(host.run, 'net', 'keeper.lock'), 'utf8')) as { pid: number }
  process.kill(pid, 'SIGKILL')
  await ok('ps')
  t.equal(await exec('cc', 'wget', '-qO-', 'http://bb/'), 'hello\n', 'the keeper')
  // Both: the next command sweeps, and what lives stays.
  const again = JSON.parse(readFileSync(join(host.run, 'net', 'keeper.lock'), 'utf8')) as { pid: number }
  process.kill(again.pid, 'SIGKILL')
  process.kill((await inspect('cc')).State.Pid, 'SIGKILL')
  await ok('ps', '-a')
  const port = Number(/0\.0\.0\.0:(\d+)/.exec(await ok('port', 'bb', '80'))![1])
  t.equal(await get('127.0.0.1', port), 'hello\n', 'what lives is untouched')
  await ok('rm', '-f', 'aa', 'bb', 'cc')
  t.same(await clean(), [])
  // The command line, at many moments of a start.
  for (const wait of [50, 150, 250, 350, 450, 600, 800]) {
    const child = host.spawn('run', '--name', `k${wait}`, ...PROCESS, '-p', '80', 'busybox', 'sleep', '1000')
    const ended = once(child, 'close')
    await new Promise((resolve) => setTimeout(resolve, wait))
    child.kill('SIGKILL')
    await ended
  }
  for (const id of (await ok('ps', '-aq')).split('\n').filter(Boolean)) await ok('rm', '-f', id)
  t.same(await clean(), [], 'the command line')
})
