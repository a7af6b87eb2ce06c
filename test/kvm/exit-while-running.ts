import { VcpuThread } from '../../src/kvm/index.js'
import { newMachine } from './guest.js'
import { SharedLog } from './shared-log.js'

/** A program that exits while one guest spins and one halts in the kernel: Node must not wait for their threads. */
const logs = [newMachine('spin'), newMachine('halt', { irqchip: true })].map((machine) => {
  const log = new SharedLog()
  const handler = { program: new URL('./log-worker.js', import.meta.url), data: log.buffer }
  new VcpuThread({ vcpu: machine.vcpu.share(), handler })
  return log
})
if (logs.every((log) => log.waitFor(1))) console.log('running')
process.exit(0)
