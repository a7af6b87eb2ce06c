import { Epoll, EPOLLIN, EventFd } from '@coracle/sys'
import {
  type DeviceContext,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_VERSION_1,
  VhostUserDevice,
  type VhostUserDeviceInit,
  type VirtioError,
} from 'vhost-user-ts'
import { type DriverBuffer, DriverQueue, TestGuest } from './driver.js'

/** A driver and its transport for a device whose queues are in other hands. */
export class Machine implements Disposable {
  readonly guest = new TestGuest()
  readonly loop = new Epoll()
  readonly failures: VirtioError[] = []
  readonly log: string[] = []
  readonly queues: DriverQueue[]
  readonly kicks: EventFd[]
  readonly calls: EventFd[]
  readonly device: VhostUserDevice
  configChanges = 0

  constructor(path: string, options: Partial<VhostUserDeviceInit> = {}) {
    this.device = new VhostUserDevice({
      name: 'shout',
      type: 42,
      path,
      queues: 2,
      queueSize: 8,
      config: 4,
      log: (line) => this.log.push(line),
      ...options,
    })
    this.queues = this.device.queueSizes.map(
      (size) => new DriverQueue(this.guest, size, VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC),
    )
    this.kicks = this.queues.map(() => EventFd.create())
    this.calls = this.queues.map(() => EventFd.create())
  }

  activate(memory = this.guest.memory): void {
    const context: DeviceContext = {
      memory,
      queues: this.queues.map((queue, i) => queue.device(i)),
      // Without EVENT_IDX: the driver of these tests never says which interrupt it wants.
      features: this.device.features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC,
      loop: this.loop,
      interrupt: () => undefined,
      configChanged: () => this.configChanges++,
      handOver: (index) => ({ kick: this.kicks[index]!, call: this.calls[index]! }),
      fail: (reason) => {
        this.failures.push(reason as VirtioError)
        this.device.reset()
      },
    }
    this.device.activate(context)
  }

  /** Handles events until `done`. */
  until(done: () => boolean): void {
    const end = performance.now() + 20_000
    while (!done()) {
      if (performance.now() > end) throw new Error(`it did not come: ${this.log.join('; ')}`)
      this.loop.wait(1000)
    }
  }

  /** A request's answer, by way of the backend. */
  request(index: number, text: string): string {
    this.offer(index, [Buffer.from(text), 64])
    this.answer(index)
    return Buffer.from(this.queues[index]!.results()[0]!).toString()
  }

  /** Offers a request and rings. */
  offer(index: number, buffers: readonly DriverBuffer[]): void {
    this.queues[index]!.submit(buffers)
    this.kicks[index]!.signal()
  }

  /** Waits for an interrupt. */
  answer(index: number): void {
    let called = false
    const call = this.calls[index]!
    this.loop.add(call.fd, EPOLLIN, () => (called = call.drain()))
    this.until(() => called)
    this.loop.remove(call.fd)
  }

  [Symbol.dispose](): void {
    this.device[Symbol.dispose]()
    this.loop.close()
    this.guest[Symbol.dispose]()
    for (const each of [...this.kicks, ...this.calls]) each.close()
  }
}
