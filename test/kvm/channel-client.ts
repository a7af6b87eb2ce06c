import { parentPort, workerData } from 'node:worker_threads'
import { ExitChannel, MMIO, PIO, type SharedExitChannel } from '../../src/kvm/index.js'

/** Asks `rounds` times and counts what comes back wrong; the server answers a read with address + 1. */
const { channel, rounds, port } = workerData as { channel: SharedExitChannel; rounds: number; port: number }
const client = new ExitChannel(channel)
const data = new DataView(new ArrayBuffer(16))
let wrong = 0
let verdicts = 0
for (let i = 0; i < rounds; i++) {
  if (i % 2 === 0) {
    data.setUint32(4, i, true)
    verdicts += client.access(PIO, port, 4, true, data, 4)
  } else {
    const address = 0xd000_0000 + i
    data.setBigUint64(8, ~0n)
    verdicts += client.access(MMIO, address, 8, false, data, 8)
    if (data.getFloat64(8, true) !== address + 1) wrong++
  }
}
parentPort!.postMessage({ wrong, verdicts })
