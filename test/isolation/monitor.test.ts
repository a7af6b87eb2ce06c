import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { type Socket, connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex, Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { carry } from '../../src/isolation/monitor/carry.js'
import { JsonLog } from '../../src/isolation/monitor/log.js'
import { STDOUT } from '../../src/isolation/protocol.js'
import { Streams } from '../../src/isolation/monitor/streams.js'

const scratch = mkdtempSync(join(tmpdir(), 'coracle-monitor-'))
t.teardown(() => rmSync(scratch, { recursive: true }))

/** More than a socket takes at once. */
const SAID = Buffer.alloc(4 * 2 ** 20, 7)

/** What a client gets that reads once `broken` has happened. */
async function heard(t: Test, stream: Duplex, broken: Promise<unknown>): Promise<Buffer> {
  const path = join(scratch, t.name.slice(0, 8))
  const server = createServer({ allowHalfOpen: true }, (socket: Socket) => {
    socket.on('error', () => undefined)
    carry(socket, stream)
  }).listen(path)
  t.teardown(() => server.close())
  const client = connect(path)
  client.on('error', () => undefined).end()
  await broken
  return buffer(client)
}

t.test('whole, though it breaks after its end', async (t) => {
  const stream = new Duplex({ read: () => undefined, write: (_chunk, _encoding, done) => done() })
  stream.push(SAID)
  stream.push(null)
  const broken = new Promise<void>((resolve) =>
    stream.once('end', () => {
      stream.destroy(new Error('the operation was aborted'))
      stream.once('close', resolve)
    }),
  )
  t.equal((await heard(t, stream, broken)).length, SAID.length)
})

t.test('cut off where it breaks before its end', async (t) => {
  const stream = new Duplex({ read: () => undefined, write: (_chunk, _encoding, done) => done() })
  stream.push(SAID)
  const broken = new Promise<void>((resolve) => stream.once('close', resolve))
  stream.once('pipe', () => setImmediate(() => stream.destroy(new Error('gone'))))
  t.ok((await heard(t, stream, broken)).length < SAID.length)
})

t.test('a client that still sends has not read the end yet: it is waited for', async (t) => {
  const path = join(scratch, 'attached')
  const streams = new Streams(undefined, { stdinOnce: true, tty: false })
  const server = createServer({ allowHalfOpen: true })
  t.teardown(() => server.close())
  const attached = new Promise<void>((resolve) =>
    server.on('connection', (socket) => {
      streams.attach(socket, { stdin: true, stdout: true, stderr: true })
      resolve()
    }),
  )
  server.listen(path)
  const client = connect({ path, allowHalfOpen: true })
  await attached
  streams.start({ stdout: Readable.from([Buffer.from('said')]) })
  await streams.finish()
  const typing = setInterval(() => client.write('y'), 100)
  const parted = streams.part().then(() => 'parted')
  t.equal(await Promise.race([parted, delay(1500, 'waits')]), 'waits')
  t.equal((await buffer(client)).toString('utf8', 8), 'said')
  clearInterval(typing)
  client.end()
  t.equal(await parted, 'parted')
})

t.test('what comes after the log is closed is written into nothing else', async (t) => {
  const [path, other] = [join(scratch, 'log'), join(scratch, 'other')]
  const log = new JsonLog({ files: [path] })
  log.write(STDOUT, Buffer.from('one\n'))
  log.close()
  // It gets the number that has become free.
  const fd = openSync(other, 'w')
  log.write(STDOUT, Buffer.from('two\n'))
  log.end(STDOUT)
  closeSync(fd)
  t.equal(readFileSync(other, 'utf8'), '')
  t.match(readFileSync(path, 'utf8'), /^\{"log":"one\\n"[^\n]*\}\n$/)
})
