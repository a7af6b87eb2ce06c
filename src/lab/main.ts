#!/usr/bin/env node
import { spawn } from 'node:child_process'
import { accessSync, constants, statSync } from 'node:fs'
import { constants as os } from 'node:os'
import { delimiter, resolve } from 'node:path'
import { CoracleError } from '../errors.js'
import { hasHardwareKvm } from './hardware.js'
import { runEmulated } from './machine.js'
import { parseOptions, type LabOptions } from './options.js'

/** The file that `name` stands for, as a shell finds it: the emulated host has the same files. */
function findProgram(name: string): string {
  const candidates = name.includes('/')
    ? [resolve(name)]
    : (process.env['PATH'] ?? '').split(delimiter).map((folder) => resolve(folder, name))
  const files = candidates.filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile())
  if (files.length === 0) throw new CoracleError('COMMAND_NOT_FOUND', `${name}: command not found`)
  for (const path of files)
    try {
      accessSync(path, constants.X_OK)
      return path
    } catch {
      continue
    }
  throw new CoracleError('COMMAND_NOT_EXECUTABLE', `${files[0]!} is not executable`)
}

async function runInPlace(
  program: string,
  { command, timeout }: LabOptions,
  signal: AbortSignal,
): Promise<number> {
  const child = spawn(program, command.slice(1), {
    stdio: 'inherit',
    argv0: command[0]!,
    env: { ...process.env, CORACLE_LAB: 'hardware' },
    timeout: timeout * 1000,
  })
  signal.addEventListener('abort', () => child.kill('SIGINT'))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status, name) => {
      resolve(status ?? (name === 'SIGTERM' ? 124 : 128 + os.signals[name!]))
    })
  })
}

async function main(): Promise<number> {
  const options = await parseOptions(process.argv.slice(2))
  const program = findProgram(options.command[0]!)
  const abort = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(name, () => {
      abort.abort()
    })
  const inPlace = !options.emulated && hasHardwareKvm()
  process.stderr.write(
    inPlace
      ? `lab: this machine has hardware KVM, the command runs in place (--emulated forces the emulated host)\n`
      : `lab: an emulated KVM host (${options.cpus} CPUs, ${options.memory / 1024 ** 2} MiB)\n`,
  )
  return inPlace ? runInPlace(program, options, abort.signal) : runEmulated(program, options, abort.signal)
}

main().then(
  (status) => {
    process.exitCode = status
  },
  (error: unknown) => {
    if (!(error instanceof CoracleError)) throw error
    process.stderr.write(`lab: ${error.message}\n`)
    process.exitCode = error.exit
  },
)
