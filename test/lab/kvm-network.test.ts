import { testNetwork } from '../isolation/network.js'

testNetwork('kvm', 300_000)
