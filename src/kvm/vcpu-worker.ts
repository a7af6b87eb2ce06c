import { runVcpuProgram } from './vcpu-program.js'

/* The program of a vCPU's thread that answers nothing itself. */
runVcpuProgram()
