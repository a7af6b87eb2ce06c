import { choose } from '../isolation/sandbox.js'
import { testKills } from '../isolation/kills.js'

choose({ isolation: 'microvm', hypervisor: 'kvm' })
testKills(['start', 'start', 'start', 'run', 'run', 'save', 'save', 'save', 'restore', 'restore'])
