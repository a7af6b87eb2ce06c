import { randomBytes } from 'node:crypto'
import type { Duplex, Readable } from 'node:stream'
import type { Test } from 'tap'
import { TAR_CHANGES, TAR_CONTENTS } from '../../src/isolation/archive.js'
import {
  launchSandbox,
  type ExecSpec,
  type ExecState,
  type Sandbox,
  type SandboxSpec,
} from '../../src/isolation/index.js'
import type { ProcessInfo } from '../../src/isolation/processes.js'
import { OUTPUT, collect, run, shown, type Output } from './sandbox.js'

const ALL = { ...OUTPUT, stdin: true }

export function execOf(args: string[], more: Partial<ExecSpec> = {}): ExecSpec {
  return { id: randomBytes(32).toString('hex'), args, env: [], tty: false, openStdin: false, ...more }
}

async function start(sandbox: Sandbox, spec: ExecSpec): Promise<Duplex> {
  await sandbox.createExec(spec)
  return sandbox.startExec(spec.id, ALL)
}

export async function exec(
  sandbox: Sandbox,
  spec: ExecSpec,
  input?: Buffer,
): Promise<Output & { state: ExecState }> {
  const stream = await start(sandbox, spec)
  const output = collect(stream)
  stream.end(input)
  return { ...(await output), state: await sandbox.execState(spec.id) }
}

/** What every isolation owes a further process in a container, which runs. */
export async function testExecs(t: Test, sandbox: Sandbox): Promise<void> {
  await t.test('streams, settings and status', async (t) => {
    const script = 'cat; pwd; echo $A$B; echo bad >&2; exit 9'
    const more = { openStdin: true, env: ['A=1', 'B=2', 'A=3'], cwd: '/etc' }
    const result = await exec(sandbox, execOf(['sh', '-c', script], more), Buffer.from('input\n'))
    t.equal(result[1].toString(), 'input\n/etc\n32\n')
    t.equal(result[2].toString(), 'bad\n')
    t.match(result.state, { status: 'ended', exitCode: 9 })
  })

  await t.test('what runs is listed', async (t) => {
    // Until it has become a sleep, the child is one more shell of the same command line.
    const script = 'sleep 55 & until grep -q ^sleep /proc/$!/cmdline; do :; done; echo on; read line'
    const spec = execOf(['sh', '-c', script], { tty: true, openStdin: true })
    const stream = await start(sandbox, spec)
    await shown(stream, 'on')
    const list = await sandbox.processes()
    const of = (command: string): ProcessInfo => {
      const found = list.processes.filter(({ args }) => args.join(' ') === command)
      t.equal(found.length, 1, command)
      return found[0]!
    }
    const [main, shell, child] = [of('sleep 1000'), of(`sh -c ${script}`), of('sleep 55')]
    t.match(main, { uid: 0, parent: 0, name: 'sleep', state: 'S', tty: 0, threads: 1 })
    t.equal(child.parent, shell.pid)
    t.equal(child.session, shell.pid, 'numbers are all of one kind')
    t.ok(shell.tty !== 0 && shell.foreground === shell.group)
    t.ok(Math.abs(Date.now() - child.started) < 60_000, `${Date.now() - child.started} ms ago`)
    t.ok(list.memory > 100 * 2 ** 20 && main.resident > 0 && main.virtual >= main.resident)
    stream.end('x\n')
    await collect(stream)
    t.notMatch(await sandbox.processes(), { processes: [{ pid: shell.pid }] })
  })

  await t.test('what ends at once loses nothing', async (t) => {
    for (let i = 0; i < 3; i++)
      t.equal((await exec(sandbox, execOf(['head', '-c', '300000', '/dev/zero'])))[1].length, 300_000)
  })

  await t.test('users, and their capabilities', async (t) => {
    const args = ['grep', '-E', '^(Uid|Gid|CapEff):', '/proc/self/status']
    const { 1: out } = await exec(sandbox, execOf(args, { user: '1000:50' }))
    t.match(out.toString(), /^Uid:\t1000\t.*\nGid:\t50\t.*\nCapEff:\t0{16}\n$/)
    const named = await exec(sandbox, execOf(['grep', '^Groups:', '/proc/self/status'], { user: 'app' }))
    t.match(named[1].toString(), /77/, "a name is the image's")
    const unknown = execOf(['true'], { user: 'nobody-here' })
    await t.rejects(start(sandbox, unknown), { code: 'INVALID_ARGUMENT' })
  })

  await t.test('commands that cannot run', async (t) => {
    for (const [command, code, exitCode] of [
      ['nope', 'COMMAND_NOT_FOUND', 127],
      ['/etc/plain', 'COMMAND_NOT_EXECUTABLE', 126],
    ] as const) {
      const spec = execOf([command])
      await t.rejects(start(sandbox, spec), { code })
      t.match(await sandbox.execState(spec.id), { status: 'ended', exitCode })
      await t.rejects(sandbox.startExec(spec.id, ALL), { code: 'CONFLICT' })
    }
    await t.rejects(sandbox.startExec(execOf([]).id, ALL), { code: 'NO_SUCH_EXEC' })
  })

  await t.test('a terminal, its size, and signals; two at once', async (t) => {
    const spec = execOf(['sh', '-c', 'read line; stty size; echo "got $line"; sleep 100'], {
      tty: true,
      openStdin: true,
    })
    const stream = await start(sandbox, spec)
    const got = shown(stream, 'got hello')
    await sandbox.resizeExec(spec.id, 101, 37)
    const beside = await exec(sandbox, execOf(['hostname']))
    t.equal(beside[1].toString(), 'box\n')
    stream.write('hello\n')
    t.match(await got, /37 101/)
    await sandbox.killExec(spec.id, 9)
    t.match(await sandbox.waitExec(spec.id), { status: 'ended', exitCode: 137 })
    stream.destroy()
    await t.rejects(sandbox.killExec(spec.id, 9), { code: 'NOT_RUNNING' })
  })

  await t.test('it stands still while its files are read, and goes on when nobody reads', async (t) => {
    // More than what is on its way can hold.
    const spec = execOf(['sh', '-c', 'head -c 6000000 /dev/zero > /big; echo on; while :; do :; done'])
    const stream = await start(sandbox, spec)
    await shown(stream, 'on')
    const used = async (): Promise<number> => (await sandbox.stats()).cpu.total
    const isStill = async (): Promise<boolean> => {
      const before = await used()
      await sandbox.statPath('/big')
      return (await used()) === before
    }
    const tree = (): Promise<Readable> => sandbox.readTree('/', TAR_CHANGES | TAR_CONTENTS, true)
    const [one, other] = [await tree(), await tree()]
    t.ok(await isStill())
    one.destroy()
    t.ok(await isStill(), 'for the other')
    const waiting = exec(sandbox, execOf(['hostname']))
    let size = 0
    for await (const chunk of other) size += (chunk as Buffer).length
    t.ok(size > 6_000_000)
    while (await isStill()) continue
    t.equal((await waiting)[1].toString(), 'box\n', 'what was to run meanwhile runs then')
    const third = await tree()
    third.destroy()
    while (await isStill()) continue
    stream.destroy()
    await sandbox.killExec(spec.id, 9)
    t.match(await sandbox.waitExec(spec.id), { exitCode: 137 })
    await exec(sandbox, execOf(['sh', '-c', ': > /big']))
  })
}

