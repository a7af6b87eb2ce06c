import { spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { sysroot } from '../debian/index.js'
import { CoracleError } from '../errors.js'
import { guestKernel, type GuestKernel } from '../kernel/index.js'
import { paths } from '../paths.js'
import { commandScript, PORTS, settingsScript, stage2 } from './init.js'
import { labInitramfs } from './initramfs.js'
import type { LabOptions } from './options.js'
import { copyUntilMark } from './stream.js'

type Port = keyof typeof PORTS

/**
 * Boots the emulated KVM host, runs the command in it and passes its streams.
 * @param program the command's program, an absolute path
 * @returns the command's exit status, 124 when the time was up
 * @throws {@link CoracleError} HOST_TOOL when QEMU or the kernel cannot be fetched, GUEST_FAILED when the machine ends
 * before the command does
 */
export async function runEmulated(
  program: string,
  options: LabOptions,
  signal: AbortSignal,
): Promise<number> {
  const kernel = await guestKernel('generic')
  const initramfs = await labInitramfs(kernel)
  sweep()
  const folder = mkdtempSync(join(tmpdir(), `coracle-lab-${process.pid}-`))
  let qemu: ChildProcess | undefined
  const servers: Server[] = []
  try {
    const mark = randomBytes(16).toString('hex')
    writeFiles(folder, program, options, kernel, mark)
    const sockets = {} as Record<Port, Promise<Socket>>
    for (const port of Object.keys(PORTS) as Port[]) {
      const server = createServer()
      servers.push(server)
      sockets[port] = new Promise((resolve) => server.once('connection', resolve))
      await new Promise<void>((resolve) => server.listen(join(folder, port), resolve))
    }
    const { argv, env } = (await sysroot('qemu11')).command('qemu-system-x86_64')
    qemu = spawn(argv[0]!, [...argv.slice(1), ...machine(folder, kernel, initramfs, options)], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
      // Not in the terminal's process group: Ctrl-C is for us, and we end it.
      detached: true,
    })
    return await converse(qemu, sockets, folder, mark, options, signal)
  } finally {
    if (qemu) await end(qemu)
    for (const server of servers) server.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

async function end(qemu: ChildProcess): Promise<void> {
  if (qemu.pid === undefined || qemu.exitCode !== null || qemu.signalCode !== null) return
  const exit = once(qemu, 'exit')
  qemu.kill('SIGKILL')
  await exit
}

/** Removes folders of runs that were killed; their machines end themselves when we are gone. */
function sweep(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = /^coracle-lab-(\d+)-/.exec(name)?.[1]
    if (pid === undefined || existsSync(`/proc/${pid}`)) continue
    try {
      rmSync(join(tmpdir(), name), { recursive: true, force: true })
    } catch {
      // another user's: theirs to sweep
    }
  }
}

function writeFiles(
  folder: string,
  program: string,
  options: LabOptions,
  kernel: GuestKernel,
  mark: string,
): void {
  const project = fileURLToPath(new URL('../../../', import.meta.url))
  const state = resolve(paths.state)
  const keep = [
    project,
    process.cwd(),
    resolve(paths.cache),
    ...options.writable.map((path) => resolve(path)),
  ]
  const below = (path: string, kept: readonly string[]): string[] =>
    [...new Set(kept.map((one) => resolve(one)))]
      .filter((one) => one.startsWith(`${path}/`) && existsSync(one))
      .sort()
      .filter((one, _, all) => !all.some((other) => one.startsWith(`${other}/`)))
  const settings = settingsScript({
    folder,
    mark,
    release: kernel.release,
    modules: kernel.modules,
    scratch: [
      { path: '/tmp', keep: below('/tmp', [...keep, state]), all: true },
      // A container's writable layer must lie on a file system that can be an overlay's upper one.
      { path: state, keep: below(state, [join(state, 'images'), ...keep]), all: false },
    ],
    writable: options.writable.map((path) => resolve(path)),
    load: ['kvm_amd', ...(options.sriov ? ['igb', 'igbvf'] : [])],
  })
  const environment = { ...process.env, CORACLE_LAB: 'emulated' }
  writeFileSync(join(folder, 'settings'), settings)
  writeFileSync(join(folder, 'stage2'), stage2)
  writeFileSync(
    join(folder, 'command'),
    commandScript(program, options.command.slice(1), process.cwd(), environment),
    { mode: 0o600 },
  )
}

function machine(folder: string, kernel: GuestKernel, initramfs: string, options: LabOptions): string[] {
  const share = (path: string, tag: string, readonly: string): string[] => [
    '-virtfs',
    `local,path=${path.replaceAll(',', ',,')},mount_tag=${tag},security_model=none,readonly=${readonly},multidevs=remap`,
  ]
  const ports = (Object.entries(PORTS) as [Port, number][]).flatMap(([port, number]) => [
    '-chardev',
    `socket,id=${port},path=${join(folder, port)}`,
    '-device',
    `virtserialport,nr=${number},chardev=${port}`,
  ])
  // Restricted: a frame to a function that is not there goes out by the wire, and somebody in the world would answer.
  const sriov = options.sriov
    ? [
        '-device',
        'intel-iommu,intremap=on,caching-mode=off',
        '-device',
        'pcie-root-port,id=rp0,slot=1',
      ].concat(['-netdev', 'user,id=n0,restrict=on', '-device', 'igb,bus=rp0,netdev=n0,romfile='])
    : []
  return [
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max,+svm,la57=off', '-smp', String(options.cpus)],
    ...[
      '-M',
      options.sriov ? 'q35,kernel-irqchip=split' : 'q35',
      '-m',
      `${Math.floor(options.memory / 1024 ** 2)}M`,
    ],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-serial', `file:${join(folder, 'console')}`],
    ...['-kernel', kernel.vmlinux, '-initrd', initramfs],
    '-append',
    // On a busy machine the emulated timer may be late for the kernel's look at it at boot, which then panics.
    `console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on mitigations=off nokaslr cryptomgr.notests no_timer_check ` +
      `${options.sriov ? 'intel_iommu=on iommu=pt ' : ''}coracle.lab=${folder}`,
    ...share('/', 'host', 'on'),
    ...options.writable.flatMap((path, index) => share(resolve(path), `w${index}`, 'off')),
    ...['-device', 'virtio-serial-pci'],
    ...ports,
    ...sriov,
  ]
}

/** Passes the streams until the command's status comes. */
async function converse(
  qemu: ChildProcess,
  sockets: Record<Port, Promise<Socket>>,
  folder: string,
  mark: string,
  options: LabOptions,
  signal: AbortSignal,
): Promise<number> {
  let complaints = ''
  qemu.stderr!.setEncoding('utf8').on('data', (text: string) => (complaints += text))
  const gone = new Promise<never>((_, reject) => {
    qemu.on('error', reject)
    qemu.on('close', () => {
      reject(
        new CoracleError('GUEST_FAILED', `the lab's machine ended early: ${lastWords(folder, complaints)}`),
      )
    })
  })
  let timer: NodeJS.Timeout | undefined
  const ended = new Promise<number>((resolve) => {
    timer = setTimeout(() => {
      process.stderr.write(`lab: the time limit of ${options.timeout} s is up (--timeout)\n`)
      resolve(124)
    }, options.timeout * 1000)
    signal.addEventListener('abort', () => {
      resolve(130)
    })
  })
  const finished = async (): Promise<number> => {
    const [control, stdin, stdout, stderr] = await Promise.all([
      sockets.control,
      sockets.stdin,
      sockets.stdout,
      sockets.stderr,
    ])
    for (const socket of [control, stdin, stdout, stderr]) socket.on('error', () => undefined)
    process.stdin.pipe(stdin)
    const end = Buffer.from(mark)
    const [, , status] = await Promise.all([
      copyUntilMark(stdout, process.stdout, end),
      copyUntilMark(stderr, process.stderr, end),
      statusFrom(control),
    ])
    return status
  }
  try {
    return await Promise.race([finished(), gone, ended])
  } finally {
    clearTimeout(timer)
    gone.catch(() => undefined)
    process.stdin.unpipe()
    process.stdin.destroy()
    if (options.console) process.stderr.write(readConsole(folder))
  }
}

function statusFrom(control: Socket): Promise<number> {
  return new Promise((resolve) => {
    let text = ''
    control.setEncoding('latin1').on('data', (part: string) => {
      text += part
      const status = /^exit (\d+)\n/m.exec(text)?.[1]
      if (status !== undefined) resolve(Number(status))
    })
  })
}

function readConsole(folder: string): string {
  try {
    return readFileSync(join(folder, 'console'), 'utf8')
  } catch {
    return ''
  }
}

function lastWords(folder: string, complaints: string): string {
  const lines = `${readConsole(folder)}\n${complaints}`.split('\n').map((line) => line.trim())
  return lines.filter(Boolean).slice(-3).join(' | ') || 'it said nothing'
}
