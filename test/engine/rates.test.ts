import t from 'tap'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { createRequest } from '../../src/api/create.js'
import { blockIo, sandboxRates } from '../../src/engine/rates.js'

t.test("Docker's rates reach a microVM's disk, the lowest of each kind", async (t) => {
  const { deviceRates, networkRates } = createRequest(
    {
      Image: 'busybox',
      HostConfig: {
        BlkioDeviceReadBps: [
          { Path: '/dev/sda', Rate: 2000 },
          { Path: '/dev/sdb', Rate: 1000 },
        ],
        BlkioDeviceWriteIOps: [{ Path: '/', Rate: 50 }],
        Annotations: { 'coracle.network-receive-bps': '1000000' },
      },
    },
    undefined,
  )
  const asked = { deviceRates: deviceRates!, networkRates: networkRates! }
  t.same(sandboxRates(asked, 'microvm', 'kvm'), {
    diskRates: { readBps: 1000, writeIops: 50 },
    networkRates: { receiveBps: 1_000_000 },
  })
  t.same(sandboxRates({}, 'microvm', 'kvm'), {})
  for (const [isolation, hypervisor] of [
    ['microvm', 'qemu'],
    ['process', undefined],
  ] as const)
    t.throws(() => sandboxRates(asked, isolation, hypervisor), {
      code: 'INVALID_ARGUMENT',
      message: /network rates need .*--hypervisor kvm/,
    })
})

t.test("a process's are for the host's block devices", async (t) => {
  const rate = (path: string) => ({ deviceRates: [{ kind: 'readBps' as const, path, rate: 1000 }] })
  t.equal(blockIo({}), undefined)
  t.throws(() => blockIo(rate('/dev/null')), { code: 'INVALID_ARGUMENT', message: /device rates/ })
  t.throws(() => blockIo(rate('/nonexistent')), { code: 'INVALID_ARGUMENT' })
  const device = readdirSync('/dev')
    .map((name) => `/dev/${name}`)
    .find((path) => statSync(path, { throwIfNoEntry: false })?.isBlockDevice() === true)
  const throttles = existsSync('/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device')
  if (device === undefined || !throttles)
    return void t.pass('a block device', { skip: 'no block device, or no blkio controller, here' })
  const [entry] = blockIo(rate(device))!['throttleReadBpsDevice']!
  t.match(entry, { major: Number, minor: Number, rate: 1000 })
})
