import { join } from 'node:path'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import type { Image, LoadOptions, Removal, RemoveOptions } from './image.js'

/** The images of this host: blobs, root layers, records and names, under one folder. Shared between processes. */
export class ImageStore {
  private constructor(readonly root: string) {}

  /** Opens or makes the store, and removes what loads that crashed left behind. @param root `images` in `paths.state` */
  static async open(root = join(paths.state, 'images')): Promise<ImageStore> {
    return new ImageStore(root)
  }

  /**
   * Takes in an archive: docker-archive (`docker save`) or OCI layout, as it is or gzip or zstd compressed.
   * All of it or nothing. @throws CoracleError IMAGE_ARCHIVE, IMAGE_TOO_LARGE
   */
  async load(_source: AsyncIterable<Uint8Array>, _options: LoadOptions = {}): Promise<Image[]> {
    throw new CoracleError('NOT_IMPLEMENTED', 'images cannot be loaded yet')
  }

  /**
   * @param reference a name (`busybox`, `busybox:latest`, `busybox@sha256:…`), an id or the start of one
   * @throws CoracleError NO_SUCH_IMAGE
   */
  get(reference: string): Image {
    throw new CoracleError('NO_SUCH_IMAGE', `no such image: ${reference}`)
  }

  /** All images, the newest first. */
  list(): Image[] {
    return []
  }

  /** Gives an image another name; the name leaves the image that had it. @throws CoracleError NO_SUCH_IMAGE */
  tag(reference: string, _name: string): void {
    this.get(reference)
  }

  /**
   * Docker's removal: a name goes; with the last name the image goes, and each layer no other image has.
   * @throws CoracleError NO_SUCH_IMAGE, CONFLICT
   */
  remove(reference: string, _options: RemoveOptions = {}): Removal[] {
    this.get(reference)
    return []
  }
}