/** A container whose first process is our init: it reaps, passes signals on, and ends as its command does. */
export async function testInit(
  t: Test,
  specOf: (args: string[], more: Partial<SandboxSpec>) => SandboxSpec,
): Promise<void> {
  const script = `(sleep 0 &) ; trap 'echo got; exit 9' TERM; echo $$; echo on; while :; do sleep 0.1; done`
  const sandbox = await launchSandbox(specOf(['sh', '-c', script], { init: true }))
  const output = await sandbox.attach(OUTPUT)
  const seen = shown(output, 'on')
  await sandbox.start()
  t.notMatch(await seen, /^1$/m, 'the command is not the first process')
  const listed = async (): Promise<readonly ProcessInfo[]> => (await sandbox.processes()).processes
  t.match((await listed())[0], { name: 'docker-init', args: ['/sbin/docker-init', '--', 'sh'] })
  while ((await listed()).some(({ state }) => state === 'Z')) continue
  const written = await exec(sandbox, execOf(['sh', '-c', ': > /sbin/docker-init']))
  t.match(written[2].toString(), /Read-only file system/)
  await sandbox.kill(15)
  t.match(await sandbox.wait(), { exitCode: 9 })
  const absent = await run(specOf(['nope'], { init: true }))
  t.equal(absent.exitCode, 127)
  t.match(absent[2].toString(), /init: exec: "nope": No such file/)
}
