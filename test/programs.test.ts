import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import t from 'tap'
import { Fd, socketPair } from '@coracle/sys'
import { PROGRAMS, bundleName, bundlesAreCurrent } from '../src/programs.js'
import { NODE_FLAGS } from '../src/isolation/box/config.js'
import { bundle } from '../src/setup/bundle.js'

/** Below the project, where packages are found. */
const here = fileURLToPath(new URL('./', import.meta.url))
const scratch = mkdtempSync(join(here, 'bundled-'))
t.teardown(() => rmSync(scratch, { recursive: true }))

t.test('bundles are run unless the compiler ran since', async (t) => {
  const project = join(scratch, 'project')
  const modules = pathToFileURL(join(project, 'dist/src/'))
  const set = (path: string, seconds: number): void => {
    const file = join(project, path)
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, '')
    utimesSync(file, seconds, seconds)
  }
  set('dist/.tsbuildinfo', 10)
  set('src/sys/dist/.tsbuildinfo', 10)
  t.notOk(bundlesAreCurrent(modules), 'there are none')
  set('dist/src/bundled/box.js', 11)
  t.ok(bundlesAreCurrent(modules))
  set('src/sys/dist/.tsbuildinfo', 12)
  t.notOk(bundlesAreCurrent(modules), 'a part of it was compiled since')
})

t.test("a microVM's process is whole in its bundle, its threads with it", async (t) => {
  const source = new URL('../src/', import.meta.url)
  const all = Object.entries(PROGRAMS).map(([name, path]) => [name, fileURLToPath(new URL(path, source))])
  await bundle(Object.fromEntries(all) as Record<string, string>, scratch)
  const bundles = readdirSync(scratch)
  for (const name of Object.keys(PROGRAMS)) t.ok(bundles.includes(bundleName(name)), name)
  // It reads a file of the project, from whichever folder.
  const version = execFileSync(process.execPath, [join(scratch, 'cli.mjs'), '--version'], { cwd: '/' })
  t.match(version.toString(), /^coracle \d/)
  const rejected = `
    const { readFileSync } = require('node:fs')
    const text = readFileSync(process.argv[1], 'latin1')
    const cachedData = readFileSync(process.argv[1] + '.cache')
    console.log(new vm.Script(text, { cachedData }).cachedDataRejected)`
  const words = [...NODE_FLAGS, '-e', rejected, join(scratch, 'box.bundle.js')]
  t.equal(
    execFileSync(process.execPath, words, { encoding: 'utf8' }),
    'false\n',
    'its compiled form is taken',
  )
  const [ours, theirs] = socketPair()
  using _ours: Fd = ours
  const child = spawn(process.execPath, [join(scratch, 'box.js')], {
    stdio: ['ignore', 'ignore', 'pipe', theirs.number],
  })
  theirs.close()
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (said += text))
  // It waits for a hand-over, and ends where nobody is to make one.
  ours.close()
  const [status] = (await once(child, 'close')) as [number | null]
  t.equal(status, 0, said)
})
