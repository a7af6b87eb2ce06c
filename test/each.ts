import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

/*
 * Runs test files one after another, each as a plain program, and prints TAP as `tap run` does, with the same closing
 * summary. In the lab tap's own runner takes two minutes to start under emulation, this a second.
 */

/** For one file, in seconds; tap's own limit for a program run by itself would be 30. */
const LIMIT = 2000
const SUMMARY = /^# \{ (.*) \}/
const KINDS = ['total', 'pass', 'fail', 'todo', 'skip'] as const
const sum: Record<string, number> = {}

console.log(`TAP version 14\n1..${process.argv.length - 2}`)
let number = 0
for (const file of process.argv.slice(2)) {
  console.log(`# Subtest: ${file}`)
  const child = spawn(process.execPath, ['--enable-source-maps', file], {
    stdio: ['ignore', 'pipe', 'inherit'],
    timeout: LIMIT * 1000,
    env: { ...process.env, TAP_TIMEOUT: String(LIMIT) },
    killSignal: 'SIGKILL',
  })
  const ended = new Promise<string>((resolve) =>
    child.on('close', (status, signal) => {
      resolve(signal ?? String(status))
    }),
  )
  let counts: string | undefined
  for await (const line of createInterface({ input: child.stdout })) {
    counts = SUMMARY.exec(line)?.[1] ?? counts
    console.log(`    ${line}`)
  }
  const status = await ended
  const found = Object.fromEntries((counts ?? '').split(', ').map((part) => part.split(': ')))
  // A file that ended badly without a failed assertion is one failure, as is one that counted nothing.
  if ((status !== '0' && !found['fail']) || counts === undefined)
    found['fail'] = Number(found['fail'] ?? 0) + 1
  for (const kind of KINDS) sum[kind] = (sum[kind] ?? 0) + Number(found[kind] ?? 0)
  const good = status === '0' && counts !== undefined
  console.log(`${good ? 'ok' : 'not ok'} ${++number} - ${file}${good ? '' : ` # ended with ${status}`}`)
  if (!good) process.exitCode = 1
}
console.log(
  `# { ${KINDS.filter((kind) => kind === 'total' || sum[kind])
    .map((kind) => `${kind}: ${sum[kind] ?? 0}`)
    .join(', ')} }`,
)
