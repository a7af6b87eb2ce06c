import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import t from 'tap'
import { sysroot, toolCommand } from '../../src/debian/index.js'
import { launchSandbox, reap, type Sandbox, type SandboxSpec } from '../../src/isolation/index.js'
import { cgroupFolders } from '../../src/isolation/process/cgroup.js'

/* Sandboxes for the tests of isolation: layers of busybox, specs, and what is left of a sandbox. */

const scratch = mkdtempSync(join(tmpdir(), 'coracle-isolation-'))
export const runs = mkdtempSync('/run/coracle-test-')
t.teardown(() => {
  rmSync(scratch, { recursive: true, force: true })
  rmSync(runs, { recursive: true, force: true })
})

const made: SandboxSpec[] = []
// One that a failed test left would keep the whole file from its end.
t.afterEach(async (test) => {
  if (test.parent === t) for (const spec of made.splice(0)) await reap(spec)
})

/** Two layers: busybox, and one above it that replaces a file. */
async function makeLayers(): Promise<SandboxSpec['layers']> {
  const { root } = await sysroot('tools')
  const base = join(scratch, 'base')
  for (const folder of ['bin', 'proc', 'dev', 'etc', 'tmp'])
    mkdirSync(join(base, folder), { recursive: true })
  const busybox = ['usr/bin/busybox', 'bin/busybox']
    .map((path) => join(root, path))
    .find((path) => existsSync(path))!
  copyFileSync(busybox, join(base, 'bin/busybox'))
  for (const name of [
    'sh',
    'cat',
    'sha256sum',
    'sleep',
    'stty',
    'true',
    'head',
    'ls',
    'hostname',
    'ip',
    'grep',
  ])
    symlinkSync('busybox', join(base, 'bin', name))
  writeFileSync(join(base, 'etc/plain'), 'no program\n')
  writeFileSync(join(base, 'etc/which'), 'lower\n')
  // By an absolute link, which must lead to the image's file and not to the host's.
  mkdirSync(join(base, 'etc/lists'))
  symlinkSync('/etc/lists/passwd', join(base, 'etc/passwd'))
  writeFileSync(join(base, 'etc/lists/passwd'), 'root:x:0:0::/:/bin/sh\napp:x:1234:50::/:/bin/sh\n')
  writeFileSync(join(base, 'etc/group'), 'root:x:0:\nstaff:x:50:\nextra:x:77:other,app\n')
  const upper = join(scratch, 'above')
  mkdirSync(join(upper, 'etc'), { recursive: true })
  writeFileSync(join(upper, 'etc/which'), 'upper\n')
  const { argv, env } = await toolCommand('mkfs.erofs')
  return [base, upper].map((folder) => {
    const path = `${folder}.erofs`
    execFileSync(argv[0]!, [...argv.slice(1), '-T0', path, folder], {
      env: { ...process.env, ...env },
      stdio: 'ignore',
    })
    const size = Math.ceil(statSync(path).size / 2 ** 21) * 2 ** 21
    truncateSync(path, size)
    return { diffId: `sha256:${'0'.repeat(64)}`, path, size }
  })
}

/** Of every sandbox made here. */
const layers = await makeLayers()

