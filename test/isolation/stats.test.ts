import fc from 'fast-check'
import t from 'tap'
import { hostCpu, parseUsage, processMemory, splitFiles } from '../../src/isolation/stats.js'

/** As Linux 6.1 writes them. */
const ANSWER = `=cpu.stat
usage_usec 2500
user_usec 1500
system_usec 1000
nr_periods 4
nr_throttled 3
throttled_usec 20
=memory.current
1048576
=pids.current
3
=pids.max
max
=io.stat
254:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0
7:1
=dev
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    2000      20    1    2    0     0          0         0     3000      30    3    4    0     0       0          0
=memory.stat
anon 4096
inactive_file 8192
=meminfo
MemTotal:         200000 kB
MemFree:            1000 kB
MemAvailable:       2000 kB
Buff`

t.test("a guest's figures", (t) => {
  const usage = parseUsage(splitFiles(ANSWER))
  t.same(usage, {
    cpu: {
      total: 2_500_000,
      user: 1_500_000,
      system: 1_000_000,
      periods: 4,
      throttledPeriods: 3,
      throttledTime: 20_000,
    },
    memory: { usage: 1 << 20, detail: { anon: 4096, inactive_file: 8192 }, available: 2_048_000 },
    pids: { current: 3, limit: 0 },
    block: [
      { major: 254, minor: 0, readBytes: 4096, writeBytes: 512, reads: 2, writes: 1 },
      { major: 7, minor: 1, readBytes: 0, writeBytes: 0, reads: 0, writes: 0 },
    ],
    networks: {
      eth0: {
        ...{ rxBytes: 2000, rxPackets: 20, rxErrors: 1, rxDropped: 2 },
        ...{ txBytes: 3000, txPackets: 30, txErrors: 3, txDropped: 4 },
      },
    },
  })
  t.end()
})

t.test('whatever a guest answers, it gives numbers, and soon', (t) => {
  const numbers = (value: unknown): boolean =>
    typeof value === 'object' && value !== null
      ? Object.values(value).every(numbers)
      : typeof value === 'number' && value >= 0
  const line = fc.oneof(
    fc.constantFrom(...ANSWER.split('\n')),
    fc.constantFrom('=dev', '=io.stat', '__proto__ 1', '__proto__: 1'),
    fc.string({ unit: 'binary', maxLength: 60 }),
  )
  fc.assert(
    fc.property(fc.array(line, { maxLength: 40 }), (lines) =>
      numbers(parseUsage(splitFiles(lines.join('\n')))),
    ),
    { numRuns: 500 },
  )
  // What an expression with two ways to match the same digits would look at for ever.
  for (const piece of ['1', ' 1', '1 ', ' ', 'a', '=', '\n', 'rbytes='])
    for (const name of ['dev', 'io.stat', 'cpu.stat', 'memory.stat', 'pids.current'])
      t.ok(numbers(parseUsage(new Map([[name, `eth0:${piece.repeat(4000 / piece.length)}x`]]))))
  const many = Array.from({ length: 1000 }, (_, i) => ` e${i}:${' 1'.repeat(16)}`).join('\n')
  t.equal(Object.keys(parseUsage(new Map([['dev', many]])).networks).length, 64)
  t.end()
})

t.test('of the host', (t) => {
  const { cpu, cpus } = hostCpu()
  t.ok(cpu > 1e9 && cpus >= 1)
  t.ok(processMemory('self').own > 1 << 20)
  t.end()
})
