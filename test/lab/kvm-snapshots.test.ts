import { testClones, testPool } from '../isolation/clones.js'
import { choose } from '../isolation/sandbox.js'
import { testSnapshots } from '../isolation/snapshots.js'

choose({ isolation: 'microvm', hypervisor: 'kvm' })
testClones()
testPool()
testSnapshots()
