import { prepareThreads } from '../kvm/spare-threads.js'
import { DEVICE_WORKER, PROCESSOR_WORKER } from './device-thread/module.js'

/** Starts the threads of a machine to come, before anything else of it is loaded: see {@link prepareThreads}. */
export function prepareMachineThreads(cpus: number): void {
  prepareThreads(DEVICE_WORKER, 1)
  prepareThreads(PROCESSOR_WORKER, cpus)
}
