import { runVcpuProgram } from '../../kvm/vcpu-program.js'
import { createHandler } from './port-handler.js'

/* The program of a processor's thread. */
runVcpuProgram(createHandler)
