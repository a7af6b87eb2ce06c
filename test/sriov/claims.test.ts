import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import {
  type ClaimPlace,
  checkUnclaimed,
  claimDevices,
  claimInterface,
  devicesOf,
  releaseDevices,
} from '../../src/sriov/claims.js'
import { HostPci, type HostPciFunction } from '../../src/sriov/pci.js'
import {
  createFunctions,
  deleteFunctions,
  physicalFunction,
  physicalFunctions,
} from '../../src/sriov/physical-function.js'
import { NO_MAC, type PortSettings } from '../../src/sriov/port-settings.js'

const PF = '0000:01:00.0'
const VFS = ['0000:01:10.0', '0000:01:10.2']
const SETTINGS = { mac: '02:00:00:00:00:07', vlan: 12 }

/** A sysfs of plain files: what is written into it stays to be read. vfio-pci takes what is probed for it. */
class FakeHost implements ClaimPlace, Disposable {
  readonly root = mkdtempSync(join(tmpdir(), 'coracle-sysfs-'))
  readonly folder = join(this.root, 'devices')
  readonly pci: HostPci
  readonly ports = new Map<number, PortSettings>()
  readonly bindings: string[] = []
  readonly renamed: string[] = []

  constructor() {
    const { root } = this
    for (const driver of ['igb', 'igbvf', 'vfio-pci'])
      this.#files(`bus/pci/drivers/${driver}`, { bind: '', unbind: '' })
    this.#files('module/vfio_iommu_type1/parameters', {})
    this.#device(PF, 'igb', 5, { sriov_totalvfs: '7\n', sriov_numvfs: '2\n' })
    this.#files(`bus/pci/devices/${PF}/net/eth0`, { flags: '0x1003\n' })
    this.#files('class/net/eth0', { ifindex: '2\n' })
    symlinkSync(`../../../devices/${PF}`, join(root, 'class/net/eth0/device'))
    VFS.forEach((address, i) => {
      this.#device(address, 'igbvf', 6 + i)
      this.#files(`bus/pci/devices/${address}/net/eth${i + 1}`, { flags: '0x1002\n', ifindex: `${i + 3}\n` })
      symlinkSync(`../${address}`, join(root, `bus/pci/devices/${PF}/virtfn${i}`))
    })
    // What the kernel does when a file of sysfs is written.
    const { bindings } = this
    const device = (address: string): string => join(root, 'bus/pci/devices', address)
    const bind = (address: string, driver: string | undefined): void => {
      rmSync(join(device(address), 'driver'), { force: true })
      bindings.push(`${address} ${driver ?? 'none'}`)
      if (driver !== undefined) symlinkSync(`../../drivers/${driver}`, join(device(address), 'driver'))
    }
    this.pci = new (class extends HostPci {
      override bindToVfio(address: string): void {
        bind(address, 'vfio-pci')
      }
      override giveBack(address: string, driver: string | undefined, anew = false): void {
        bind(address, driver)
        if (!anew) return
        // The name that the kernel gives next.
        const net = join(device(address), 'net')
        renameSync(join(net, readdirSync(net)[0]!), join(net, 'eth9'))
      }
    })(root)
  }

  setPort(_index: number, vf: number, settings: PortSettings): void {
    this.ports.set(vf, settings)
  }
  getPort(_index: number, vf: number): PortSettings {
    return this.ports.get(vf) ?? { mac: NO_MAC, vlan: 0 }
  }

  renameInterface(index: number, name: string): void {
    this.renamed.push(`${index} ${name}`)
  }

  /** A container's run folder. */
  owner(name: string): string {
    const folder = join(this.root, name)
    mkdirSync(folder, { recursive: true })
    return folder
  }

  /** Puts a further device into the IOMMU group of another. */
  share(group: number, address: string, driver: string): void {
    this.#device(address, driver, group)
  }

  write(address: string, name: string, text: string): void {
    writeFileSync(join(this.root, 'bus/pci/devices', address, name), text)
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true, force: true })
  }

  #device(address: string, driver: string, group: number, more: Record<string, string> = {}): void {
    const folder = `bus/pci/devices/${address}`
    const files = { vendor: '0x8086\n', device: '0x10ca\n', class: '0x020000\n', modalias: 'pci:x\n' }
    this.#files(folder, { ...files, ...more })
    symlinkSync(`../../drivers/${driver}`, join(this.root, folder, 'driver'))
    symlinkSync(`../../../../kernel/iommu_groups/${group}`, join(this.root, folder, 'iommu_group'))
    this.#files(`kernel/iommu_groups/${group}/devices`, { [address]: '' })
  }

  #files(folder: string, files: Record<string, string>): void {
    mkdirSync(join(this.root, folder), { recursive: true })
    for (const [name, text] of Object.entries(files)) writeFileSync(join(this.root, folder, name), text)
  }
}

