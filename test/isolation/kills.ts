import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { CoracleError } from '../../src/errors.js'
import { Snapshots } from '../../src/engine/snapshots.js'
import type { ContainerRecord } from '../../src/engine/record.js'
import { type Sandbox, type SandboxSpec, launchSandbox } from '../../src/isolation/index.js'
import { isAlive, readOwner } from '../../src/isolation/liveness.js'
import { sandboxFiles } from '../../src/isolation/files.js'
import { OUTPUT, runs, shown, specOf, traces } from './sandbox.js'

const MEMORY = 192 * 2 ** 20
const DISK = 64 * 2 ** 20
/** How long one that runs is let run at most, in ms. */
const RUNNING = 1000

/** What is under way when the process of a sandbox is killed. */
export type Moment = 'start' | 'run' | 'save' | 'restore'

const fresh = (more: Partial<SandboxSpec> = {}): SandboxSpec =>
  specOf(['sh', '-c', 'echo up; while read line; do echo $line; done'], {
    memory: MEMORY,
    diskSize: DISK,
    openStdin: true,
    ...more,
  })

/** From the launch to its first output. */
async function start(
  spec: SandboxSpec,
  launched: (sandbox: Sandbox) => void = () => undefined,
): Promise<Sandbox> {
  const sandbox = await launchSandbox(spec)
  launched(sandbox)
  const stream = await sandbox.attach({ ...OUTPUT, stdin: true })
  const said = shown(stream, spec.from === undefined ? 'up' : 'on')
  said.catch(() => undefined)
  await sandbox.start()
  if (spec.from !== undefined) stream.write('on\n')
  await said
  return sandbox
}

/** Kills whoever runs the sandbox, as soon as there is somebody. @returns whether there was before `over` */
async function kill(spec: SandboxSpec, over: () => boolean): Promise<boolean> {
  for (; !over(); await sleep(5)) {
    const owner = readOwner(sandboxFiles(spec).lock)
    // While it is launched that is us.
    if (!owner || owner.pid === process.pid || !isAlive(owner)) continue
    process.kill(owner.pid, 'SIGKILL')
    return true
  }
  return false
}

/** What a step takes, and its end. */
async function timed<T>(step: () => Promise<T>): Promise<{ time: number; value: T }> {
  const from = performance.now()
  const value = await step()
  return { time: performance.now() - from, value }
}

/** Starts one of `spec` and kills it after `delay` ms. */
async function killStarting(t: Test, spec: SandboxSpec, delay: number): Promise<void> {
  let sandbox: Sandbox | undefined
  let over = false
  const starting = start(spec, (launched) => (sandbox = launched)).then(
    () => (over = true),
    (error: unknown) => {
      over = true
      return error
    },
  )
  await sleep(delay)
  const killed = await kill(spec, () => over)
  const error = await starting
  if (!killed || error === true) await sandbox!.destroy()
  else t.ok(error instanceof Error, String(error))
  const exit = await sandbox?.wait()
  if (exit && killed) t.equal(exit.exitCode, 137)
}

/**
 * Tests that a microVM whose process is killed leaves nothing of itself, at whatever moment.
 * @param moments of what, each at a random point of the time that it takes
 */
export function testKills(moments: readonly Moment[]): void {
  t.test('one that is killed leaves nothing, at whatever moment', async (t) => {
    const store = new Snapshots(join(runs, 'snapshots'))
    const left = (): string[] => readdirSync(join(runs, 'snapshots')).filter((name) => name !== '.lock')
    const save = (sandbox: Sandbox, name: string): Promise<unknown> =>
      store.create(name, {} as ContainerRecord, (folder) => sandbox.snapshot(folder))
    const wantsSaved = moments.includes('save') || moments.includes('restore')

    const spec = fresh()
    const { time: starting, value: first } = await timed(() => start(spec))
    let saving = 0
    if (wantsSaved) saving = (await timed(() => save(first, 'whole'))).time
    await first.destroy()
    await first.wait()
    t.strictSame(traces(spec), [])

    for (const moment of moments) {
      const spec = fresh(moment === 'restore' ? { from: store.folder('whole') } : {})
      const length = { save: saving, run: RUNNING }[moment as string] ?? starting
      const delay = Math.round(Math.random() * length)
      const what = `${moment}, after ${delay} of ${Math.round(length)} ms`
      if (moment === 'start' || moment === 'restore') await killStarting(t, spec, delay)
      else {
        const sandbox = await start(spec)
        const saved =
          moment === 'save'
            ? save(sandbox, 'cut').then(
                () => undefined,
                (error: unknown) => error,
              )
            : undefined
        await sleep(delay)
        t.ok(await kill(spec, () => false))
        t.match(await sandbox.wait(), { exitCode: 137 })
        const error = await saved
        if (saved && error === undefined) store.remove('cut')
        else if (saved) t.ok(error instanceof CoracleError, String(error))
      }
      t.strictSame(traces(spec), [], what)
      t.strictSame(left(), wantsSaved ? ['whole'] : [], what)
    }
  })
}
