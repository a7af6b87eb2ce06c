import { Fd, O_RDWR } from '@coracle/sys'
import { CoracleError } from '../../../errors.js'
import type { DeviceHost, OpenDevice } from '../../device-thread/open-device.js'
import { openBackend } from '../vhost-user/open.js'

const VIRTIO_ID_FS = 26
/** struct virtio_fs_config (linux/virtio_fs.h): tag, num_request_queues. */
const TAG_SIZE = 36
const REQUEST_QUEUES = 1
const CONNECTION = /^\/proc\/self\/fd\/\d+$/
/** virtiofsd may still be on its way into its sandbox, and the host busy; ms. */
const TIMEOUT = 60_000

/** A folder of the host's, shared by virtiofsd (virtio 1.2 §5.11). */
export interface FsSpec {
  readonly kind: 'fs'
  /** What the guest mounts, as in `mount -t virtiofs TAG /mnt`: at most 36 bytes. */
  readonly tag: string
  /** Where virtiofsd listens: a Unix socket, or the path of a connection to it (`/proc/self/fd/N`). @see Virtiofsd */
  readonly socket: string
}

/** @throws CoracleError INVALID_ARGUMENT for a tag or a socket that cannot be used, CONFLICT for private memory */
export function openFs({ tag, socket }: FsSpec, host: DeviceHost): OpenDevice {
  const bytes = Buffer.from(tag)
  if (bytes.length === 0 || bytes.length > TAG_SIZE || bytes.includes(0))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `a shared folder's tag has 1 to ${TAG_SIZE} bytes: '${tag}' has not`,
    )
  const config = new Uint8Array(TAG_SIZE + 4)
  config.set(bytes)
  new DataView(config.buffer).setUint32(TAG_SIZE, REQUEST_QUEUES, true)
  // The first queue is for requests of high priority: what the guest forgets, and interrupts.
  const queues = 1 + REQUEST_QUEUES
  const connection = CONNECTION.test(socket) ? Fd.openOrDuplicate(socket, O_RDWR) : undefined
  const init = { name: `fs ${tag}`, type: VIRTIO_ID_FS, path: socket, queues, config, timeout: TIMEOUT }
  return openBackend({ ...init, ...(connection && { connection }) }, host)
}
