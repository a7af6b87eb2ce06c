import { prepareThreads } from '../kvm/spare-threads.js'
import { VCPU_WORKER } from '../kvm/vcpu-module.js'
import { DEVICE_WORKER } from './device-thread/module.js'

/** Starts the threads of a machine to come, before anything else of it is loaded: see {@link prepareThreads}. */
export function prepareMachineThreads(cpus: number): void {
  prepareThreads(DEVICE_WORKER, 1)
  prepareThreads(VCPU_WORKER, cpus)
}
