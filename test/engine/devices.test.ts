import t from 'tap'
import { devicesOf, parseDevice } from '../../src/engine/devices.js'

t.test('devices as users write them', async (t) => {
  t.same(parseDevice('pci=0000:01:10.0'), { kind: 'pci', address: '0000:01:10.0' })
  t.same(
    parseDevice(
      'sriov=eth0,mac=02:00:00:00:00:0A,vlan=12,name=lan0,ip=10.0.0.2/24,ip=fd00::2/64,gateway=10.0.0.1',
    ),
    {
      kind: 'sriov',
      adapter: 'eth0',
      mac: '02:00:00:00:00:0a',
      vlan: 12,
      name: 'lan0',
      addresses: ['10.0.0.2/24', 'fd00::2/64'],
      gateways: ['10.0.0.1'],
    },
  )
  const own = parseDevice('sriov=0000:01:00.0')
  t.match(own, {
    adapter: '0000:01:00.0',
    mac: /^02(:[0-9a-f]{2}){5}$/,
    vlan: 0,
    addresses: [],
    gateways: [],
  })
  t.not((own as { mac: string }).mac, (parseDevice('sriov=eth0') as { mac: string }).mac)
  for (const bad of [
    '',
    '/dev/fuse',
    'sriov',
    'sriov=',
    'sriov=../x',
    'pci=0000:01:10.0,mac=02:00:00:00:00:01',
    'sriov=eth0,mac=01:00:00:00:00:01',
    'sriov=eth0,mac=00:00:00:00:00:00',
    'sriov=eth0,mac=2:0:0:0:0:1',
    'sriov=eth0,vlan=0',
    'sriov=eth0,vlan=4095',
    'sriov=eth0,ip=10.0.0.2',
    'sriov=eth0,ip=10.0.0.2/33',
    'sriov=eth0,ip=10.0.0.2/24/1',
    'sriov=eth0,gateway=x',
    'sriov=eth0,gateway=10.0.0.1,gateway=10.0.0.2',
    'sriov=eth0,name=a/b',
    'sriov=eth0,colour=red',
    `sriov=eth0${',ip=10.0.0.2/24'.repeat(9)}`,
  ])
    t.throws(() => parseDevice(bad), { code: 'INVALID_ARGUMENT', message: /^invalid device/ }, bad)
})

t.test('only a microVM on kvm has devices of the host', async (t) => {
  const devices = [parseDevice('pci=0000:01:10.0')]
  const kvm = { hypervisor: 'kvm', reason: 'asked for' } as const
  t.same(devicesOf({ devices, kernel: 'generic' }, 'microvm', kvm), { devices, kernel: 'generic' })
  t.same(devicesOf({}, 'process', undefined), {})
  const refused = { code: 'INVALID_ARGUMENT', message: /--isolation microvm --hypervisor kvm/ }
  t.throws(() => devicesOf({ devices }, 'process', undefined), refused)
  t.throws(() => devicesOf({ devices }, 'microvm', { hypervisor: 'qemu', reason: 'no svm' }), refused)
  t.throws(() => devicesOf({ kernel: 'cloud' }, 'process', undefined), {
    message: /a kernel goes with isolation/,
  })
  t.throws(() => devicesOf({ devices: Array(9).fill(devices[0]) as never }, 'microvm', kvm), {
    message: /at most 8/,
  })
})
