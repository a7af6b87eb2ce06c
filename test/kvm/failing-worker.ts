import { runVcpuProgram } from '../../src/kvm/index.js'

/* A vCPU's thread whose handler has an error of ours in it. */
runVcpuProgram(() => ({
  access() {
    throw new Error('a bug in the handler')
  },
}))
