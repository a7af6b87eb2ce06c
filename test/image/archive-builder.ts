import { gzipSync } from 'node:zlib'
import { sha256, tar, type Raw } from './tar-builder.js'

/** Image archives with every part open to be spoilt. */
export interface ArchiveParts {
  layers: Buffer[]
  config?: Record<string, unknown>
  /** What the config says of the layers. @default the truth */
  diffIds?: string[]
  names?: string[]
  platform?: { os: string; architecture: string }
}

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))

export function configOf(parts: ArchiveParts): Buffer {
  return json({
    created: '2026-01-02T03:04:05Z',
    ...(parts.platform ?? { os: 'linux', architecture: 'amd64' }),
    config: { Cmd: ['sh'], ...parts.config },
    rootfs: { type: 'layers', diff_ids: parts.diffIds ?? parts.layers.map(sha256) },
  })
}

/** As `docker save` writes it. */
export function dockerArchive(...images: ArchiveParts[]): Buffer {
  const entries: Raw[] = []
  const manifest = images.map((parts, image) => {
    const config = configOf(parts)
    const Config = `${sha256(config).slice(7)}.json`
    const Layers = parts.layers.map((content, layer) => {
      const name = `${image}-${layer}/layer.tar`
      entries.push({ name, content })
      return name
    })
    entries.push({ name: Config, content: config })
    return { Config, RepoTags: parts.names ?? [], Layers }
  })
  return tar(...entries, { name: 'manifest.json', content: json(manifest) })
}

export const blobEntry = (content: Buffer): Raw => ({
  name: `blobs/sha256/${sha256(content).slice(7)}`,
  content,
})

/** The entries of an OCI layout, which tests may change before they make a tar of them. */
export function ociEntries(
  parts: ArchiveParts,
  options: { gzip?: boolean; nested?: boolean; name?: string } = {},
): Raw[] {
  const blobs: Buffer[] = []
  const put = (mediaType: string, content: Buffer): object => {
    blobs.push(content)
    return {
      mediaType: `application/vnd.oci.image.${mediaType}`,
      digest: sha256(content),
      size: content.length,
    }
  }
  const image = (of: ArchiveParts): object => ({
    ...put(
      'manifest.v1+json',
      json({
        schemaVersion: 2,
        config: put('config.v1+json', configOf(of)),
        layers: of.layers.map((layer) => put('layer.v1.tar', options.gzip ? gzipSync(layer) : layer)),
      }),
    ),
  })
  let descriptor: object = image(parts)
  if (options.nested) {
    const arm: ArchiveParts = {
      layers: [tar({ name: 'arm' })],
      platform: { os: 'linux', architecture: 'arm64' },
    }
    const manifests = [
      { ...image(arm), platform: arm.platform },
      { ...descriptor, platform: { os: 'linux', architecture: 'amd64' } },
    ]
    descriptor = put('index.v1+json', json({ schemaVersion: 2, manifests }))
  }
  const annotations = { 'org.opencontainers.image.ref.name': options.name ?? 'test:1' }
  return [
    { name: 'oci-layout', content: json({ imageLayoutVersion: '1.0.0' }) },
    { name: 'index.json', content: json({ schemaVersion: 2, manifests: [{ ...descriptor, annotations }] }) },
    ...blobs.map(blobEntry),
  ]
}
