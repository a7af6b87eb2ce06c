import { testClones, testPool } from '../isolation/clones.js'
import { testKills } from '../isolation/kills.js'
import { choose } from '../isolation/sandbox.js'
import { testSnapshots } from '../isolation/snapshots.js'

choose({ isolation: 'microvm', hypervisor: 'kvm' })
testClones()
testPool()
testSnapshots()
testKills(['start', 'start', 'start', 'run', 'run', 'save', 'save', 'save', 'restore', 'restore'])
