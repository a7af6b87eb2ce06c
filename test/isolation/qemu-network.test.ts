import t from 'tap'
import { testNetwork } from './network.js'

if (process.getuid?.() === 0) testNetwork('qemu', 10_000_000)
else t.plan(0, 'the sandboxes of these tests need root')
