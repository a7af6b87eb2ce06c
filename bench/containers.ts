import { busyboxImage } from '../src/image/busybox.js'
import { saveImages } from '../src/image/save.js'
import { ImageStore } from '../src/image/store.js'
import { type Bench, type BenchResult, median } from './bench.js'
import { Daemon } from './daemons.js'
import { buffer } from 'node:stream/consumers'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** The busybox image as `docker save` writes it. */
async function busyboxArchive(): Promise<Buffer> {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
  try {
    const store = await ImageStore.open(folder)
    await busyboxImage(store)
    const names = ['docker.io/library/busybox:latest']
    using loan = store.lend(names[0]!)
    return await buffer(saveImages([{ loan, names }]))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** One container after another, from its creation to its removal. @returns ns */
async function lives(daemon: Daemon, count: number, host: object): Promise<number> {
  const from = process.hrtime.bigint()
  for (let i = 0; i < count; i++) {
    const body = { Image: 'docker.io/library/busybox:latest', Cmd: ['true'], HostConfig: host }
    const { Id } = JSON.parse(await daemon.call('POST', '/containers/create', body)) as { Id: string }
    await daemon.call('POST', `/containers/${Id}/start`)
    const { StatusCode } = JSON.parse(await daemon.call('POST', `/containers/${Id}/wait`)) as {
      StatusCode: number
    }
    if (StatusCode !== 0) throw new Error(`a container ended with ${StatusCode}`)
    await daemon.call('DELETE', `/containers/${Id}`)
  }
  return Number(process.hrtime.bigint() - from)
}

async function measure(rounds: number, count: number, host: object): Promise<BenchResult> {
  const archive = await busyboxArchive()
  await using ours = await Daemon.ours()
  await using peer = await Daemon.podman()
  for (const daemon of [ours, peer]) await daemon.call('POST', '/images/load', archive)
  await lives(ours, 1, host)
  await lives(peer, 1, {})
  const ratios: number[] = []
  for (let round = 0; round < rounds; round++)
    ratios.push((await lives(ours, count, host)) / (await lives(peer, count, {})))
  return { ratio: median(ratios), note: `median of ${rounds} rounds of ${count} containers` }
}

export const containersProcess: Bench = {
  name: 'containers-process',
  what: "create, start, wait and rm through the API, process isolation / podman's with crun",
  aim: { atMost: 1 },
  run: () => measure(5, 10, { Isolation: 'process' }),
}

export const containersMicrovm: Bench = {
  name: 'containers-microvm',
  what: "create, start, wait and rm through the API, microVMs / podman's with crun",
  aim: 'none',
  run: () => measure(3, 2, { Isolation: 'microvm' }),
}
