import { Fd, SOCK_SEQPACKET, VNET_HEADER, memfd, socketPair } from '@coracle/sys'
import type { VirtioDevice } from 'vhost-user-ts'
import { Balloon } from '../../../src/vmm/devices/balloon/balloon.js'
import { Blk } from '../../../src/vmm/devices/blk/blk.js'
import { FileDisk } from '../../../src/vmm/devices/blk/disk.js'
import { Console } from '../../../src/vmm/devices/console/console.js'
import { Net } from '../../../src/vmm/devices/net/net.js'
import { Pmem } from '../../../src/vmm/devices/pmem/pmem.js'
import { Rng } from '../../../src/vmm/devices/rng/rng.js'
import { Vsock } from '../../../src/vmm/devices/vsock/vsock.js'
import type { DriverQueue } from '../../vhost-user-ts/driver.js'

/** A device for hostile drivers, and what a good driver asks of it to see that it works. */
export interface Subject {
  readonly device: VirtioDevice
  /** A queue that the device empties whenever its doorbell rings. */
  readonly queue: number
  /** Asks by queues that are empty and new. @returns whether the answer was right */
  works(queues: readonly DriverQueue[], ring: (queue: number) => void): boolean
  /** The host's side of the device does something too, if it has one. */
  stir?(): void
  close(): void
}

/** Ports on the host that accept. */
export const VSOCK_PORT = 1024

function words(...values: readonly number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer)
}

function rng(): Subject {
  return {
    device: new Rng(),
    queue: 0,
    works([queue], ring) {
      queue!.submit([64])
      ring(0)
      return queue!.results()[0]?.length === 64
    },
    close: () => undefined,
  }
}

function blk(): Subject {
  const disk = new FileDisk(memfd('disk', 64 << 10), false)
  return {
    device: new Blk({ name: 'disk', disk }),
    queue: 0,
    works([queue], ring) {
      queue!.submit([words(0, 0, 1, 0), 512, 1])
      ring(0)
      const bytes = queue!.results()[0]
      return bytes?.length === 513 && bytes[512] === 0
    },
    close: () => disk.close(),
  }
}

function balloon(): Subject {
  const device = new Balloon({ memory: 1 << 30, discard: (_, length) => length })
  return {
    device,
    queue: 1,
    works([inflate], ring) {
      inflate!.submit([words(1, 2, 3)])
      ring(0)
      return inflate!.results()[0]?.length === 0
    },
    stir() {
      device.control({ target: 1 << 20 })
    },
    close: () => undefined,
  }
}

/** What the guest writes is read off, so that none of it is lost. */
function serial(): Subject {
  const [wire, peer] = socketPair()
  const bytes = new Uint8Array(1 << 20)
  const drain = (): number => Math.max(0, peer.read(bytes))
  return {
    device: new Console({ name: 'hvc', wire }),
    queue: 1,
    works([receive, transmit], ring) {
      while (drain() > 0);
      transmit!.submit([words(1, 2)])
      ring(1)
      if (transmit!.results().length !== 1 || drain() !== 8) return false
      receive!.submit([3])
      peer.write(words(7))
      ring(0)
      return receive!.results()[0]?.length === 3
    },
    stir() {
      while (drain() > 0);
      peer.write(words(1, 2, 3))
    },
    close() {
      wire.close()
      peer.close()
    },
  }
}

function pmem(): Subject {
  return {
    device: new Pmem({ name: 'store', guestAddress: 2 ** 33, size: 2 << 20, flush: () => undefined }),
    queue: 0,
    works([queue], ring) {
      queue!.submit([words(0), 4])
      ring(0)
      return queue!.results()[0]?.[0] === 0
    },
    close: () => undefined,
  }
}

/** struct virtio_vsock_hdr of a connection request to {@link VSOCK_PORT}. */
const REQUEST = words(3, 0, 2, 0, 77, VSOCK_PORT, 0, 1 | (1 << 16), 0, 65536, 0)

function vsock(): Subject {
  const device = new Vsock({ cid: 3, maxConnections: 8 })
  const accepted: Fd[] = []
  device.listen(VSOCK_PORT, (fd) => accepted.push(fd))
  const drop = (): void => accepted.splice(0).forEach((fd) => fd.close())
  return {
    device,
    queue: 1,
    works([receive, transmit], ring) {
      receive!.submit([44, 4096])
      ring(0)
      transmit!.submit([REQUEST])
      ring(1)
      // VIRTIO_VSOCK_OP_RESPONSE
      return receive!.results()[0]?.[30] === 2
    },
    stir() {
      for (const fd of accepted.splice(0)) {
        try {
          fd.write(new Uint8Array(3000))
        } catch {
          // The guest's end is closed already.
        }
        fd.close()
      }
      device.connect(80, (fd) => fd?.close())
    },
    close: drop,
  }
}

/** A wire between sockets; what the guest sends is read off, so that it never fills. */
function net(): Subject {
  const [ours, theirs] = socketPair(SOCK_SEQPACKET)
  const wire = { fd: ours, name: 'pair', setOffload: () => undefined }
  const bytes = new Uint8Array(70_000)
  const drain = (): number => {
    let frames = 0
    while (theirs.read(bytes) > 0) frames++
    return frames
  }
  return {
    device: new Net({ name: 'eth0', mac: '02:77:00:00:00:02', wire }),
    queue: 1,
    works([, transmit], ring) {
      drain()
      transmit!.submit([new Uint8Array(VNET_HEADER), new Uint8Array(60).fill(7)])
      ring(1)
      return transmit!.results().length === 1 && drain() === 1
    },
    stir() {
      drain()
      theirs.write(new Uint8Array(VNET_HEADER + 60))
    },
    close() {
      ours.close()
      theirs.close()
    },
  }
}

export const SUBJECTS: Readonly<Record<string, () => Subject>> = {
  rng,
  balloon,
  blk,
  console: serial,
  net,
  pmem,
  vsock,
}
