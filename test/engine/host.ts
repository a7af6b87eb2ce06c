import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CoracleError } from '../../src/errors.js'
import { Engine, type EngineInit } from '../../src/engine/engine.js'
import type { Host } from '../../src/engine/host.js'
import type { Image } from '../../src/image/image.js'
import { FakeNetworks } from './fake-networks.js'
import { FakeDriver } from './fake-sandbox.js'

export const PLAIN_HOST: Host = {
  memory: 8 * 1024 ** 3,
  cpus: 4,
  virtualization: undefined,
  kvmError: undefined,
}

export const BUSYBOX: Image = {
  id: `sha256:${'b'.repeat(64)}`,
  tags: ['busybox:latest'],
  digests: [],
  architecture: 'amd64',
  os: 'linux',
  created: '2026-01-02T03:04:05Z',
  size: 1_000_000,
  config: { Cmd: ['sh'], Env: ['PATH=/usr/local/bin:/usr/bin:/bin'] },
  layers: [{ diffId: `sha256:${'a'.repeat(64)}`, path: '/nowhere', size: 2 * 1024 * 1024, used: 1_000_000 }],
}

/** Images in memory; a load of any bytes yields a second name. */
export class FakeImages {
  images: Image[] = [BUSYBOX]
  loaded = 0

  async load(source: AsyncIterable<Uint8Array>): Promise<Image[]> {
    for await (const chunk of source) this.loaded += chunk.length
    if (this.loaded === 0) throw new CoracleError('IMAGE_ARCHIVE', 'the archive is empty')
    return [BUSYBOX]
  }
  get(reference: string): Image {
    const image = this.images.find(
      ({ id, tags }) =>
        id === reference || tags.some((tag) => [reference, `${reference}:latest`].includes(tag)),
    )
    if (!image) throw new CoracleError('NO_SUCH_IMAGE', `No such image: ${reference}`)
    return image
  }
  list(): Image[] {
    return this.images
  }
  tag(): void {}
  config(): Record<string, unknown> {
    return { config: BUSYBOX.config }
  }
  lend(): never {
    throw new CoracleError('NO_SUCH_IMAGE', 'nothing is lent here')
  }
  async compose(): Promise<Image> {
    return BUSYBOX
  }
  remove(
    reference: string,
    options: { inUse?: (image: Image) => string | undefined } = {},
  ): { Untagged: string }[] {
    const image = this.get(reference)
    const user = options.inUse?.(image)
    if (user !== undefined)
      throw new CoracleError('CONFLICT', `conflict: unable to remove ${reference}: ${user}`)
    this.images = this.images.filter((each) => each !== image)
    return image.tags.map((Untagged) => ({ Untagged }))
  }
}

const unreachable = (): Promise<never> =>
  Promise.reject(new CoracleError('REGISTRY_FAILED', 'no registry is reached from here'))

/** A host without a network. */
export const NO_REGISTRY: EngineInit['registry'] = {
  pull: unreachable,
  push: unreachable,
  tags: unreachable,
  login: unreachable,
  describe: unreachable,
  search: unreachable,
}

/** A state folder that goes at the end, and engines over it. */
export class TestBed {
  readonly root = mkdtempSync(join(tmpdir(), 'coracle-test-'))
  readonly driver = new FakeDriver()
  readonly images = new FakeImages()
  host: Host = PLAIN_HOST

  async open(init: Partial<EngineInit> = {}): Promise<Engine> {
    const state = join(this.root, 'state')
    const run = join(this.root, 'run')
    return Engine.open({
      networks: await FakeNetworks.open({ state, run }),
      images: this.images,
      registry: NO_REGISTRY,
      driver: this.driver,
      host: () => this.host,
      state,
      run,
      ...init,
    })
  }

  async close(): Promise<void> {
    await this.driver[Symbol.asyncDispose]()
    rmSync(this.root, { recursive: true, force: true })
  }
}

interface Teardown {
  teardown(work: () => Promise<void>): void
}

const KVM_HOST = { ...PLAIN_HOST, virtualization: 'svm' } as const

/** Two daemons, the first with a microVM, as far as it knows, that runs. */
export async function twoDaemons(
  t: Teardown,
  layer = 'a layer',
): Promise<{ beds: TestBed[]; here: Engine; there: Engine; id: string }> {
  const beds = [new TestBed(), new TestBed()]
  const engines = []
  for (const [i, bed] of beds.entries()) {
    t.teardown(() => bed.close())
    bed.host = KVM_HOST
    const path = join(bed.root, 'layer.erofs')
    writeFileSync(path, i === 0 ? 'a layer' : layer)
    const [image] = bed.images.images
    bed.images.images = [{ ...image!, layers: [{ ...image!.layers[0]!, path }] }]
    engines.push(await bed.open())
  }
  const [here, there] = engines as [Engine, Engine]
  const { id } = await here.create({
    image: 'busybox',
    hypervisor: 'kvm',
    command: ['sleep', '1000'],
    name: 'web',
    labels: { a: 'b' },
    restart: { name: 'always', maximumRetryCount: 0 },
    networkMode: 'none',
  })
  await here.start(id)
  return { beds, here, there, id }
}
