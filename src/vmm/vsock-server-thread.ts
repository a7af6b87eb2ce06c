import { receiveMessageOnPort, workerData } from 'node:worker_threads'
import { EPOLLIN, Epoll, EventFd, Fd } from '@coracle/sys'
import { serve } from 'vhost-user-ts'
import { Vsock } from './devices/vsock/vsock.js'
import { controlVsock } from './vsock-host.js'
import type { VsockServerCommand, VsockServerData, VsockServerEvent } from './vsock-server.js'

/** The thread of a VsockServer: one epoll loop with the device, QEMU's connection and the main thread's commands. */
const { cid, path, port, wake } = workerData as VsockServerData
const post = (event: VsockServerEvent): void => port.postMessage(event)
const device = new Vsock({ cid })
const carryOut = controlVsock(device, post)
// The main thread made this eventfd and closes it.
const commands = new EventFd(new Fd(wake))
{
  using loop = new Epoll()
  using _server = serve(device, path, loop, { log: (message) => post({ type: 'log', message }) })
  loop.add(commands.fd, EPOLLIN, () => {
    commands.drain()
    for (let got = receiveMessageOnPort(port); got; got = receiveMessageOnPort(port)) {
      const command = got.message as VsockServerCommand
      if (command.type === 'stop') loop.stop()
      else carryOut(command)
    }
  })
  post({ type: 'ready' })
  loop.run()
}
port.close()
