import { randomBytes } from 'node:crypto'
import { closeSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import Docker from 'dockerode'
import t from 'tap'
import { dockerArchive } from '../image/archive-builder.js'
import { cannotMount } from '../image/mounts.js'
import { tar } from '../image/tar-builder.js'
import { Daemon } from './daemon.js'
import { Host, leftovers } from './host.js'

/* A disk that fills, in each phase that writes: what cannot be done says so, and what was there stays. */

const MIB = 1024 ** 2
/** What is left free, in bytes: each phase fails somewhere else. */
const LEFT = [0, 4096, 16_384, 65_536, 262_144, MIB]

/** Takes all of a file system but some of it. */
class Ballast {
  readonly #path: string
  constructor(private readonly folder: string) {
    this.#path = join(folder, 'ballast')
  }
  leave(bytes: number): void {
    this.release()
    const { bavail, bsize } = statfsSync(this.folder)
    const block = Buffer.alloc(bsize)
    const file = openSync(this.#path, 'w')
    for (let left = bavail * bsize - bytes; left > 0; left -= bsize) writeSync(file, block)
    closeSync(file)
  }
  release(): void {
    rmSync(this.#path, { force: true })
  }
}

t.test('the disk is full', { skip: await cannotMount(), timeout: 600_000 }, async (t) => {
  const host = await Host.create('24m')
  t.teardown(() => host.remove())
  let daemon = await Daemon.start(host)
  t.teardown(() => daemon.stop())
  const docker = new Docker({ socketPath: daemon.socket })
  const ballast = new Ballast(host.state)

  const settings = { Image: 'busybox', HostConfig: { Runtime: 'process', Binds: ['kept:/kept'] } }
  const create = (name: string, ...Cmd: string[]): Promise<Docker.Container> =>
    docker.createContainer({ ...settings, name, Cmd })
  const said = async (stream: NodeJS.ReadableStream): Promise<void> => {
    const text = (await buffer(stream)).toString()
    if (/"errorDetail"/.test(text)) throw new Error(text)
  }
  const image = (name: string): Buffer =>
    dockerArchive({ layers: [tar({ name: 'x', content: randomBytes(2 * MIB) })], names: [name] })
  const context = tar(
    { name: 'Dockerfile', content: Buffer.from('FROM busybox\nCOPY big /\nRUN cat /big /big > /bigger\n') },
    { name: 'big', content: randomBytes(MIB) },
  )

  const old = await create('old', 'sleep', '1000')
  await old.start()
  const stopped = await create('stopped', 'true')
  await stopped.start()
  await stopped.wait()
  const big = await create('big', 'sh', '-c', `head -c ${2 * MIB} /dev/urandom > /big`)
  await big.start()
  await big.wait()

  /** What there is, in the words of the API. */
  const present = async (): Promise<unknown> => {
    const containers = await docker.listContainers({ all: true })
    return {
      containers: containers.map(({ Id, Names, State }) => [Id, Names, State]).sort(),
      images: (await docker.listImages()).flatMap(({ RepoTags }) => RepoTags ?? []).sort(),
      volumes: (await docker.listVolumes()).Volumes.map(({ Name }) => Name).sort(),
      networks: (await docker.listNetworks()).map(({ Name }) => Name).sort(),
      shares: (await old.inspect()).HostConfig.CpuShares,
    }
  }

  /** What writes, and what takes it back. */
  const phases: Record<string, [() => Promise<unknown>, () => Promise<unknown>]> = {
    load: [
      async () => said(await docker.loadImage(Readable.from([image('loaded')]))),
      () => docker.getImage('loaded').remove(),
    ],
    tag: [
      () => docker.getImage('busybox').tag({ repo: 'another' }),
      () => docker.getImage('another').remove(),
    ],
    create: [() => create('new', 'true'), () => docker.getContainer('new').remove()],
    start: [() => stopped.start(), () => stopped.wait()],
    rename: [() => stopped.rename({ name: 'renamed' }), () => stopped.rename({ name: 'stopped' })],
    update: [() => old.update({ CpuShares: 200 }), () => old.update({ CpuShares: 100 })],
    commit: [() => big.commit({ repo: 'committed' }), () => docker.getImage('committed').remove()],
    volume: [() => docker.createVolume({ Name: 'more' }), () => docker.getVolume('more').remove()],
    network: [() => docker.createNetwork({ Name: 'more' }), () => docker.getNetwork('more').remove()],
    build: [
      async () =>
        said(
          await docker.buildImage(Readable.from([context]), {
            t: 'built',
            isolation: 'process',
            networkmode: 'none',
          } as object),
        ),
      () => docker.getImage('built').remove(),
    ],
  }
  await old.update({ CpuShares: 100 })

  for (const [phase, [work, undo]] of Object.entries(phases))
    await t.test(phase, async (t) => {
      const before = await present()
      for (const left of [...LEFT, undefined]) {
        if (left === undefined) ballast.release()
        else ballast.leave(left)
        try {
          await work()
        } catch (error) {
          t.match((error as Error).message, /no space/i, `${left} bytes left`)
          t.same(await present(), before)
          if (left === undefined) return
          continue
        }
        t.comment(`done with ${left} bytes left`)
        ballast.release()
        await undo()
        t.same(await present(), before, 'as it was')
        return
      }
    })

  await t.test('what ends meanwhile has its exit status, also for the next daemon', async (t) => {
    const trapped = await create('trapped', 'sh', '-c', 'trap "exit 7" TERM; while :; do sleep 0.1; done')
    await trapped.start()
    ballast.leave(0)
    await trapped.stop()
    t.match((await trapped.inspect()).State, { Status: 'exited', ExitCode: 7 })
    await old.kill({ signal: 'KILL' })
    await daemon.kill()
    daemon = await Daemon.start(host)
    t.match((await trapped.inspect()).State, { Status: 'exited', ExitCode: 7 })
    t.match((await old.inspect()).State, { Status: 'exited', ExitCode: 137 })
    ballast.release()
  })
  for (const { Id } of await docker.listContainers({ all: true }))
    await docker.getContainer(Id).remove({ force: true })
  await daemon.stop()
  t.same(leftovers(host.run), [])
})
