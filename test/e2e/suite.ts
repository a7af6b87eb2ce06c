import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, readFileSync, readdirSync, readlinkSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { hostname, release } from 'node:os'
import type { Test } from 'tap'
import { type Host, cgroups, collect, interfaces, leftovers } from './host.js'

/** One kind of isolation as the user names it. */
export interface Isolation {
  name: string
  flags: string[]
  /** The workload runs on a kernel of its own. */
  guestKernel: boolean
}

/** Resolves when `text` has come out of a child's stream. */
function seen(stream: NodeJS.ReadableStream, text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let all = ''
    stream.on('data', (chunk: Buffer) => {
      all += chunk.toString()
      if (all.includes(text)) resolve()
    })
    stream.on('close', () => reject(new Error(`the stream ended without ${JSON.stringify(text)}: ${all}`)))
  })
}

/** What a user of `coracle run` relies on, the same under every isolation. */
export async function runSuite(t: Test, host: Host, { flags, guestKernel }: Isolation): Promise<void> {
  const run = (...words: string[]): Promise<Awaited<ReturnType<Host['coracle']>>> =>
    host.coracle(['run', '--rm', ...flags, ...words])
  const ids: string[] = []
  let count = 0
  // In the lab each container takes its time: there is a shorter test of them.
  const shorter = flags.includes('kvm')
  const volume = shorter ? [] : ['-v', '/data']
  const unique = (): string => `e2e-${process.pid}-${count++}`

  await t.test('settings, streams and exit status', async (t) => {
    const script = 'echo out; echo err >&2; echo $A; pwd; id -u; id -g; hostname; uname -r; exit 7'
    const settings = ['-e', 'A=a b', '-w', '/tmp', '-u', '1000:1001', '-m', '256m', '--cpus', '1']
    const name = unique()
    const result = await run('--name', name, ...settings, 'busybox', 'sh', '-c', script)
    t.equal(result.status, 7, result.stderr)
    const lines = result.stdout.toString().split('\n')
    t.same(lines.slice(0, 5), ['out', 'a b', '/tmp', '1000', '1001'])
    t.match(lines[5], /^[0-9a-f]{12}$/, 'the host name is the short id')
    t.equal(lines[6] !== release(), guestKernel, `kernel ${lines[6]}`)
    t.match(result.stderr, /^err$/m)
    t.notMatch((await host.coracle(['ps', '-a'])).stdout.toString(), name, '--rm removed it')
  })

  await t.test('stdin reaches the workload whole and ends', async (t) => {
    const data = randomBytes(5_000_003)
    const script = 'id -un; grep CapEff /proc/self/status; sha256sum'
    const words = ['run', '-i', '--rm', '-u', 'www-data', ...flags, 'busybox', 'sh', '-c', script]
    const result = await host.coracle(words, data)
    t.equal(result.status, 0, result.stderr)
    const [user, capabilities, sum] = result.stdout.toString().split('\n')
    t.equal(user, 'www-data', "a name is resolved by the image's own files")
    t.match(capabilities, /\t0+$/, 'whoever is not root has no capabilities')
    t.equal(sum?.split(' ')[0], createHash('sha256').update(data).digest('hex'))
  })

  await t.test('a command that is not there, or not executable', async (t) => {
    const absent = await run('busybox', 'no-such-command')
    t.equal(absent.status, 127, absent.stderr)
    t.match(absent.stderr, /no-such-command/)
    const plain = await run('busybox', '/etc/passwd')
    t.equal(plain.status, 126, plain.stderr)
  })

  await t.test('privileged, further groups, and what is the host to share', async (t) => {
    const script = 'grep CapEff /proc/self/status; mkdir /m; mount -t tmpfs none /m && echo mounted; id -G'
    const open = await run(
      '--privileged',
      '--group-add',
      'audio',
      '--group-add',
      '77',
      'busybox',
      'sh',
      '-c',
      script,
    )
    t.equal(open.status, 0, open.stderr)
    const [capabilities, mounted, groups] = open.stdout.toString().split('\n')
    t.match(capabilities, guestKernel ? /\t0*1ffffffffff$/ : /\t0*1f[0-9a-f]{9}$/)
    t.equal(mounted, 'mounted')
    t.equal(groups, '0 29 77')
    const sharing = ['--pid', 'host', '--ipc', 'host', '--uts', 'host', '--device', '/dev/null:/dev/nothing']
    const shared = await run(
      ...sharing,
      'busybox',
      'sh',
      '-c',
      'hostname; readlink /proc/self/ns/pid; ls -l /dev/nothing',
    )
    if (guestKernel) {
      t.equal(shared.status, 125)
      t.match(shared.stderr, /--isolation process/, 'which isolation can is said')
      return
    }
    const [name, pids, device] = shared.stdout.toString().split('\n')
    t.equal(name, hostname(), shared.stderr)
    t.equal(pids, readlinkSync('/proc/self/ns/pid'))
    t.match(device, / 1, +3 /)
  })

  await t.test('a terminal', async (t) => {
    const result = await run('-t', 'busybox', 'sh', '-c', 'tty; echo err >&2')
    t.equal(result.status, 0, result.stderr)
    t.match(result.stdout.toString(), /^\/dev\/(pts\/\d+|console)\r\nerr\r\n$/)
  })

  await t.test('in the background: ps, logs, kill, rm', async (t) => {
    const name = unique()
    const started = await host.coracle([
      ...['run', '-d', '--name', name, ...flags, 'busybox'],
      ...['sh', '-c', 'echo one; echo two >&2; exec sleep 1000'],
    ])
    t.equal(started.status, 0, started.stderr)
    const id = started.stdout.toString().trim()
    t.match(id, /^[0-9a-f]{64}$/)
    ids.push(id)
    t.match((await host.coracle(['ps'])).stdout.toString(), new RegExp(`${id.slice(0, 12)}.* Up .*${name}`))
    const follow = host.spawn('logs', '-f', name)
    const followed = collect(follow)
    await Promise.all([seen(follow.stdout!, 'one\n'), seen(follow.stderr!, 'two\n')])
    t.equal((await host.coracle(['diff', name])).stdout.toString(), '', 'it changed nothing')
    t.equal(
      (await host.coracle(['run', '--name', name, ...flags, 'busybox', 'true'])).status,
      125,
      'the name is taken',
    )
    t.equal((await host.coracle(['rm', name])).status, 1, 'a running container is not removed')
    const killed = await host.coracle(['kill', name])
    t.equal(killed.status, 0, killed.stderr)
    t.equal((await followed).stdout.toString(), 'one\n', 'following ends with the container')
    t.match((await host.coracle(['ps', '-a'])).stdout.toString(), /Exited \(137\)/)
    const logs = await host.coracle(['logs', name])
    t.equal(logs.stdout.toString(), 'one\n')
    t.equal(logs.stderr, 'two\n')
    t.equal((await host.coracle(['rm', name])).status, 0)
  })

  await t.test('exec: streams, settings, terminal, exit codes', async (t) => {
    const name = unique()
    const main = host.spawn(
      'run',
      '--name',
      name,
      '-e',
      'B=own',
      ...flags,
      'busybox',
      'sh',
      '-c',
      'echo ready; exec sleep 1000',
    )
    const ended = collect(main)
    await seen(main.stdout!, 'ready')
    const exec = (words: string[], stdin?: Buffer): ReturnType<Host['coracle']> =>
      host.coracle(['exec', ...words], stdin)
    const settings = ['-e', 'A=a b', '-w', '/tmp', '-u', '1000:1001']
    const script = 'echo $A; echo $B; pwd; id -u; id -g; echo err >&2; exit 7'
    const plain = await exec([...settings, name, 'sh', '-c', script])
    t.equal(plain.status, 7, plain.stderr)
    t.same(plain.stdout.toString().split('\n'), ['a b', 'own', '/tmp', '1000', '1001', ''])
    t.equal(plain.stderr, 'err\n')
    const data = randomBytes(1_000_003)
    const piped = await exec(['-i', name, 'sha256sum'], data)
    t.equal(piped.stdout.toString().split(' ')[0], createHash('sha256').update(data).digest('hex'))
    const tty = await exec(['-t', name, 'sh', '-c', 'tty; kill -9 $$'])
    t.match(tty.stdout.toString(), /^\/dev\/(pts\/\d+|console)\r\n$/)
    t.equal(tty.status, 137, 'ended by a signal')
    const absent = await exec([name, 'no-such-command'])
    t.equal(absent.status, 127, absent.stderr)
    t.match(absent.stderr, /no-such-command/)
    t.equal((await exec([name, '/etc/passwd'])).status, 126)
    t.equal((await exec(['-d', name, 'sh', '-c', 'echo done > /tmp/made; exec sleep 1000'])).status, 0)
    const made = await exec([name, 'sh', '-c', 'until grep -q done /tmp/made; do sleep 0.1; done; ps'])
    t.match(made.stdout.toString(), /sleep 1000[^]*sleep 1000/, 'both are there')
    const top = (await host.coracle(['top', name, '-eo', 'pid,user,args'])).stdout.toString()
    t.match(top, /^PID +USER +COMMAND\n[^]*root +sleep 1000\n/)
    t.equal((await exec(['no-such-container', 'true'])).status, 1)
    const both = host.spawn('exec', name, 'sh', '-c', 'echo in; exec sleep 1000')
    const last = collect(both)
    await seen(both.stdout!, 'in')
    t.equal((await host.coracle(['kill', name])).status, 0)
    t.equal((await last).status, 137, 'it ends with the container')
    t.equal((await ended).status, 137)
    t.notMatch((await host.coracle(['logs', name])).stdout.toString(), /in\n/, 'it has no log')
    t.equal((await exec([name, 'true'])).status, 1, 'a container that does not run')
    t.equal((await host.coracle(['rm', name])).status, 0)
  })

  await t.test('pause, and stop asks first', async (t) => {
    const name = unique()
    const script = 'trap "echo bye; exit 3" TERM; echo ready; while :; do sleep 1; done'
    const child = host.spawn('run', '--name', name, ...flags, 'busybox', 'sh', '-c', script)
    const result = collect(child)
    await seen(child.stdout!, 'ready')
    t.match(await host.coracle(['pause', name]), { status: 0, stdout: Buffer.from(`${name}\n`) })
    t.match(await host.coracle(['exec', name, 'true']), { stderr: /is paused, unpause the container before/ })
    t.match((await host.coracle(['ps'])).stdout.toString(), new RegExp(`Up .*\\(Paused\\).*${name}`))
    t.equal((await host.coracle(['unpause', name])).status, 0)
    t.equal((await host.coracle(['exec', name, 'true'])).status, 0)
    t.equal((await host.coracle(['pause', name])).status, 0)
    t.equal((await host.coracle(['stop', name])).status, 0, 'it hears the signal and goes on')
    const { status, stdout } = await result
    t.equal(status, 3)
    t.match(stdout.toString(), /bye/)
    await host.coracle(['rm', '-f', name])
  })

  /** Runs commands that are to succeed, for what they say. */
  const texts =
    (t: Test) =>
    async (...words: string[]): Promise<string> => {
      const { status, stdout, stderr } = await host.coracle(words)
      t.equal(status, 0, stderr)
      return stdout.toString()
    }

  // In the lab the tests of a guest have it, with no command line for each step.
  if (!shorter)
    await t.test('paused: its files are read and written, and it stands still all the while', async (t) => {
      const name = unique()
      const image = unique()
      const script = 'i=0; echo ready; while :; do i=$((i+1)); echo $i > /c; mv /c /count; sleep 0.05; done'
      const child = host.spawn('run', '--name', name, ...flags, 'busybox', 'sh', '-c', script)
      const result = collect(child)
      await seen(child.stdout!, 'ready')
      const text = texts(t)
      const folder = t.testdir({ given: 'while it stood' })
      const count = async (): Promise<string> => {
        await text('cp', `${name}:/count`, `${folder}/count`)
        return readFileSync(`${folder}/count`, 'utf8')
      }
      await text('exec', name, 'sh', '-c', 'until [ -f /count ]; do sleep 0.1; done')
      await text('pause', name)
      const before = await count()
      await text('cp', `${folder}/given`, `${name}:/given`)
      t.match(await text('diff', name), /^A \/given$/m)
      await text('commit', '-c', 'CMD ["cat","/count","/given"]', name, image)
      t.match(await text('ps'), new RegExp(`Up .*\\(Paused\\).*${name}`), 'a commit does not let it go on')
      await text('export', '-o', `${folder}/all.tar`, name)
      t.equal(await count(), before)
      await text('unpause', name)
      t.equal(await text('exec', name, 'cat', '/given'), 'while it stood')
      await text(
        'exec',
        name,
        'sh',
        '-c',
        `until [ "$(cat /count)" -gt ${Number(before)} ]; do sleep 0.1; done`,
      )
      await text('rm', '-f', name)
      await result
      t.equal((await run(image)).stdout.toString(), `${before}while it stood`)
      await text('rmi', image)
    })

  await t.test('files in and out, what changed, and an image of it', async (t) => {
    const name = unique()
    const script =
      'echo new > /etc/new; rm /bin/vi; echo more >> /etc/passwd; ln -s /etc/new /link; echo ready; exec sleep 1000'
    const child = host.spawn('run', '--name', name, ...flags, 'busybox', 'sh', '-c', script)
    const result = collect(child)
    await seen(child.stdout!, 'ready')
    const text = texts(t)
    const changes = (await text('diff', name)).split('\n')
    for (const line of ['A /etc/new', 'D /bin/vi', 'C /etc/passwd', 'A /link', 'C /bin'])
      t.ok(changes.includes(line), line)
    const folder = t.testdir({ in: { a: 'one', sub: { b: 'two' } } })
    await text('cp', `${folder}/in`, `${name}:/copied`)
    writeFileSync(`${folder}/over`, 'through the link')
    await text('cp', `${folder}/over`, `${name}:/link`)
    t.equal(
      await text('exec', name, 'cat', '/copied/a', '/copied/sub/b', '/etc/new'),
      'onetwothrough the link',
    )
    await text('cp', `${name}:/copied`, `${folder}/out`)
    t.equal(readFileSync(`${folder}/out/sub/b`, 'utf8'), 'two')
    t.match(await host.coracle(['cp', `${name}:/nosuch`, folder]), { status: 1, stderr: /No such file/ })
    const image = unique()
    await text('commit', '-c', 'CMD ["cat","/copied/a"]', '-c', 'LABEL of=e2e', name, image)
    t.equal(await text('inspect', '-f', '{{.Config.Labels.of}}', image), 'e2e\n')
    t.equal(await text('exec', name, 'echo', 'on'), 'on\n', 'it goes on')
    if (!shorter) {
      const [all, flat] = [`${folder}/all.tar`, unique()]
      await text('export', '-o', all, name)
      await text('import', '-c', 'CMD cat /etc/new', all, flat)
      t.equal((await run(flat)).stdout.toString(), 'through the link')
      await text('rmi', flat)
    }
    await text('rm', '-f', name)
    await result
    t.equal((await run(image)).stdout.toString(), 'one')
    await text('rmi', image)
  })

  if (!shorter)
    await t.test('volumes and folders of the host', async (t) => {
      const name = unique()
      const volume = unique()
      const folder = t.testdir({ in: { file: 'of the host', sibling: 'unseen' }, out: {} })
      const text = async (...words: string[]): Promise<string> => {
        const { status, stdout, stderr } = await host.coracle(words)
        t.equal(status, 0, `${words.join(' ')}: ${stderr}`)
        return stdout.toString()
      }
      const script = [
        'cat /etc/file; ls /etc/sibling 2>&1',
        'echo changed > /etc/file; (echo a > /ro/b) 2>&1',
        'echo kept >> /data/kept; chown 7:8 /data/kept; chmod 640 /data/kept; cat /data/kept',
        'ls /data/passwd 2>&1; stat -c %a /data; mv /data/kept /data/moved; mv /data/moved /data/kept',
        'dd if=/dev/zero of=/out/big bs=64k count=100 2>/dev/null; ln -s /proc/1/root/etc /out/link; echo end',
      ].join('; ')
      const mounts = [
        ...[
          '-v',
          `${volume}:/data/:nocopy`,
          '-v',
          `${folder}/in/file:/etc/file`,
          '-v',
          `${folder}/in:/ro:ro`,
        ],
        ...[
          '--mount',
          `type=bind,src=${folder}/out,dst=/out`,
          '-v',
          '/anonymous',
          '-v',
          `${volume}-etc:/data/etc`,
        ],
        ...['--tmpfs', '/scratch:size=1m'],
      ]
      const words = ['--name', name, ...mounts, ...flags, 'busybox', 'sh', '-c', script]
      const first = await host.coracle(['run', ...words])
      const lines = first.stdout.toString().split('\n')
      t.equal(lines[0], 'of the hostls: /etc/sibling: No such file or directory', first.stderr)
      t.match(lines[1], /Read-only file system/)
      t.equal(lines[2], 'kept')
      t.match(lines[3], /No such file/, 'nocopy')
      t.same(lines.slice(4), ['755', 'end', ''])
      t.equal(readFileSync(`${folder}/in/file`, 'utf8'), 'changed\n', 'written through to the host')
      t.equal(statSync(`${folder}/out/big`).size, 100 * 65_536)
      t.equal(readlinkSync(`${folder}/out/link`), '/proc/1/root/etc')
      const { Mountpoint } = JSON.parse(await text('volume', 'inspect', volume))[0] as { Mountpoint: string }
      const { uid, gid, mode } = statSync(`${Mountpoint}/kept`)
      t.same([uid, gid, mode & 0o7777], [7, 8, 0o640], 'owner and mode are as inside')
      await text('start', name)
      t.match(
        await text('logs', '-f', name),
        /^of the host[^]*\nchanged\n[^]*kept\nkept\n/,
        'a second start has them',
      )
      const reader = await run(
        '--volumes-from',
        `${name}:ro`,
        '-v',
        `${volume}-bin:/bin`,
        'busybox',
        'sh',
        '-c',
        'cat /data/kept; ls -l /bin/busybox; echo x > /data/x',
      )
      t.match(reader.stdout.toString(), /^kept\nkept\n-rwxr-xr-x .* root .*busybox\n/, reader.stderr)
      t.equal(reader.status, 1, 'read-only by --volumes-from')
      t.match(await host.coracle(['volume', 'rm', volume]), { status: 1, stderr: /in use/ })
      await text('rm', '-v', name)
      t.same((await text('volume', 'ls', '-q')).trim().split('\n'), [
        volume,
        `${volume}-bin`,
        `${volume}-etc`,
      ])
      // Not in the test's own folder: past 107 bytes the path of a socket is cut in silence.
      const socket = `${host.run}.socket`
      const server = createServer().listen(socket)
      await once(server, 'listening')
      t.ok(statSync(socket).isSocket())
      const bound = await run('-v', `${socket}:/s`, 'busybox', 'test', '-S', '/s')
      server.close()
      if (guestKernel) t.match(bound, { status: 125, stderr: /run\.socket is a Unix socket/ })
      else t.equal(bound.status, 0, bound.stderr)
      await text('volume', 'prune', '-af')
      t.equal(await text('volume', 'ls', '-q'), '')
      t.same(leftovers(host.run), [])
    })

  if (shorter)
    await t.test('a volume, a file and a folder of the host', async (t) => {
      const volume = unique()
      const folder = t.testdir({ file: 'one', sibling: '' })
      const script =
        'echo hi >> /d/x; cat /d/x /etc/f; ls /etc/sibling; echo a > /ro/b; echo two > /etc/f; echo done'
      const binds = ['-v', `${volume}:/d`, '-v', `${folder}/file:/etc/f`, '-v', `${folder}:/ro:ro`]
      const { stdout, stderr } = await run(...binds, 'busybox', 'sh', '-c', script)
      t.equal(stdout.toString(), 'hi\nonedone\n', stderr)
      t.match(stderr, /sibling: No such file[^]*Read-only file system/)
      t.equal(readFileSync(`${host.state}/volumes/${volume}/_data/x`, 'utf8'), 'hi\n')
      t.equal(readFileSync(`${folder}/file`, 'utf8'), 'two\n')
      t.equal((await host.coracle(['volume', 'rm', volume])).status, 0)
    })

  await t.test('the monitor killed in mid-run', async (t) => {
    const name = unique()
    const child = host.spawn(
      'run',
      '--name',
      name,
      ...volume,
      ...flags,
      'busybox',
      'sh',
      '-c',
      'echo ready; exec sleep 1000',
    )
    const result = collect(child)
    await seen(child.stdout!, 'ready')
    const inspected = JSON.parse((await host.coracle(['inspect', name])).stdout.toString())
    ids.push(inspected[0].Id)
    process.kill(inspected[0].State.Pid, 'SIGKILL')
    const { status, stderr } = await result
    t.equal(status, 137, stderr)
    t.match((await host.coracle(['ps', '-a'])).stdout.toString(), new RegExp(`Exited \\(137\\).*${name}`))
    t.same(leftovers(host.run), [], 'nothing of it runs or is mounted')
    t.equal((await host.coracle(['rm', '-v', name])).status, 0)
  })

  await t.test('the command line killed in mid-run, then the monitor', async (t) => {
    const name = unique()
    const script = 'echo ready; exec sleep 1000'
    const child = host.spawn(
      'run',
      '--rm',
      '--name',
      name,
      ...volume,
      ...flags,
      'busybox',
      'sh',
      '-c',
      script,
    )
    const result = collect(child)
    await seen(child.stdout!, 'ready')
    child.kill('SIGKILL')
    await result
    t.match(
      (await host.coracle(['ps'])).stdout.toString(),
      new RegExp(`Up .*${name}`),
      'the container lives on',
    )
    const inspected = JSON.parse((await host.coracle(['inspect', name])).stdout.toString())
    ids.push(inspected[0].Id)
    const servers = shorter ? [] : sharing(inspected[0].Mounts[0].Source)
    t.equal(servers.length > 0, guestKernel && !shorter, 'a microVM has its volumes by virtiofsd')
    for (const pid of servers) killed(pid)
    process.kill(inspected[0].State.Pid, 'SIGKILL')
    t.notMatch((await host.coracle(['ps', '-a'])).stdout.toString(), name, '--rm is kept')
    t.same(leftovers(host.run), [])
    t.equal((await host.coracle(['volume', 'ls', '-q'])).stdout.toString(), '')
  })

  await t.test('nothing is left behind', async (t) => {
    t.same(leftovers(host.run), [])
    t.same(leftovers(host.state), [])
    t.same(cgroups(ids), [])
    t.same(interfaces(host.run), [])
    t.same(records(host), [])
  })
}

/** The processes that serve a folder to a guest. */
function sharing(folder: string): number[] {
  return leftovers(folder)
    .flatMap((line) => /^process (\d+) .*virtiofsd/.exec(line)?.[1] ?? [])
    .map(Number)
}

function killed(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended with the one before.
  }
}

/** The containers that the host's state still knows. */
function records(host: Host): string[] {
  const folder = `${host.state}/containers`
  return existsSync(folder) ? readdirSync(folder).filter((name) => !name.startsWith('.')) : []
}
