import { existsSync, readFileSync } from 'node:fs'
import { freemem } from 'node:os'
import { chooseHypervisor, readHost } from '../../engine/host.js'
import { paths } from '../../paths.js'
import { parseOptions, type CommandHelp, type Invocation } from '../command.js'
import { showSize } from '../size.js'
import { readiness } from '../../engine/readiness.js'

const help = {
  usage: 'doctor [OPTIONS]',
  summary: 'Says what this host can do, and what is missing.',
  options: (yargs) => yargs.option('json', { type: 'boolean', describe: 'For programs' }),
  examples: [['doctor --json', 'hypervisor, reason, tools, memory, cgroups']],
  words: [0, 0],
} satisfies CommandHelp<unknown>

/** Fails only where no container can run, with either isolation. */
export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const host = readHost()
  const { hypervisor, reason } = chooseHypervisor('auto', host)
  const ready = await readiness(hypervisor)
  const report = {
    hypervisor,
    reason,
    kvm: { device: existsSync('/dev/kvm'), error: host.kvmError ?? null },
    virtualization: host.virtualization ?? null,
    cpus: host.cpus,
    memory: host.memory,
    memoryFree: freemem(),
    cgroup: cgroupVersion(),
    root: process.getuid?.() === 0,
    microvm: ready.microvm,
    process: ready.process,
    state: paths.state,
    cache: paths.cache,
  }
  if (options.json) process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`)
  else {
    const line = (name: string, value: string): string => `${name.padEnd(16)}${value}\n`
    const able = ({ ready, missing }: { ready: boolean; missing: readonly string[] }): string =>
      ready ? 'ready' : `not ready: ${missing.join(', ')} missing: run npm run setup`
    process.stdout.write(
      line('hypervisor', `${hypervisor} (${reason})`) +
        line('/dev/kvm', report.kvm.error === null ? 'opens' : `does not open (${report.kvm.error})`) +
        line('processor', `${host.cpus} CPUs, ${host.virtualization ?? 'neither vmx nor svm'}`) +
        line('memory', `${showSize(host.memory)}, ${showSize(report.memoryFree)} free`) +
        line('cgroups', `version ${report.cgroup}`) +
        line('microvm', able(ready.microvm)) +
        line('process', able(ready.process)),
    )
  }
  return ready.microvm.ready || ready.process.ready ? 0 : 1
}

/** 2 where the unified hierarchy has the controllers, 1 where they are on their own, 0 where there are none. */
function cgroupVersion(): number {
  try {
    if (readFileSync('/sys/fs/cgroup/cgroup.controllers', 'utf8').trim() !== '') return 2
  } catch {
    // No unified hierarchy at the usual place.
  }
  return existsSync('/sys/fs/cgroup/memory') ? 1 : 0
}
