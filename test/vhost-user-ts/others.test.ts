import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { toolCommand } from '../../src/debian/index.js'
import { Machine } from './machine.js'

/* Our frontend with backends that are programs of their own. */

const EXAMPLE = 'src/vhost-user-ts/examples/four'
const root = fileURLToPath(new URL('../../../', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'coracle-'))
t.teardown(() => rmSync(folder, { recursive: true }))

/** Resolves once it has said so. */
async function saying(stream: Readable, text: string): Promise<void> {
  for await (const line of createInterface({ input: stream })) if (line.includes(text)) return
  throw new Error(`it ended without a word of "${text}"`)
}

async function end(child: ChildProcess): Promise<void> {
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
}

void t.test('the example is short, and a device', async (t) => {
  t.ok(readFileSync(join(root, `${EXAMPLE}.ts`), 'utf8').split('\n').length < 60)
  const path = join(folder, 'four')
  const child = spawn(process.execPath, [join(root, 'dist', `${EXAMPLE}.js`), path])
  t.teardown(() => end(child))
  await saying(child.stdout, path)
  using machine = new Machine(path, { name: 'four', type: 4, queues: 1, config: 0 })
  machine.activate()
  machine.offer(0, [5])
  machine.answer(0)
  t.same(machine.queues[0]!.results(), [new Uint8Array(5).fill(4)])
})

/** struct virtio_net_hdr_v1 (virtio 1.2 §5.1.6). */
const NET_HEADER = 12
const GUEST = Buffer.from('020000000001', 'hex')
const [ADDRESS, GATEWAY] = [Buffer.from([10, 0, 2, 15]), Buffer.from([10, 0, 2, 2])]

/** An Ethernet frame that asks who has `GATEWAY` (RFC 826). */
const ASK = Buffer.concat([
  Buffer.alloc(NET_HEADER),
  ...[Buffer.alloc(6, 0xff), GUEST, Buffer.from('0806', 'hex')],
  ...[Buffer.from('0001080006040001', 'hex'), GUEST, ADDRESS, Buffer.alloc(6), GATEWAY],
])

void t.test('passt answers a guest that has no right on the host', async (t) => {
  const { argv, env } = await toolCommand('passt')
  const path = join(folder, 'passt')
  const [address, gateway] = [ADDRESS, GATEWAY].map((bytes) => bytes.join('.'))
  const words = ['--foreground', '--vhost-user', '--runas', '0', '--socket', path]
  const child = spawn(argv[0]!, [...argv.slice(1), ...words, '-a', address!, '-n', '24', '-g', gateway!], {
    env: { ...process.env, ...env },
  })
  t.teardown(() => end(child))
  await saying(child.stderr, 'You can start qemu with')
  child.stderr.resume()
  using machine = new Machine(path, { name: 'passt', type: 1, config: 0, features: 0n, queueSize: 64 })
  machine.activate()
  const [receive] = machine.queues
  for (let i = 0; i < 8; i++) machine.offer(0, [2048])
  machine.offer(1, [ASK])
  let answer: Buffer | undefined
  while (!answer) {
    machine.answer(0)
    const frames = receive!.results().map((each) => Buffer.from(each).subarray(NET_HEADER))
    answer = frames.find((frame) => frame.readUInt16BE(12) === 0x0806)
  }
  t.same(answer.subarray(0, 6), GUEST)
  t.equal(answer.readUInt16BE(20), 2, 'a reply')
  t.same(answer.subarray(28, 32), GATEWAY)
  t.same(machine.failures, [])
})
