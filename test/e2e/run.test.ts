import t from 'tap'
import { Host } from './host.js'
import { type Isolation, runSuite } from './suite.js'

const ISOLATIONS: Isolation[] = [
  { name: 'process', flags: ['--isolation', 'process'], guestKernel: false },
  { name: 'microvm on qemu', flags: ['--isolation', 'microvm', '--hypervisor', 'qemu'], guestKernel: true },
]

for (const isolation of ISOLATIONS)
  t.test(isolation.name, { timeout: 1_100_000 }, async (t) => {
    const host = await Host.create()
    t.teardown(() => host.remove())
    await runSuite(t, host, isolation)
  })
