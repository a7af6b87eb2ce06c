import { Socket } from 'node:net'
import yargs from 'yargs'
import { CoracleError } from '../errors.js'
import type { DeviceSpec } from './device-thread/device-spec.js'
import { Machine } from './machine.js'

/*
 * One machine from the command line, for development and tests: the guest's console goes to stderr, what it cost to
 * stdout as JSON at the end. Users have `coracle run`.
 */
const options = await yargs(process.argv.slice(2))
  .scriptName('vmm')
  .option('kernel', { type: 'string', demandOption: true, describe: 'vmlinux' })
  .option('initramfs', { type: 'string' })
  .option('memory', { type: 'number', default: 256, describe: 'MiB' })
  .option('cpus', { type: 'number', default: 1 })
  .option('vsock', { type: 'number', describe: "the guest's context id" })
  .option('rng', { type: 'boolean', default: false })
  .option('disk', {
    type: 'string',
    array: true,
    default: [] as string[],
    describe: 'raw disk image, writable',
  })
  .option('fs', { type: 'string', array: true, default: [] as string[], describe: "virtiofsd's socket" })
  .option('hvc', { type: 'string', describe: 'a terminal, pipe or file for a virtio console' })
  .option('pmem', { type: 'string', array: true, default: [] as string[], describe: 'a partition of pmem0' })
  .option('hello', { type: 'number', describe: 'stop when the guest has sent something to this vsock port' })
  .option('append', { type: 'string', default: '', describe: 'for the kernel command line' })
  .strict()
  .parse()

const devices: DeviceSpec[] = []
if (options.pmem.length > 0)
  devices.push({
    kind: 'pmem',
    name: 'blobs',
    blobs: options.pmem.map((path, i) => ({ name: `blob${i + 1}`, path })),
  })
options.disk.forEach((path, i) => devices.push({ kind: 'blk', name: `disk${i}`, path }))
options.fs.forEach((socket, i) => devices.push({ kind: 'fs', tag: `fs${i}`, socket }))
if (options.rng) devices.push({ kind: 'rng' })
if (options.hvc !== undefined) devices.push({ kind: 'console', name: 'hvc', path: options.hvc })
if (options.vsock !== undefined) devices.push({ kind: 'vsock', cid: options.vsock })

try {
  const began = performance.now()
  await using machine = await Machine.create({
    kernel: options.kernel,
    ...(options.initramfs === undefined ? {} : { initramfs: options.initramfs }),
    memory: options.memory * 2 ** 20,
    cpus: options.cpus,
    append: options.append,
    devices,
    onConsole: (bytes) => process.stderr.write(bytes),
    onLog: (line) => process.stderr.write(`[vmm] ${line}\n`),
  })
  const created = performance.now()
  let hello: number | undefined
  if (options.hello !== undefined)
    machine.vsock.listen(options.hello, (fd) => {
      const socket = new Socket({ fd: fd.release() })
      socket.on('error', () => undefined)
      socket.once('data', () => {
        hello = performance.now() - created
        socket.destroy()
        void machine.stop()
      })
    })
  machine.start()
  const exit = await machine.exited
  const times = { create: created - began, run: performance.now() - created, hello }
  process.stdout.write(`${JSON.stringify({ ...exit, ...machine.statistics, milliseconds: times })}\n`)
} catch (error) {
  if (!(error instanceof CoracleError)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exitCode = error.exit
}