t.test('adapters and their functions', async (t) => {
  using host = new FakeHost()
  const [adapter, ...more] = physicalFunctions(host.pci)
  t.equal(more.length, 0)
  t.match(adapter, { address: PF, interface: 'eth0', driver: 'igb', total: 7 })
  t.same(
    adapter!.functions.map(({ address, index, group, driver }) => [address, index, group, driver]),
    [
      [VFS[0], 0, 6, 'igbvf'],
      [VFS[1], 1, 7, 'igbvf'],
    ],
  )
  t.same(physicalFunction('01:00.0', host.pci), adapter, 'by its address too')
  t.throws(() => physicalFunction('eth9', host.pci), { code: 'NO_SUCH_DEVICE', message: /sriov ls/ })
  t.throws(() => physicalFunction('../../x', host.pci), { code: 'NO_SUCH_DEVICE' })
  t.throws(() => physicalFunction('0000:09:00.0', host.pci), { code: 'NO_SUCH_DEVICE' })
  t.throws(() => physicalFunction(VFS[0]!, host.pci), { code: 'DEVICE_UNUSABLE', message: /no SR-IOV/ })
  t.throws(() => host.pci.find('01:00'), { code: 'INVALID_ARGUMENT' })
  t.throws(() => createFunctions(adapter!, 8, host.pci), { code: 'INVALID_ARGUMENT', message: /1 to 7/ })
  t.throws(() => createFunctions(adapter!, 4, host.pci), { code: 'CONFLICT', message: /sriov delete eth0/ })
  createFunctions({ ...adapter!, functions: [] }, 4, host.pci)
  const count = (): string => readFileSync(join(host.pci.folder(PF), 'sriov_numvfs'), 'utf8')
  t.equal(count(), '4')
  deleteFunctions(adapter!, host.pci)
  t.equal(count(), '0')
})

t.test('a container takes a function and gives it back to its driver', async (t) => {
  using host = new FakeHost()
  const [first, second] = [host.owner('a'), host.owner('b')]
  const wanted = { kind: 'sriov', adapter: 'eth0', ...SETTINGS } as const
  const [device] = await claimDevices(first, [wanted], host)
  t.match(device, { address: VFS[0], group: 6 })
  t.same(host.ports.get(0), SETTINGS)
  t.equal(host.pci.find(VFS[0]!).driver, 'vfio-pci')
  t.same(
    devicesOf(first, host).map(({ address }) => address),
    [VFS[0]],
  )
  t.throws(() => checkUnclaimed(physicalFunction('eth0', host.pci).functions, host), {
    code: 'DEVICE_IN_USE',
  })
  t.match(await claimDevices(second, [wanted], host), [{ address: VFS[1] }], 'the next gets another')
  await t.rejects(claimDevices(host.owner('c'), [wanted], host), {
    code: 'DEVICE_IN_USE',
    message: /all 2 virtual functions of eth0 are in use/,
  })
  await t.rejects(claimDevices(host.owner('c'), [{ kind: 'pci', address: VFS[1]! }], host), {
    code: 'DEVICE_IN_USE',
  })
  t.same(await releaseDevices(first, undefined, host), [])
  t.equal(host.pci.find(VFS[0]!).driver, 'igbvf')
  t.same(host.ports.get(0), { mac: NO_MAC, vlan: 0 }, 'as the adapter had it before')
  t.same(await releaseDevices(first, undefined, host), [], 'twice is once')
  t.same(devicesOf(second, host).length, 1, 'the other keeps its own')
})

t.test('what a killed container had is taken back', async (t) => {
  using host = new FakeHost()
  const gone = host.owner('gone')
  const wanted = { kind: 'sriov', adapter: 'eth0', ...SETTINGS } as const
  await claimDevices(gone, [wanted, wanted], host)
  rmSync(gone, { recursive: true })
  t.match(await claimDevices(host.owner('a'), [wanted], host), [{ address: VFS[0] }])
  t.equal(host.pci.find(VFS[1]!).driver, 'igbvf')
})

