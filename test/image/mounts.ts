import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mount, MNT_DETACH, MS_RDONLY, SysError, unmount } from '@coracle/sys'
import { convertLayer, Budget, type LayerFile } from '../../src/image/layer.js'
import { DEFAULT_LIMITS, type ImageLimits } from '../../src/image/limits.js'
import { sha256, stream, tar } from './tar-builder.js'

/** A temporary folder that goes with all that is mounted in it. */
export class Scratch implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'coracle-image-'))
  #mounted: string[] = []
  #next = 0

  path(): string {
    return join(this.folder, String(this.#next++))
  }

  mount(source: string, type: string, data = ''): string {
    const target = this.path()
    mkdirSync(target)
    mount(source, target, type, type === 'erofs' ? MS_RDONLY : 0, data)
    this.#mounted.push(target)
    return target
  }

  /** The layers, lowest first, one over the other. */
  overlay(images: string[]): string {
    const lower = images.map((image) => this.mount(image, 'erofs')).reverse()
    const empty = this.path()
    mkdirSync(empty)
    return this.mount('overlay', 'overlay', `lowerdir=${[...lower, empty].join(':')}`)
  }

  unmountAll(): void {
    for (const target of this.#mounted.splice(0).reverse()) unmount(target, MNT_DETACH)
  }

  [Symbol.dispose](): void {
    this.unmountAll()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

/** Why EROFS files and overlays of them cannot be mounted here, or false. */
export async function cannotMount(): Promise<string | false> {
  using scratch = new Scratch()
  const path = scratch.path()
  await convert(tar({ name: 'a' }), path)
  try {
    scratch.overlay([path])
    return false
  } catch (error) {
    if (error instanceof SysError) return `EROFS files cannot be mounted here (${error.message})`
    throw error
  }
}

export async function convert(
  layer: Buffer,
  path: string,
  options: { diffId?: string; limits?: Partial<ImageLimits>; piece?: number } = {},
): Promise<LayerFile> {
  const limits = { ...DEFAULT_LIMITS, ...options.limits }
  return convertLayer(stream(layer, options.piece), {
    path,
    diffId: options.diffId ?? sha256(layer),
    limits,
    budget: new Budget(limits.bytes),
  })
}
