import { Epoll } from '@coracle/sys'
import { type DeviceContext, serve, type VirtioDevice } from 'vhost-user-ts'

/** An entropy device (virtio 1.2 §5.4) that is not very random. */
class Four implements VirtioDevice {
  readonly name = 'four'
  readonly type = 4
  readonly queueSizes = [64]
  readonly features = 0n
  readonly config = new Uint8Array()
  #context: DeviceContext | undefined

  activate(context: DeviceContext): void {
    this.#context = context
  }

  notify(): void {
    const queue = this.#context!.queues[0]!
    for (let chain = queue.pop(); chain; chain = queue.pop()) {
      chain.writer.bytes(new Uint8Array(chain.writer.length).fill(4))
      queue.push(chain, chain.writer.position)
    }
    queue.enableNotifications()
    if (queue.flush()) this.#context!.interrupt(0)
  }

  reset(): void {
    this.#context = undefined
  }
}

/*
 * node four.js /tmp/four.sock, and then
 * qemu-system-x86_64 … -object memory-backend-memfd,id=ram,size=1G,share=on -M q35,memory-backend=ram \
 *   -chardev socket,id=four,path=/tmp/four.sock -device vhost-user-rng-pci,chardev=four
 */
const path = process.argv[2]!
const loop = new Epoll()
serve(new Four(), path, loop)
console.log(`four is at ${path}`)
loop.run()