t.test('a container with the host’s kernel takes an interface, and its driver stays', async (t) => {
  using host = new FakeHost()
  const owner = host.owner('a')
  const wanted = { adapter: 'eth0', ...SETTINGS }
  rmSync(join(host.pci.folder(VFS[0]!), 'iommu_group'))
  t.equal(await claimInterface(owner, 0, wanted, host), 3, 'without an IOMMU')
  t.same(host.ports.get(0), SETTINGS)
  t.same(host.bindings, [`${VFS[0]} igbvf`], 'begun anew with its address')
  const net = join(host.pci.folder(VFS[1]!), 'net')
  renameSync(net, `${net}-gone`)
  await t.rejects(claimInterface(owner, 1, wanted, host), {
    code: 'DEVICE_IN_USE',
    message: /have no interface on this host: load the module/,
  })
  renameSync(`${net}-gone`, net)
  t.equal(await claimInterface(owner, 1, wanted, host), 4)
  await t.rejects(claimInterface(host.owner('b'), 0, wanted, host), { message: /all 2 .* are in use/ })
  t.same(await releaseDevices(owner, 1, host), [])
  t.same(host.renamed, ['4 eth2'], 'that one alone, under the name that it had')
  t.same(host.ports.get(1), { mac: NO_MAC, vlan: 0 })
  t.same(host.ports.get(0), SETTINGS)
  rmSync(owner, { recursive: true })
  t.equal(await claimInterface(host.owner('b'), 0, wanted, host), 3, 'what a killed one had is taken back')
  t.same(host.renamed, ['4 eth2', '3 eth1'])
})

t.test('all or nothing', async (t) => {
  using host = new FakeHost()
  const owner = host.owner('a')
  const wanted = { kind: 'sriov', adapter: 'eth0', ...SETTINGS } as const
  await t.rejects(claimDevices(owner, [wanted, { kind: 'pci', address: '0000:09:00.0' }], host), {
    code: 'NO_SUCH_DEVICE',
  })
  t.same(host.bindings, [`${VFS[0]} vfio-pci`, `${VFS[0]} igbvf`])
  t.same(
    readdirSync(host.folder).filter((name) => name.endsWith('.json')),
    [],
  )
})

t.test('what the host uses stays the host’s', async (t) => {
  using host = new FakeHost()
  const owner = host.owner('a')
  const refuse = (address: string, code: string, message: RegExp): Promise<unknown> =>
    t.rejects(claimDevices(owner, [{ kind: 'pci', address }], host), { code, message })
  await refuse(PF, 'DEVICE_IN_USE', /its interface eth0 is up/)
  host.write(VFS[0]!, 'class', '0x010802\n')
  await refuse(VFS[0]!, 'DEVICE_IN_USE', /driver igbvf has its disks; unbind it first/)
  host.write(VFS[0]!, 'class', '0x060400\n')
  await refuse(VFS[0]!, 'DEVICE_UNUSABLE', /is a bridge/)
  host.write(VFS[0]!, 'class', '0x020000\n')
  host.share(6, '0000:02:00.0', 'igb')
  await refuse(VFS[0]!, 'DEVICE_UNUSABLE', /shares its IOMMU group with 0000:02:00.0 \(igb\)/)
  rmSync(join(host.pci.folder(VFS[1]!), 'iommu_group'))
  await refuse(VFS[1]!, 'VFIO_UNAVAILABLE', /behind no IOMMU.*intel_iommu=on/)
  t.same(host.bindings, [], 'nothing was taken')
})

t.test('VFIO is two modules, and one without the other is not enough', (t) => {
  using host = new FakeHost()
  t.same(host.pci.missingModules(), [])
  rmSync(join(host.root, 'module'), { recursive: true })
  t.same(host.pci.missingModules(), ['vfio_iommu_type1'], 'vfio-pci alone: a small modprobe loaded it')
  rmSync(join(host.root, 'bus/pci/drivers/vfio-pci'), { recursive: true })
  t.same(host.pci.missingModules(), ['vfio_iommu_type1', 'vfio-pci'])
  t.throws(() => new HostPci(host.root).bindToVfio(VFS[0]!), {
    code: 'VFIO_UNAVAILABLE',
    message: /lacks vfio_iommu_type1 and vfio-pci/,
  })
  t.end()
})

const device = hostDevice()
const skip =
  device === undefined
    ? 'this host has no PCI device to try it with'
    : device.group !== undefined && 'this host has an IOMMU: the lab tries what it does'

t.test('a device of this host, which has no IOMMU', { skip }, async (t) => {
  const root = t.testdir()
  const pci = new HostPci()
  const never = (): never => {
    throw new Error('an adapter was told something')
  }
  const place = { pci, folder: join(root, 'devices'), setPort: never, getPort: never, renameInterface: never }
  const wanted = { kind: 'pci', address: device!.address } as const
  await t.rejects(claimDevices(root, [wanted], place), {
    code: 'VFIO_UNAVAILABLE',
    message: /behind no IOMMU/,
  })
  t.equal(pci.find(wanted.address).driver, device!.driver, 'its driver keeps it')
})

/** One that is no bridge, has no interface and holds no disks. */
function hostDevice(): HostPciFunction | undefined {
  const pci = new HostPci()
  return pci
    .addresses()
    .map((address) => pci.find(address))
    .filter((each) => each.interface === undefined)
    .find(({ address }) => !/^0x0[16]/.test(readFileSync(join(pci.folder(address), 'class'), 'utf8')))
}
