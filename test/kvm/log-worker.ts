import { runVcpuProgram } from '../../src/kvm/index.js'
import { SharedLog } from './shared-log.js'

/* A vCPU's thread that keeps what the guest writes: its data is a log's buffer. */
runVcpuProgram((data) => new SharedLog(data as SharedArrayBuffer))
