import yargs from 'yargs'

/** What `npm run lab` was asked for. */
export interface LabOptions {
  readonly command: readonly string[]
  /** Seconds until the machine is ended. */
  readonly timeout: number
  /** The machine's memory in bytes. */
  readonly memory: number
  readonly cpus: number
  /** Folders whose changes are kept. */
  readonly writable: readonly string[]
  /** Use the emulated machine also on a host with hardware KVM. */
  readonly emulated: boolean
  /** The machine with an SR-IOV network adapter and an IOMMU. */
  readonly sriov: boolean
  /** Show the machine's console. */
  readonly console: boolean
}

/**
 * All of it below 4 GiB: with more the firmware puts PCI's 64-bit windows above, and QEMU 10.0 looks at no more than the
 * lower half of a virtual function's address, which nothing answers at then.
 */
const SRIOV_MEMORY = '2800m'

const UNITS: Readonly<Record<string, number>> = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3 }

function bytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)([kmg]?)b?$/i.exec(text)
  const value = match ? Number(match[1]) * UNITS[match[2]!.toLowerCase()]! : NaN
  if (!(value >= 512 * 1024 ** 2)) throw new Error(`--memory ${text}: give at least 512m, such as 4g`)
  return Math.floor(value)
}

/** Parses the command line. Ends the process after `--help`, and with status 125 after a mistake. */
export async function parseOptions(words: string[]): Promise<LabOptions> {
  const parsed = await yargs(words)
    .scriptName('npm run lab --')
    .usage(
      '$0 [options] COMMAND [ARG...]\n\nRuns COMMAND on a KVM host: an emulated one, unless this machine is one.',
    )
    .parserConfiguration({ 'halt-at-non-option': true, 'populate--': true })
    .option('timeout', {
      number: true,
      default: 1200,
      describe: 'Seconds until the machine is ended (status 124)',
    })
    .option('memory', {
      string: true,
      defaultDescription: '4g',
      describe: `The emulated machine's memory; with --sriov at most ${SRIOV_MEMORY}`,
    })
    .option('cpus', { number: true, default: 2, describe: "The emulated machine's processors" })
    .option('writable', {
      string: true,
      array: false,
      describe: 'Keep changes below this folder (repeatable)',
    })
    .option('emulated', {
      boolean: true,
      default: false,
      describe: 'Emulate even where there is hardware KVM',
    })
    .option('sriov', {
      boolean: true,
      default: false,
      describe: 'An emulated host with an SR-IOV network adapter and an IOMMU',
    })
    .option('console', {
      boolean: true,
      default: false,
      describe: "The emulated machine's console on stderr",
    })
    .example('$0 npx coracle run --rm busybox uname -r', 'a container in a microVM on kvm')
    .example('$0 --writable /tmp/out sh -c "dmesg > /tmp/out/dmesg"', 'a file that stays')
    .example('$0 sh', 'commands from stdin')
    .epilogue('Changes to files vanish with the machine. The exit status is that of COMMAND.')
    .check(({ timeout, cpus, memory, sriov }) => {
      if (!(timeout > 0)) throw new Error('--timeout must be more than 0 seconds')
      if (!Number.isInteger(cpus) || cpus < 1 || cpus > 64) throw new Error('--cpus must be 1 to 64')
      if (bytes(memory ?? SRIOV_MEMORY) > bytes(SRIOV_MEMORY) && sriov)
        throw new Error(`--memory ${memory}: with --sriov give at most ${SRIOV_MEMORY}`)
      return true
    })
    .strictOptions()
    .fail((message, error, program) => {
      process.stderr.write(`lab: ${message || error.message}\n`)
      if (!message) throw error
      program.showHelp('error')
      process.exit(125)
    })
    .version(false)
    .help()
    .parse()
  const command = [...parsed._, ...((parsed['--'] as string[] | undefined) ?? [])].map(String)
  if (command.length === 0) {
    process.stderr.write("lab: which COMMAND? 'npm run lab -- --help' shows examples\n")
    process.exit(125)
  }
  const writable = parsed.writable as string | string[] | undefined
  return {
    command,
    timeout: parsed.timeout,
    memory: bytes(parsed.memory ?? (parsed.sriov ? SRIOV_MEMORY : '4g')),
    cpus: parsed.cpus,
    writable: writable === undefined ? [] : [writable].flat(),
    emulated: parsed.emulated || parsed.sriov,
    sriov: parsed.sriov,
    console: parsed.console,
  }
}
