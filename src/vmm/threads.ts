import { prepareThreads } from '../kvm/spare-threads.js'

/** Starts the threads of a machine to come, before anything else of it is loaded: see {@link prepareThreads}. */
export function prepareMachineThreads(cpus: number): void {
  prepareThreads(new URL('device-thread/device-worker.js', import.meta.url), 1)
  prepareThreads(new URL('../kvm/vcpu-worker.js', import.meta.url), cpus)
}
