import { testNetwork } from '../isolation/network.js'

testNetwork('kvm', 1_000_000)
