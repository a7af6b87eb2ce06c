import { existsSync } from 'node:fs'
import type { Socket } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { socketPair } from '@coracle/sys'
import { type VsockCommand, VsockHost } from '../../src/vmm/vsock-host.js'
import { VsockServer } from '../../src/vmm/vsock-server.js'

void t.test('the main thread wraps what the device thread hands over', async (t) => {
  const sent: VsockCommand[] = []
  const host = new VsockHost((command) => sent.push(command))
  const accepted: Socket[] = []
  host.listen(1024, (socket) => accepted.push(socket))
  const [ours, theirs] = socketPair()
  host.receive({ type: 'connection', port: 1024, fd: theirs.release() })
  const [socket] = accepted
  t.equal(socket?.allowHalfOpen, true)
  socket?.end('bye')
  const into = new Uint8Array(10)
  await once(socket!, 'finish')
  t.equal(ours.read(into), 3)
  t.equal(ours.read(into), 0, 'end() is the end of file')
  ours.write(Buffer.from('still here'))
  const [data] = (await once(socket!, 'data')) as [Buffer]
  t.equal(data.toString(), 'still here', 'and the other direction goes on')
  ours.close()
  await once(socket!, 'close')

  host.unlisten(1024)
  const [late, theirLate] = socketPair()
  host.receive({ type: 'connection', port: 1024, fd: theirLate.release() })
  const answer = host.connect(80)
  host.receive({ type: 'connected', id: 0 })
  await t.rejects(answer, { code: 'ECONNREFUSED' })
  const waiting = host.connect(81)
  host.close()
  await t.rejects(waiting, { code: 'ECONNREFUSED' })
  await t.rejects(host.connect(82), { code: 'ECONNREFUSED' })
  t.same(
    sent.map(({ type, port }) => `${type} ${port}`),
    ['listen 1024', 'unlisten 1024', 'connect 80', 'connect 81'],
  )
  late.close()
})

void t.test('the thread starts and stops', async (t) => {
  const path = join(t.testdir(), 's')
  {
    await using server = await VsockServer.start({ path })
    t.ok(existsSync(path))
    await t.rejects(VsockServer.start({ path }), { code: 'EADDRINUSE' })
    await t.rejects(server.host.connect(80), { code: 'ECONNREFUSED' }, 'no guest yet')
  }
  t.notOk(existsSync(path))
})
