import { mkdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import {
  Fd,
  MNT_DETACH,
  MS_NODEV,
  MS_RDONLY,
  O_RDONLY,
  O_RDWR,
  SysError,
  mount,
  mountFrom,
  unmount,
} from '@coracle/sys'
import type { RootLayer } from '../sandbox.js'

/* linux/loop.h */
const LOOP_CONFIGURE = 0x4c0a
const LOOP_CTL_GET_FREE = 0x4c82
const LO_FLAGS_READ_ONLY = 1
const LO_FLAGS_AUTOCLEAR = 4
/** sizeof(struct loop_config), and where its info.lo_flags is. */
const LOOP_CONFIG_SIZE = 304
const LOOP_CONFIG_FLAGS = 60

/**
 * A container's root file system on the host: each layer's EROFS image mounted, and an overlay over them whose
 * upper directory is in the state folder. Meant for a mount namespace of its own, which takes the mounts with it.
 */
export class RootMount {
  readonly #folder: string
  readonly #mounted: string[] = []

  /** @param folder where the mount points are made */
  constructor(folder: string) {
    this.#folder = folder
  }

  /** Where the root is. */
  get path(): string {
    return join(this.#folder, 'root')
  }

  /**
   * @param layers lowest first
   * @param writable folder of the upper and the work directory; kept from run to run
   * @throws SysError
   */
  mount(layers: readonly RootLayer[], writable: string): void {
    const upper = join(writable, 'upper')
    const work = join(writable, 'work')
    for (const folder of [this.path, upper, work]) mkdirSync(folder, { recursive: true, mode: 0o755 })
    const targets = layers.map((layer, i) => {
      const target = join(this.#folder, String(i))
      mkdirSync(target, { recursive: true })
      mountImage(layer.path, target)
      this.#mounted.push(target)
      return target
    })
    // The options of mount(2) have one page: relative paths keep room for over a thousand layers.
    process.chdir(this.#folder)
    const lower = targets.map((target) => basename(target)).reverse()
    const options = `lowerdir=${lower.join(':')},upperdir=${escape(upper)},workdir=${escape(work)}`
    mount('overlay', this.path, 'overlay', 0, options)
    this.#mounted.push(this.path)
  }

  /** Has what is at `path` of another mount namespace beside the root. @returns where @throws SysError */
  share(namespace: string, path: string): string {
    const target = join(this.#folder, `shared-${this.#mounted.length}`)
    mkdirSync(target, { recursive: true })
    mountFrom(namespace, path, target)
    this.#mounted.push(target)
    return target
  }

  /** Unmounts all of it, also where processes still use it. @throws SysError */
  release(): void {
    process.chdir('/')
    for (let target; (target = this.#mounted.at(-1)) !== undefined; this.#mounted.pop())
      unmount(target, MNT_DETACH)
  }
}

/** Mounts an EROFS image from its file; through a loop device where the kernel cannot (before Linux 6.12). */
function mountImage(path: string, target: string): void {
  try {
    mount(path, target, 'erofs', MS_RDONLY | MS_NODEV)
  } catch (error) {
    if (!(error instanceof SysError && error.code === 'ENOTBLK')) throw error
    using loop = attachLoop(path)
    mount(loop.path, target, 'erofs', MS_RDONLY | MS_NODEV)
  }
}

/** A loop device over a file, read-only, which goes with its last user. Another may win the free one: again then. */
function attachLoop(path: string): { path: string } & Disposable {
  using control = Fd.open('/dev/loop-control', O_RDWR)
  using file = Fd.open(path, O_RDONLY)
  for (let attempt = 0; ; attempt++) {
    const device = `/dev/loop${control.ioctl(LOOP_CTL_GET_FREE, 0, 'LOOP_CTL_GET_FREE')}`
    const loop = Fd.open(device, O_RDONLY)
    const config = new DataView(new ArrayBuffer(LOOP_CONFIG_SIZE))
    config.setUint32(0, file.number, true)
    config.setUint32(LOOP_CONFIG_FLAGS, LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR, true)
    try {
      loop.ioctl(LOOP_CONFIGURE, config, 'LOOP_CONFIGURE')
      return { path: device, [Symbol.dispose]: () => loop.close() }
    } catch (error) {
      loop.close()
      if (!(error instanceof SysError && error.code === 'EBUSY') || attempt === 100) throw error
    }
  }
}

/** Overlayfs splits its options at commas and its lists at colons, unless a backslash is before them. */
const escape = (path: string): string => path.replace(/[\\,:]/g, '\\$&')
