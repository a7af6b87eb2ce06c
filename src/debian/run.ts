import { spawn } from 'node:child_process'
import { CoracleError } from '../errors.js'

/** What a program said. */
export interface Output {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

/**
 * Runs a program without a shell and gives what it printed, whatever its status.
 * @throws {@link CoracleError} HOST_TOOL when the program is not there
 */
export async function run(
  argv: readonly string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<Output> {
  const child = spawn(argv[0]!, argv.slice(1), { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  return new Promise((resolve, reject) => {
    child.on('error', (error: NodeJS.ErrnoException) => {
      reject(error.code === 'ENOENT' ? missing(argv[0]!, error) : error)
    })
    child.on('close', (status, signal) => {
      resolve({ status: status ?? 128, stdout, stderr: signal ? `${stderr}killed by ${signal}` : stderr })
    })
  })
}

/** Runs two programs, the output of the first into the second. @returns what went wrong, or undefined */
export async function pipe(from: readonly string[], into: readonly string[]): Promise<string | undefined> {
  const first = spawn(from[0]!, from.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] })
  const second = spawn(into[0]!, into.slice(1), { stdio: [first.stdout, 'ignore', 'pipe'] })
  let stderr = ''
  const ends = [first, second].map(async (child, index) => {
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text))
    return new Promise<number>((resolve, reject) => {
      child.on('error', (error: NodeJS.ErrnoException) => {
        reject(error.code === 'ENOENT' ? missing([from, into][index]![0]!, error) : error)
      })
      child.on('close', (status) => {
        resolve(status ?? 128)
      })
    })
  })
  first.stdout.destroy()
  const statuses = await Promise.all(ends)
  return statuses.every((status) => status === 0)
    ? undefined
    : stderr.trim() || `status ${statuses.join(', ')}`
}

function missing(program: string, cause: Error): CoracleError {
  return new CoracleError(
    'HOST_TOOL',
    `${program} is not there: Coracle fetches its programs as Debian packages and needs apt, dpkg and tar ` +
      `(on Debian or Ubuntu: apt-get install apt dpkg tar debian-archive-keyring)`,
    { cause },
  )
}
