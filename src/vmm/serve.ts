#!/usr/bin/env node
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { EPOLLIN, Epoll, EventFd, Fd } from '@coracle/sys'
import { serve, type VirtioDevice } from 'vhost-user-ts'
import yargs from 'yargs'
import { type BlkSpec, openBlk } from './devices/blk/open.js'
import { type NetSpec, openNet } from './devices/net/open.js'
import { type RngSpec, openRng } from './devices/rng/open.js'

/*
 * One of our devices for somebody else's VMM, over vhost-user, until it is told to end. The device has a thread of its
 * own, whose loop is no Node loop; the main thread waits for signals.
 */
type Served = BlkSpec | NetSpec | RngSpec

interface ThreadData {
  readonly spec: Served
  readonly socket: string
  /** An eventfd's number: signalled to end. */
  readonly stop: number
}

function open(spec: Served, log: (line: string) => void): { device: VirtioDevice; close(): void } {
  const host = { log }
  const opened =
    spec.kind === 'blk' ? openBlk(spec, host) : spec.kind === 'net' ? openNet(spec, host) : openRng()
  if (!('device' in opened)) throw new Error(`${spec.kind} is no virtio device`)
  return opened
}

function runThread({ spec, socket, stop }: ThreadData): void {
  const log = (line: string): void => parentPort!.postMessage(line)
  using loop = new Epoll()
  const { device, close } = open(spec, log)
  try {
    using _server = serve(device, socket, loop, { log })
    loop.add(new Fd(stop), EPOLLIN, () => loop.stop())
    log(`${device.name} is at ${socket}`)
    loop.run()
  } finally {
    close()
  }
}

function runMain(spec: Served, socket: string): void {
  const stop = EventFd.create()
  const data: ThreadData = { spec, socket, stop: stop.number }
  const worker = new Worker(new URL(import.meta.url), { workerData: data, execArgv: [], argv: [] })
  worker.on('message', (line: string) => process.stderr.write(`${line}\n`))
  worker.on('error', (error) => {
    process.stderr.write(`${error.message}\n`)
    process.exitCode = 1
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop.signal())
  worker.on('exit', () => process.exit())
}

const required = { type: 'string', demandOption: true } as const

if (!isMainThread) runThread(workerData as ThreadData)
else
  await yargs(process.argv.slice(2))
    .scriptName('coracle-vhost-user')
    .usage('$0 DEVICE --socket PATH …\n\nServes one device to QEMU or another VMM, over vhost-user.')
    .option('socket', { ...required, describe: 'where the VMM finds the device: a Unix socket, made here' })
    .command(
      'blk',
      'a disk in a file',
      (args) =>
        args
          .option('file', { ...required, describe: 'a raw disk image' })
          .option('read-only', { type: 'boolean', default: false })
          .option('serial', { type: 'string', default: 'coracle', describe: 'its serial number' }),
      (args) =>
        runMain(
          { kind: 'blk', name: args.serial, path: args.file, readOnly: args['read-only'] },
          args.socket,
        ),
    )
    .command(
      'net',
      'a network adapter over a tap',
      (args) => args.option('tap', { ...required, describe: 'its name' }).option('mac', required),
      (args) => runMain({ kind: 'net', name: args.tap, tap: args.tap, mac: args.mac }, args.socket),
    )
    .command(
      'rng',
      "random bytes of the host's kernel",
      (args) => args,
      (args) => runMain({ kind: 'rng' }, args.socket),
    )
    .example(
      '$0 blk --socket /tmp/disk.sock --file disk.img',
      'then qemu-system-x86_64 … -object memory-backend-memfd,id=ram,size=1G,share=on -M q35,memory-backend=ram ' +
        '-chardev socket,id=disk,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=disk',
    )
    .demandCommand(1, 'Which device? See --help.')
    .strict()
    .version(false)
    .parse()
