import { createHash, randomBytes } from 'node:crypto'
import { request as httpRequest } from 'node:http'
import { gzipSync } from 'node:zlib'
import { TAR_END, tarHeader, tarPadding } from '../src/image/tar-writer.js'
import { DebianRegistry } from '../test/image/registry/debian-registry.js'
import { type Bench, type BenchResult, median } from './bench.js'
import { Daemon } from './daemons.js'

const LAYERS = 12
/** Bytes of all layers of the image, as unpacked. */
const SIZE = 500_000_000
/** A layer's files: some small, some large, as in a distribution. */
const FILES = [4_000, 20_000, 60_000, 250_000, 1_500_000]
const ROUNDS = 3

/** A layer's tar: text that compresses by half, as binaries do. */
function layer(number: number, size: number): Buffer {
  const parts: Buffer[] = []
  for (let have = 0, i = 0; have < size; i++) {
    const length = FILES[i % FILES.length]!
    const text = Buffer.from(randomBytes(length >> 1).toString('hex'))
    parts.push(
      tarHeader(fileEntry(`layer-${number}/d${i % 40}/file-${i}`, text.length)),
      text,
      tarPadding(text.length),
    )
    have += text.length
  }
  return Buffer.concat([...parts, TAR_END])
}

const fileEntry = (name: string, size: number): Parameters<typeof tarHeader>[0] => ({
  ...{ name, type: 'file', mode: 0o644, uid: 0, gid: 0, size, mtime: 1, mtimeNsec: 0 },
  ...{ linkName: '', major: 0, minor: 0, xattrs: undefined },
})

const digestOf = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

interface Blob {
  readonly diffId: string
  readonly bytes: Buffer
}

/** Puts images into a registry by its own protocol. */
class Publisher {
  readonly #host: string

  constructor(host: string) {
    this.#host = host
  }

  async #send(method: string, path: string, type: string, body?: Buffer): Promise<string> {
    const url = path.startsWith('http') ? path : `http://${this.#host}${path}`
    return new Promise((resolve, reject) => {
      const headers = { 'Content-Type': type, 'Content-Length': body?.length ?? 0 }
      const request = httpRequest(url, { method, headers }, (response) => {
        response.resume()
        if (response.statusCode! >= 300) reject(new Error(`${method} ${path}: ${response.statusCode}`))
        else response.on('end', () => resolve(response.headers.location ?? ''))
      })
      request.on('error', reject).end(body)
    })
  }

  async #blob(repository: string, bytes: Buffer): Promise<void> {
    const where = await this.#send('POST', `/v2/${repository}/blobs/uploads/`, 'application/octet-stream')
    const path = `${where}${where.includes('?') ? '&' : '?'}digest=${digestOf(bytes)}`
    await this.#send('PUT', path, 'application/octet-stream', bytes)
  }

  async image(repository: string, layers: readonly Blob[]): Promise<void> {
    const config = Buffer.from(
      JSON.stringify({
        architecture: 'amd64',
        os: 'linux',
        config: { Cmd: ['/none'] },
        rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
        history: layers.map(() => ({ created_by: 'bench' })),
      }),
    )
    for (const { bytes } of layers) await this.#blob(repository, bytes)
    await this.#blob(repository, config)
    const docker = 'application/vnd.docker'
    const manifest = {
      schemaVersion: 2,
      mediaType: `${docker}.distribution.manifest.v2+json`,
      config: {
        mediaType: `${docker}.container.image.v1+json`,
        size: config.length,
        digest: digestOf(config),
      },
      layers: layers.map(({ bytes }) => ({
        mediaType: `${docker}.image.rootfs.diff.tar.gzip`,
        size: bytes.length,
        digest: digestOf(bytes),
      })),
    }
    const text = Buffer.from(JSON.stringify(manifest))
    await this.#send('PUT', `/v2/${repository}/manifests/latest`, manifest.mediaType, text)
  }
}

function blobs(count: number, first = 0): Blob[] {
  return Array.from({ length: count }, (_, i) => {
    const tar = layer(first + i, SIZE / LAYERS)
    return { diffId: digestOf(tar), bytes: gzipSync(tar, { level: 6 }) }
  })
}

/** Pulls an image, and makes a container of it: then it is ready to run. @returns ns */
async function pull(daemon: Daemon, name: string, shared = 0): Promise<number> {
  const from = process.hrtime.bigint()
  const said = await daemon.call('POST', `/images/create?fromImage=${encodeURIComponent(name)}&tag=latest`)
  const { Id } = JSON.parse(
    await daemon.call('POST', '/containers/create', {
      Image: `${name}:latest`,
      HostConfig: { Isolation: daemon.isolation },
    }),
  ) as { Id: string }
  const taken = Number(process.hrtime.bigint() - from)
  const known = said.match(/"Already exists"/g)?.length ?? 0
  if (daemon.isolation !== '' && known !== shared)
    throw new Error(`${known} layers were there already, and ${shared} should have been`)
  await daemon.call('DELETE', `/containers/${Id}`)
  return taken
}

const remove = (daemon: Daemon, name: string): Promise<string> =>
  daemon.call('DELETE', `/images/${name}:latest?force=true`)

async function measure(second: boolean): Promise<BenchResult> {
  await using registry = await DebianRegistry.start({ plain: true })
  const publisher = new Publisher(registry.host)
  const layers = blobs(LAYERS)
  await publisher.image('first', layers)
  if (second) await publisher.image('second', [...layers.slice(0, -1), ...blobs(1, LAYERS)])
  layers.length = 0
  await using ours = await Daemon.ours([registry.host])
  await using peer = await Daemon.podman([registry.host])
  const [one, two] = [`${registry.host}/first`, `${registry.host}/second`]
  const ratios: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const [a, b] = [await pull(ours, one), await pull(peer, one)]
    if (second) ratios.push((await pull(ours, two, LAYERS - 1)) / (await pull(peer, two)))
    else ratios.push(a / b)
    for (const daemon of [ours, peer])
      for (const name of second ? [one, two] : [one]) await remove(daemon, name)
  }
  return { ratio: median(ratios), note: `median of ${ROUNDS} rounds` }
}

export const pullImage: Bench = {
  name: 'pull',
  what: "pull of 500 MB in 12 layers from a local registry, to a container / podman's",
  aim: { atMost: 1 },
  run: () => measure(false),
}

export const pullSecond: Bench = {
  name: 'pull-second',
  what: "pull of an image that shares 11 of 12 layers with one that is here, to a container / podman's",
  aim: { atMost: 1 },
  run: () => measure(true),
}
