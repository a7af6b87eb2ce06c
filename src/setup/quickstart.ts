import { spawnSync } from 'node:child_process'
import { release } from 'node:os'
import { fileURLToPath } from 'node:url'

/*
 * The first thing a newcomer runs: set-up, then one container in a virtual machine of its own, with the proof that
 * it runs on another kernel than the host's.
 */

const script = (path: string): string => fileURLToPath(new URL(path, import.meta.url))

function run(path: string, words: string[], stdout: 'inherit' | 'pipe'): string {
  const child = spawnSync(process.execPath, [script(path), ...words], {
    stdio: ['ignore', stdout, 'inherit'],
    encoding: 'utf8',
  })
  if (child.status !== 0) process.exit(child.status ?? 125)
  return child.stdout ?? ''
}

run('./main.js', [], 'inherit')
const command = ['run', '--rm', 'busybox', 'uname', '-r']
console.error(`\n$ npx coracle ${command.join(' ')}`)
const guest = run('../cli/main.js', command, 'pipe').trim()
console.log(`guest kernel  ${guest}`)
console.log(`host kernel   ${release()}`)
console.error(`
Next:
  npx coracle run --rm -it busybox
  npx coracle run --rm --isolation process busybox uname -r
  npx coracle doctor`)
