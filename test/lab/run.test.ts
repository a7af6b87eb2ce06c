import t from 'tap'
import { Host } from '../e2e/host.js'
import { runSuite } from '../e2e/suite.js'

t.test('microvm on kvm', { timeout: 1_900_000 }, async (t) => {
  const host = await Host.create()
  t.teardown(() => host.remove())
  const doctor = JSON.parse((await host.coracle(['doctor', '--json'])).stdout.toString())
  t.equal(doctor.hypervisor, 'kvm', 'auto takes kvm here')
  await runSuite(t, host, { name: 'kvm', flags: ['--hypervisor', 'kvm'], guestKernel: true })
})
