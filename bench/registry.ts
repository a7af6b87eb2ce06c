import type { Bench } from './bench.js'
import { buildCold, buildColdProcess, buildWarm } from './build.js'
import { coldStart } from './cold-start.js'
import { containersMicrovm, containersProcess } from './containers.js'
import { kvmExits } from './kvm-exits.js'
import { readFiles } from './read-files.js'
import { cloneMemory, startByClone, startFromPool } from './start-by-clone.js'
import { pullImage, pullSecond } from './pull.js'
import { runTrueKvm, runTrueProcess, runTrueQemu } from './run-true.js'
import { vhostUserRandom, vhostUserSequential } from './vhost-user-blk.js'
import { vmmMemory } from './vmm-memory.js'

/** Every bench, in the order in which they run. */
export const benches: readonly Bench[] = [
  kvmExits,
  coldStart,
  startByClone,
  startFromPool,
  cloneMemory,
  runTrueProcess,
  runTrueQemu,
  runTrueKvm,
  vmmMemory,
  readFiles,
  vhostUserRandom,
  vhostUserSequential,
  containersProcess,
  containersMicrovm,
  pullImage,
  pullSecond,
  buildWarm,
  buildColdProcess,
  buildCold,
]
