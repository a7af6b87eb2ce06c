import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { hasHardwareKvm } from '../src/lab/hardware.js'
import { readTap, type Totals } from './tap-stream.js'

/*
 * The whole suite: what runs on any machine, then what needs a KVM host that boots Linux, in the lab (on a host
 * with hardware KVM the lab runs it in place). The last line is the sum, alone: `N passed, N failed, N skipped`.
 *
 *   npm test                     all of it
 *   npm test -- engine image     only files whose path has one of these words
 *   npm test -- --no-lab         without the lab (says so, and counts it as skipped)
 */

const root = fileURLToPath(new URL('../../', import.meta.url))
const tests = join(root, 'dist/test')
const words = process.argv.slice(2).filter((word) => !word.startsWith('--'))
const flags = new Set(process.argv.slice(2).filter((word) => word.startsWith('--')))

function testFiles(folder: (path: string) => boolean): string[] {
  return readdirSync(tests, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.test.js') && folder(path))
    .filter((path) => words.length === 0 || words.some((word) => path.includes(word)))
    .sort()
    .map((path) => relative(root, join(tests, path)))
}

/** tap's own runner, and ours, which starts in a second also where tap's takes minutes. */
const RUNNER = ['node_modules/tap/dist/esm/run.mjs', 'run', '--reporter=tap']
const PLAIN_RUNNER = ['dist/test/each.js']

/** The lines of what failed, to be said again at the end: it says why of itself, and stands far above. */
const failures: string[] = []
/** As {@link failures}, of files that then ran in another lab. */
const failedOnce: string[] = []

/** Of a runner, in ms: much longer than any test says nothing. */
const SILENCE = 240_000
const LABS_PER_FILE = 3
/** The lab's own status where its machine ended before the tests did: its kernel panicked. What it said is printed. */
const LAB_FAILED = 125

/**
 * Runs `files`.
 * @param prefix a command line in front of the runner, such as the lab's
 * @param patience with its silence, in ms @default for ever
 * @returns undefined where it was silent for longer, and was ended, or where the lab itself failed
 */
async function tap(
  prefix: string[],
  files: string[],
  runner = RUNNER,
  patience?: number,
): Promise<Totals | undefined> {
  if (files.length === 0) return { passed: 0, failed: 0, skipped: 0 }
  const command = [...prefix, process.execPath, ...runner, ...files]
  const child = spawn(command[0]!, command.slice(1), { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise<number | null>((resolve) => child.on('close', resolve))
  let isSilent = false
  const silence =
    patience === undefined
      ? undefined
      : setTimeout(() => {
          isSilent = true
          child.kill('SIGTERM')
        }, patience)
  // By all that it says: most of it, such as a test that passed, is not printed.
  child.stdout.on('data', () => silence?.refresh())
  let hasFailed = false
  const totals = await readTap(child.stdout, (line) => {
    if (/^\s*not ok /.test(line)) {
      hasFailed = true
      failures.push(line.trim())
    }
    console.log(line)
  })
  const status = await ended
  clearTimeout(silence)
  const isLost = isSilent || (patience !== undefined && totals === undefined && status === LAB_FAILED)
  if (isLost && !hasFailed) return undefined
  if (totals === undefined) {
    const failure = `not ok - the runner ended with status ${status} before its summary`
    failures.push(failure)
    console.log(failure)
    return { passed: 0, failed: 1, skipped: 0 }
  }
  if (status !== 0 && totals.failed === 0) totals.failed = 1
  return totals
}

/**
 * Runs a file in a lab of its own. The emulator may come to a stand (its processors do nothing any more but hand one
 * lock of QEMU's to each other, and nothing in the machine goes on), and its own kernel may panic: where no test has failed
 * that is no result, and another machine is taken.
 */
async function inLab(lab: readonly string[], file: string): Promise<Totals> {
  for (let attempt = 1; attempt <= LABS_PER_FILE; attempt++) {
    const totals = await tap([...lab], [file], PLAIN_RUNNER, SILENCE)
    if (totals) return totals
    console.log(
      `# the lab came to a stand, or to its end, over ${file}, attempt ${attempt} of ${LABS_PER_FILE}`,
    )
  }
  const failure = `not ok - ${file}: no lab held out over it`
  failures.push(failure)
  console.log(failure)
  return { passed: 0, failed: 1, skipped: 0 }
}

/**
 * Runs each file. One that fails in an emulated host runs in another one once more, and its failures stand at the end
 * all the same: the emulated processor delivers an interrupt now and then in the instant after a guest's exit, when
 * hardware holds it back (AMD APM volume 2, 15.17), which no kernel survives, that of the host as little as a guest's.
 */
async function inLabs(options: readonly string[], files: readonly string[]): Promise<Totals> {
  const all: Totals = { passed: 0, failed: 0, skipped: 0 }
  const lab = [process.execPath, 'dist/src/lab/main.js', ...options, '--']
  for (const file of files) {
    const before = failures.length
    let totals = await inLab(lab, file)
    if (totals.failed > 0 && !hasHardwareKvm()) {
      console.log(`# ${file} failed in an emulated host: once more in another`)
      failedOnce.push(file, ...failures.splice(before))
      totals = await inLab(lab, file)
    }
    all.passed += totals.passed
    all.failed += totals.failed
    all.skipped += totals.skipped
  }
  return all
}

async function step(title: string, run: () => Promise<Totals>): Promise<Totals> {
  console.log(`\n# ${title}`)
  return run()
}

async function command(words: string[]): Promise<Totals> {
  const child = spawn(words[0]!, words.slice(1), { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
  const status = await new Promise<number | null>((resolve) => child.on('close', resolve))
  return status === 0 ? { passed: 1, failed: 0, skipped: 0 } : { passed: 0, failed: 1, skipped: 0 }
}

/** The folders of tests that need a KVM host, each with a machine of its own. */
const LABS: Readonly<Record<string, { readonly title: string; readonly options: readonly string[] }>> = {
  lab: { title: 'tests on a KVM host', options: ['--memory', '8g', '--timeout', '2100'] },
  'lab-sriov': {
    title: 'tests on a KVM host with an SR-IOV adapter and an IOMMU',
    options: ['--sriov', '--timeout', '1800'],
  },
}
const isForLab = (path: string): boolean => Object.keys(LABS).some((folder) => path.startsWith(`${folder}/`))
const results: Totals[] = []

if (words.length === 0) {
  results.push(await step('types, lint, format', () => command(['npm', 'run', '--silent', 'check'])))
}
results.push(await step('set-up', () => command(['npm', 'run', '--silent', 'setup'])))
// Without the plugins that .taprc leaves out, which would load a compiler into each test; tap does it once.
results.push(await step('test runner', () => command([process.execPath, RUNNER[0]!, 'build'])))
results.push(
  await step('tests on this machine', async () => {
    const files = testFiles((path) => !isForLab(path))
    return (await tap([], files)) ?? { passed: 0, failed: 1, skipped: 0 }
  }),
)

for (const [folder, { title, options }] of Object.entries(LABS)) {
  const files = testFiles((path) => path.startsWith(`${folder}/`))
  if (flags.has('--no-lab')) {
    console.log(`\n# SKIP ${title}: --no-lab`)
    results.push({ passed: 0, failed: 0, skipped: files.length })
    continue
  }
  const lab = await step(title, () => inLabs(options, files))
  // On a KVM host nothing may be skipped: a skip there would pass for a test that never ran.
  if (lab.skipped > 0) lab.failed += lab.skipped
  results.push(lab)
}

const sum = results.reduce((a, b) => ({
  passed: a.passed + b.passed,
  failed: a.failed + b.failed,
  skipped: a.skipped + b.skipped,
}))
if (failedOnce.length > 0)
  console.log(`\n# what failed in one lab, and ran in another\n${failedOnce.join('\n')}`)
if (failures.length > 0) console.log(`\n# what failed\n${failures.join('\n')}`)
console.log(`\n${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped`)
process.exitCode = sum.failed > 0 || sum.passed === 0 ? 1 : 0
