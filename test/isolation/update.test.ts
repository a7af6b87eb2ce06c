import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { resizeGuest } from '../../src/isolation/microvm/balloon.js'
import { Qmp } from '../../src/isolation/qemu/qmp.js'

const MIB = 2 ** 20

/** A guest whose balloon takes a step at each look, and no more than `most`. */
class Guest {
  target = 0
  taken = 0
  readonly asked: number[] = []
  constructor(readonly most: number) {}
  balloon(bytes?: number): Promise<number> {
    if (bytes !== undefined) this.asked.push((this.target = bytes))
    const step = Math.sign(this.target - this.taken) * Math.min(8 * MIB, Math.abs(this.target - this.taken))
    this.taken = Math.min(this.most, this.taken + step)
    return Promise.resolve(this.taken)
  }
}

t.test('a guest gives up memory and takes it back, and no more than it can', async (t) => {
  const guest = new Guest(64 * MIB)
  const size = { size: 256 * MIB, available: 100 * MIB }
  await resizeGuest(guest, size, 224 * MIB)
  t.equal(guest.taken, 32 * MIB)
  await t.rejects(resizeGuest(guest, size, 64 * MIB), {
    code: 'CONFLICT',
    message: /leave it 140 MiB or more/,
  })
  t.same(guest.asked, [32 * MIB], 'it is not even asked where it says that it has not so much')
  await t.rejects(resizeGuest(guest, size, 160 * MIB, 100), { code: 'CONFLICT', message: /leave it 192 MiB/ })
  t.equal(guest.asked.at(-1), 32 * MIB, 'it gets back what it gave in vain')
  await resizeGuest(guest, { size: 256 * MIB, available: 0 }, 256 * MIB)
  t.equal(guest.taken, 0)
})

t.test("QEMU's control protocol", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'coracle-qmp-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'qmp.sock')
  let peer!: Socket
  const server = createServer((socket) => {
    peer = socket
    socket.on('error', () => undefined)
    socket.write('{"QMP":{"version":{}}}\n')
    socket.on('data', (bytes) => {
      for (const line of bytes.toString().trim().split('\n')) {
        const { execute } = JSON.parse(line) as { execute: string }
        if (execute === 'balloon') socket.write('{"error":{"class":"GenericError","desc":"no"}}\n')
        else if (execute !== 'wait') socket.write('{"event":"BALLOON_CHANGE"}\n{"return":{"actual":7}}\n')
      }
    })
  }).listen(path)
  await once(server, 'listening')
  t.teardown(() => server.close())
  {
    using qmp = await Qmp.connect(path)
    t.same(await qmp.execute('query-balloon'), { actual: 7 })
    await t.rejects(qmp.execute('balloon', { value: 1 }), { message: /refused: no/ })
    const waiting = t.rejects(qmp.execute('wait'), { code: 'NOT_RUNNING' })
    peer.write('no json\n')
    await waiting
    await t.rejects(qmp.execute('query-balloon'), { code: 'NOT_RUNNING' })
  }
  await t.rejects(Qmp.connect(join(folder, 'none')), { code: 'NOT_RUNNING' })
})
