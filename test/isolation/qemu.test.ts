import t from 'tap'
import { testGuests } from './guest.js'
import { testKills } from './kills.js'

if (process.getuid?.() === 0) {
  testGuests('qemu', 10_000_000)
  testKills(['start', 'start', 'run'])
} else t.plan(0, 'the sandboxes of these tests need root')
