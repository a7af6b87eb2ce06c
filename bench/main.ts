import { type Bench, Skip, describeAim, verdict } from './bench.js'
import { benches } from './registry.js'

/** `npm run bench [name…]`: one line a bench. The exit status is 1 only where a bench failed to run. */
const names = process.argv.slice(2)
const unknown = names.filter((name) => !benches.some((bench) => bench.name === name))
if (unknown.length > 0) {
  console.error(
    `no bench is named ${unknown.join(', ')}: there are ${benches.map((each) => each.name).join(', ')}`,
  )
  process.exit(2)
}
const chosen = benches.filter((bench) => names.length === 0 || names.includes(bench.name))
const width = Math.max(5, ...chosen.map((bench) => bench.name.length))
const row = (name: string, ratio: string, aim: string, rest: string): void =>
  console.log(`${name.padEnd(width)}  ${ratio.padStart(8)}  ${aim.padStart(8)}  ${rest}`.trimEnd())

async function measure({ name, what, aim, run }: Bench): Promise<void> {
  try {
    const { ratio, note } = await run()
    row(
      name,
      ratio.toFixed(2),
      describeAim(aim),
      `${verdict(ratio, aim)}: ${what}${note === undefined ? '' : ` (${note})`}`,
    )
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    if (!(error instanceof Skip)) process.exitCode = 1
    row(name, '-', describeAim(aim), `${error instanceof Skip ? 'skipped' : 'failed'}: ${message}`)
  }
}

row('bench', 'ratio', 'aim', '')
for (const bench of chosen) await measure(bench)
