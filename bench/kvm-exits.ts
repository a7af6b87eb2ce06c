import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CONTINUE, type ExitHandler, POWER_OFF, type Verdict, describeEnd } from '../src/kvm/index.js'
import { CONTROL_SIZE } from '../src/kvm/vcpu-control.js'
import { runVcpu } from '../src/kvm/vcpu-loop.js'
import { assemble, newMachine, noKvm } from '../test/kvm/guest.js'
import { type Bench, Skip, median } from './bench.js'

const GUEST = 'port-loop'
const EXITS = 100_000
const ROUNDS = 7

/** Does what the C loop does: adds up what is written, answers reads with a count. */
class Counter implements ExitHandler {
  #left = EXITS
  /** Kept, so that the addition is not optimized away. */
  sum = 0
  access(
    _space: number,
    _address: number,
    _size: number,
    isWrite: boolean,
    data: DataView,
    offset: number,
  ): Verdict {
    if (isWrite) this.sum += data.getUint8(offset)
    else data.setUint8(offset, this.#left & 0xff)
    return --this.#left === 0 ? POWER_OFF : CONTINUE
  }
}

function ours(): number {
  using machine = newMachine(GUEST)
  const control = new SharedArrayBuffer(CONTROL_SIZE)
  const from = process.hrtime.bigint()
  const end = runVcpu(machine.vcpu, new Counter(), control, () => undefined)
  const time = Number(process.hrtime.bigint() - from)
  if (end.kind !== 'power-off') throw new Error(describeEnd(end))
  return time
}

export const kvmExits: Bench = {
  name: 'kvm-exits',
  what: 'KVM port-I/O exits a second, our loop / a C loop',
  aim: { atLeast: 0.5 },
  async run() {
    const missing = noKvm()
    if (missing !== false) throw new Skip(missing)
    const folder = mkdtempSync(join(tmpdir(), 'coracle-bench-'))
    try {
      const program = join(folder, 'kvm-exits')
      const guest = join(folder, 'guest')
      writeFileSync(guest, assemble(GUEST))
      const source = fileURLToPath(new URL('../../bench/kvm-exits.c', import.meta.url))
      execFileSync('cc', ['-O2', '-o', program, source])
      const peer = (): number => parseInt(execFileSync(program, [guest, String(EXITS)], { encoding: 'utf8' }))
      // One round each to warm up; then in turns, so that a slow spell of the machine hits both.
      ours()
      peer()
      const ratios = Array.from({ length: ROUNDS }, () => peer() / ours())
      return { ratio: median(ratios), note: `median of ${ROUNDS} rounds of ${EXITS} exits` }
    } finally {
      rmSync(folder, { recursive: true })
    }
  },
}
