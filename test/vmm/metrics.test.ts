import t from 'tap'
import { LATENCY_BUCKETS, latencyBucket } from 'vhost-user-ts'
import { DeviceCounters, newMetrics } from '../../src/vmm/metrics/device-metrics.js'
import { DEVICE_STATUS } from '../../src/vmm/virtio-pci/common.js'
import { noKvm } from '../kvm/guest.js'
import { Rig } from './rig.js'
import { SUBJECTS } from './devices/subjects.js'

const skip = noKvm()

t.test('times fall into powers of two', (t) => {
  const microseconds = [0, 0.5, 1, 1.9, 2, 3, 4, 1000, 1023, 1024, 2 ** 40, Infinity]
  t.same(
    microseconds.map((each) => latencyBucket(each / 1000)),
    [0, 0, 1, 1, 2, 2, 3, 10, 10, 11, LATENCY_BUCKETS - 1, LATENCY_BUCKETS - 1],
  )
  t.end()
})

t.test('a device counts what it does, and shows where it stands', { skip }, (t) => {
  const blk = SUBJECTS['blk']!()
  using rig = new Rig([blk.device])
  const transport = rig.transports[0]!
  t.match(transport.describe(), { name: 'blk disk', type: 2, status: [], queues: [{ enabled: false }] })
  const queues = rig.drive()
  t.ok(blk.works(queues, (queue) => rig.ring(queue)))
  t.ok(blk.works(queues, (queue) => rig.ring(queue)))
  // Beyond the disk's end.
  queues[0]!.submit([new Uint8Array(Uint32Array.of(0, 0, 1 << 20, 0).buffer), 512, 1])
  rig.ring(0)
  const described = transport.describe()
  t.match(described, {
    status: ['ACKNOWLEDGE', 'DRIVER', 'FEATURES_OK', 'DRIVER_OK'],
    msix: { enabled: false, vectors: [{ vector: 0, masked: true, pending: false }, { vector: 1 }] },
    queues: [{ enabled: true, size: 256, maximum: 256, nextAvailable: 3, nextUsed: 3, inFlight: 0 }],
  })
  t.equal(described.queues[0]!.vector, undefined)
  t.equal(Number(described.queues[0]!.descriptorTable), queues[0]!.descriptorTable)
  const { activations, failures, queues: counted } = described.metrics!
  t.same([activations, failures, counted.length], [1, 0, 1])
  const [queue] = counted
  t.match(queue, { requests: 3, errors: 1, bytesOut: 48, bytesIn: 2 * 513, inFlight: 0, depth: 1 })
  t.equal(
    queue!.latency.reduce((sum, count) => sum + count, 0),
    3,
    'each request has its time',
  )
  t.ok(queue!.interrupts >= 1)
  queues[0]!.offer(256)
  rig.ring(0)
  t.equal(transport.describe().metrics!.failures, 1)
  t.match(transport.describe().status, [
    'ACKNOWLEDGE',
    'DRIVER',
    'FEATURES_OK',
    'DRIVER_OK',
    'DEVICE_NEEDS_RESET',
  ])
  t.equal(transport.describe().queues[0]!.nextUsed, undefined, 'it does not run')
  rig.set(DEVICE_STATUS, 1, 0)
  t.match(rig.bus.describe(), [
    { slot: 0, id: '8086:0d57', class: '060000', bars: [] },
    { slot: 1, id: '1af4:1042', class: '018000', memoryDecoded: true, bars: [{ index: 0, size: 32768 }] },
  ])
  blk.close()
  t.end()
})

t.test('counters of a slot', (t) => {
  const metrics = newMetrics()
  t.throws(() => new DeviceCounters(metrics, 32), RangeError)
  const counters = new DeviceCounters(metrics, 31)
  t.equal(counters.queue(16), undefined)
  counters.noteNotification(99)
  counters.noteNotification(1)
  t.match(counters.read(2).queues, [{ notifications: 0 }, { notifications: 1, latency: [] }])
  counters.clear()
  t.match(new DeviceCounters(metrics, 31).read(2).queues, [{ notifications: 0 }, { notifications: 0 }])
  t.end()
})
