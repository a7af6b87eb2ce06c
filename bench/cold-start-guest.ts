import { Socket } from 'node:net'
import { prepareMachineThreads } from '../src/vmm/threads.js'

/*
 * One microVM to its agent's hello, as a process: `KERNEL INITRAMFS MIB`. Prints the machine's statistics then.
 */
// As the process of a microVM begins.
prepareMachineThreads(1)
async function main(): Promise<void> {
  const { Machine } = await import('../src/vmm/machine.js')
  const [kernel, initramfs, memory] = process.argv.slice(2)
  await using machine = await Machine.create({
    kernel: kernel!,
    initramfs: initramfs!,
    memory: Number(memory) * 2 ** 20,
    cpus: 1,
    devices: [{ kind: 'vsock', cid: 77 }],
  })
  const hello = new Promise<void>((resolve) =>
    machine.vsock.listen(1024, (fd) => {
      const socket = new Socket({ fd: fd.release() })
      socket.on('error', () => undefined)
      socket.once('data', () => {
        resolve()
        socket.destroy()
      })
    }),
  )
  machine.start()
  const ended = await Promise.race([hello, machine.exited])
  if (ended === undefined) process.stdout.write(JSON.stringify(machine.statistics))
  else {
    process.stderr.write(`the guest ended: ${JSON.stringify(ended)}\n${machine.console}`)
    process.exitCode = 1
  }
}

void main()
