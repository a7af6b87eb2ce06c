import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Host } from '../e2e/host.js'

/*
 * Root of a guest turns on the guest's devices, hostile-driver.c says how, while a neighbour works beside it. Guest and
 * devices live through it.
 */
const SOURCE = fileURLToPath(new URL('../../../test/lab/hostile-driver.c', import.meta.url))
const ATTACK = 'cat > /tmp/driver && chmod 755 /tmp/driver && exec /tmp/driver quiet 1 150'
const COUNT = 'i=0; while :; do i=$((i + 1)); echo $i > /count; sleep 1; done'

t.test('a guest that turns on its devices', { timeout: 900_000 }, async (t) => {
  const host = await Host.create()
  t.teardown(async () => {
    await host.coracle(['rm', '-f', 'neighbour'])
    host.remove()
  })
  const folder = t.testdir({ share: { file: 'of the host' } })
  const binary = join(folder, 'hostile-driver')
  execFileSync(process.env['CC'] ?? 'cc', ['-O1', '-static', '-o', binary, SOURCE])
  const run = (words: string[], script: string, stdin?: Buffer): ReturnType<Host['coracle']> =>
    host.coracle(['run', '--hypervisor', 'kvm', ...words, 'busybox', 'sh', '-c', script], stdin)

  const neighbour = await run(['-d', '--name', 'neighbour'], COUNT)
  t.equal(neighbour.status, 0, neighbour.stderr)
  /** What the neighbour has counted to; it reads and writes its disk, and speaks over vsock. */
  const counted = async (): Promise<number> => {
    const { status, stdout, stderr } = await host.coracle(['exec', 'neighbour', 'cat', '/count'])
    t.equal(status, 0, stderr)
    return Number(stdout.toString())
  }
  const before = await counted()

  const rights = ['--cap-add', 'ALL', '--security-opt', 'seccomp=unconfined']
  const share = ['-v', `${join(folder, 'share')}:/share`]
  const { status, stdout, stderr } = await run(
    ['--rm', '-i', ...rights, ...share],
    ATTACK,
    readFileSync(binary),
  )
  t.equal(status, 0, stderr)
  // Network adapter, random numbers, shared folder: the kernel's driver takes each again.
  for (const type of [1, 4, 26])
    t.match(stdout.toString(), new RegExp(`^device (\\S+) type ${type}\nbound \\1$`, 'm'))
  const after = await counted()
  t.ok(after > before, `the neighbour goes on: ${before}, ${after}`)
})
