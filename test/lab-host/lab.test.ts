import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const main = fileURLToPath(new URL('../../src/lab/main.js', import.meta.url))

interface Result {
  status: number | null
  stdout: Buffer
  stderr: string
}

function lab(
  words: string[],
  {
    input = Buffer.alloc(0),
    cwd = process.cwd(),
    env = {},
    onOutput = (_: () => void): void => undefined,
  } = {},
): Promise<Result> {
  const child = spawn(process.execPath, [main, ...words], { cwd, env: { ...process.env, ...env } })
  const stdout: Buffer[] = []
  let stderr = ''
  child.stdout.on('data', (chunk: Buffer) => {
    stdout.push(chunk)
    onOutput(() => child.kill('SIGINT'))
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  return new Promise((resolve) =>
    child.on('close', (status) => {
      resolve({ status, stdout: Buffer.concat(stdout), stderr })
    }),
  )
}

/** Machines of the lab whose folder has gone: nobody will end them. */
const orphans = (): string[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => {
      try {
        const folder = /coracle\.lab=([^\s\0]+)/.exec(readFileSync(`/proc/${name}/cmdline`, 'latin1'))?.[1]
        return folder !== undefined && !existsSync(folder)
      } catch {
        return false
      }
    })

t.test('a command on an emulated KVM host', async (t) => {
  const folder = t.testdir({ kept: {}, 'in.bin': randomBytes(1 << 20) })
  const input = readFileSync(join(folder, 'in.bin'))
  const probe = fileURLToPath(new URL('probe.js', import.meta.url))
  const script = `
    test "$PWD" = ${folder} || echo "in $PWD" >&2
    test "$ODD" = "a'b c" || echo "ODD is $ODD" >&2
    ${process.execPath} ${probe} >&2
    echo gone > vanishes; echo stays > kept/file
    sleep 600 & cat; printf over >&2; exit 7`
  const { status, stdout, stderr } = await lab(
    ['--emulated', '--timeout', '300', '--writable', join(folder, 'kept'), '--', 'sh', '-c', script],
    { input, cwd: folder, env: { ODD: "a'b c" } },
  )
  t.equal(status, 7, 'the exit status passes through')
  t.ok(stdout.equals(input), `stdin came back as stdout, ${stdout.length} bytes`)
  t.match(stderr, /^lab: an emulated KVM host/)
  const probed = stderr.split('\n').find((line) => line.startsWith('{'))
  t.match(JSON.parse(probed ?? '{}'), {
    svm: true,
    vm: true,
    devices: ['/dev/loop-control', '/dev/net/tun', '/dev/vhost-net', '/dev/vhost-vsock', '/dev/vfio/vfio'],
    controllers: /cpu .*memory pids/,
  })
  t.ok(stderr.endsWith('over'), 'stderr is apart')
  t.equal(stderr.trim().split('\n').length, 3, stderr)
  t.notOk(existsSync(join(folder, 'vanishes')))
  t.equal(readFileSync(join(folder, 'kept/file'), 'utf8'), 'stays\n')
})

t.test('an end from outside leaves nothing', async (t) => {
  const before = readdirSync(tmpdir()).filter((name) => name.startsWith('coracle-lab-'))
  const interrupted = await lab(['--emulated', 'sh', '-c', 'echo up; sleep 600'], {
    onOutput: (interrupt) => {
      interrupt()
    },
  })
  t.equal(interrupted.status, 130)
  const late = await lab(['--emulated', '--timeout', '0.5', 'sleep', '600'])
  t.equal(late.status, 124)
  t.match(late.stderr, /time limit of 0\.5 s/)
  t.strictSame(
    readdirSync(tmpdir()).filter((name) => name.startsWith('coracle-lab-') && !before.includes(name)),
    [],
  )
  t.strictSame(orphans(), [])
})

t.test('mistakes are told before anything boots', async (t) => {
  for (const [words, status, message] of [
    [['no-such-program'], 127, /no-such-program: command not found/],
    [[fileURLToPath(import.meta.url)], 126, /not executable/],
    [['--memory', '3 potatoes', 'true'], 125, /--memory 3 potatoes/],
    [['--sriov', '--memory', '4g', 'true'], 125, /--memory 4g: with --sriov give at most 2800m/],
    [['--cpus', '0', 'true'], 125, /--cpus/],
    [['--frob', 'true'], 125, /frob/],
    [[], 125, /which COMMAND/],
  ] as const) {
    const result = await lab([...words])
    t.equal(result.status, status, words.join(' '))
    t.match(result.stderr, message)
  }
  const help = await lab(['--help'])
  t.equal(help.status, 0)
  t.match(String(help.stdout), /--writable[^]*Examples/)
})