export function specOf(args: string[], more: Partial<SandboxSpec> = {}): SandboxSpec {
  const id = randomBytes(32).toString('hex')
  const spec: SandboxSpec = {
    id,
    ...chosen,
    layers,
    bundle: {
      ociVersion: '1.0.2',
      process: { user: { uid: 0, gid: 0 }, args, env: ['PATH=/bin', 'TERM=xterm'], cwd: '/' },
      mounts: [
        { destination: '/proc', type: 'proc', source: 'proc' },
        { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
        {
          destination: '/dev/pts',
          type: 'devpts',
          source: 'devpts',
          options: ['newinstance', 'ptmxmode=0666'],
        },
      ],
    },
    tty: false,
    openStdin: false,
    stdinOnce: false,
    memory: 0,
    cpus: 0,
    hostname: 'box',
    diskSize: 0,
    stateDirectory: join(scratch, 'state', id),
    runDirectory: join(runs, id.slice(0, 12)),
    ...more,
  }
  made.push(spec)
  return spec
}

/** What the file's tests run in. */
let chosen: Pick<SandboxSpec, 'isolation' | 'hypervisor'> = { isolation: 'process' }

/** Makes {@link specOf} choose this isolation from now on. */
export function choose(isolation: typeof chosen): void {
  chosen = isolation
}

/** A file of the sandbox's cgroup on the host, whatever hierarchy has it. */
export function cgroupFile(spec: SandboxSpec, name: string): string | undefined {
  const path = cgroupFolders(spec)
    .map((folder) => join(folder, name))
    .find(existsSync)
  return path === undefined ? undefined : readFileSync(path, 'utf8').trim()
}

/** What a sandbox can leave behind. */
export function traces(spec: SandboxSpec): string[] {
  const found: string[] = []
  // Where it lay in one of its own, that must be gone too.
  const [, top = `coracle-${spec.id}`] = spec.cgroupParent?.split('/') ?? []
  for (const name of readdirSync('/sys/fs/cgroup', { recursive: false, encoding: 'utf8' }))
    if (existsSync(`/sys/fs/cgroup/${name}/${top}`)) found.push(`cgroup ${name}`)
  if (existsSync(`/sys/fs/cgroup/${top}`)) found.push('cgroup')
  if (readFileSync('/proc/self/mountinfo', 'utf8').includes(spec.id.slice(0, 12))) found.push('mount')
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)))
    try {
      if (readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(spec.id)) found.push(`process ${pid}`)
      else if (readFileSync(`/proc/${pid}/cgroup`, 'utf8').includes(spec.id)) found.push(`member ${pid}`)
    } catch {
      // It went while we looked.
    }
  if (existsSync(spec.runDirectory)) found.push('run folder')
  return found
}

export interface Output {
  1: Buffer
  2: Buffer
}

/** Takes Docker's frames apart until the stream ends. */
export async function collect(stream: Duplex): Promise<Output> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk as Buffer)
  const all = Buffer.concat(chunks)
  const parts: Record<1 | 2, Buffer[]> = { 1: [], 2: [] }
  for (let at = 0; at < all.length;) {
    const length = all.readUInt32BE(at + 4)
    parts[all[at] as 1 | 2].push(all.subarray(at + 8, at + 8 + length))
    at += 8 + length
  }
  return { 1: Buffer.concat(parts[1]), 2: Buffer.concat(parts[2]) }
}

export const OUTPUT = { stdin: false, stdout: true, stderr: true }

export async function run(
  spec: SandboxSpec,
  input?: Buffer,
): Promise<Output & { exitCode: number; error?: string }> {
  const sandbox = await launchSandbox(spec)
  const stream = await sandbox.attach({ ...OUTPUT, stdin: input !== undefined })
  const output = collect(stream)
  stream.end(input)
  await sandbox.start()
  const exit = await sandbox.wait()
  return { ...(await output), ...exit }
}

/** Resolves with what the stream has shown, frame headers and all, once `text` is in it. */
export function shown(stream: Duplex, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let seen = ''
    stream.on('data', (chunk: Buffer) => {
      seen += chunk.toString('latin1')
      if (seen.includes(text)) resolve(seen)
    })
    stream.on('end', () => reject(new Error(`ended with ${JSON.stringify(seen)}`)))
  })
}

export async function running(
  args: string[],
  more: Partial<SandboxSpec> = {},
): Promise<{ spec: SandboxSpec; sandbox: Sandbox }> {
  const spec = specOf(['sh', '-c', `echo up; ${args.join(' ')}`], more)
  const sandbox = await launchSandbox(spec)
  const stream = await sandbox.attach(OUTPUT)
  const up = shown(stream, 'up')
  await sandbox.start()
  await up
  stream.destroy()
  return { spec, sandbox }
}
