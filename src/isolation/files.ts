import { fdatasyncSync, readFileSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { Fd, O_CREAT, O_WRONLY } from '@coracle/sys'
import { snapshotFiles } from '../vmm/snapshot/files.js'
import type { SandboxExit, SandboxSpec } from './sandbox.js'

/** A file longer than this holds no exit status, in bytes. */
const MAX_EXIT = 64 * 1024

type Folders = Pick<SandboxSpec, 'stateDirectory' | 'runDirectory'>

/** The files of one sandbox, by name. The first group outlives a reboot, the second does not. */
export const sandboxFiles = (spec: Folders) => ({
  spec: join(spec.stateDirectory, 'sandbox.json'),
  /** Docker's json-file log; appended to by each start of the container. */
  log: join(spec.stateDirectory, 'container.log'),
  exit: join(spec.stateDirectory, 'exit.json'),
  /** What the monitor itself had to say: empty when all is well. */
  monitorLog: join(spec.stateDirectory, 'monitor.log'),
  /** Upper and work directory of process isolation. */
  writable: join(spec.stateDirectory, 'writable'),
  /** The writable layer of a microVM: a sparse ext4 file. */
  disk: join(spec.stateDirectory, 'writable.ext4'),
  /** What a microVM's guest was made of, as far as a snapshot needs to know. */
  guest: join(spec.stateDirectory, 'guest.json'),
  /** The guest's tools, of one that goes on from a snapshot. */
  tools: join(spec.stateDirectory, 'tools.erofs'),
  /** The last output of a microVM's console, for diagnosis. */
  console: join(spec.stateDirectory, 'console.log'),

  lock: join(spec.runDirectory, 'lock'),
  control: join(spec.runDirectory, 'control.sock'),
  /** Where a contained monitor takes further descriptors (offers.ts). */
  offers: join(spec.runDirectory, 'offers.sock'),
})

/** The files of a saved sandbox; `state` and `memory` are those of the machine. */
export const savedFiles = (folder: string) => ({
  ...snapshotFiles(folder),
  /** The writable layer. */
  disk: join(folder, 'disk'),
  /** The guest has it mapped: no other will do. */
  tools: join(folder, 'tools'),
})

/** The path of a sandbox's json-file log, as {@link sandboxFiles} names it. */
export const logPath = (spec: Folders): string => sandboxFiles(spec).log

/** Where a container's output is kept. */
export interface LogFiles {
  /** None: it is not kept. */
  readonly files: readonly string[]
  /** Bytes a file. */
  readonly maxSize?: number
  /**
   * Of files with a bound: holds how often a file was full so far, as decimal digits. The newest entries are in the file
   * whose place in the list is that number modulo their count, those before in the one before it, and so on round.
   */
  readonly turns?: string
}

export function logFiles(spec: Folders & Pick<SandboxSpec, 'log'>): LogFiles {
  const { log } = sandboxFiles(spec)
  const { files, maxSize } = spec.log ?? { files: 1 }
  const all = Array.from({ length: files }, (_, i) => (i === 0 ? log : `${log}.${i}`))
  return { files: all, ...(maxSize !== undefined && { maxSize, turns: `${log}.turns` }) }
}

/** The number in a file of {@link LogFiles.turns}; 0 for what is none. */
export const parseTurns = (text: string): number => (/^\d{1,15}\s*$/.test(text) ? Number(text) : 0)

/**
 * The exit status that the last run of this sandbox left, if it ended. A contained monitor wrote it, so it is looked
 * at as what it is: a stranger's. What is none, such as what a run begins with, is no status.
 */
export function readExit(spec: Folders): SandboxExit | undefined {
  let value: Partial<Record<keyof SandboxExit, unknown>>
  try {
    const file = sandboxFiles(spec).exit
    if (statSync(file).size > MAX_EXIT) return undefined
    value = JSON.parse(readFileSync(file, 'utf8')) as typeof value
  } catch {
    return undefined
  }
  const { exitCode, error, oomKilled, finishedAt } = value
  if (!Number.isInteger(exitCode) || (exitCode as number) < 0 || (exitCode as number) > 255) return undefined
  if (typeof finishedAt !== 'string' || Number.isNaN(Date.parse(finishedAt))) return undefined
  return {
    exitCode: exitCode as number,
    finishedAt,
    ...(typeof error === 'string' && { error }),
    ...(oomKilled === true && { oomKilled }),
  }
}

/** What a run begins with in place of its exit status: room for it, since the disk may be full when it ends. */
export const NO_EXIT = ' '.repeat(4096)

export function writeExit(spec: Folders, exit: SandboxExit): void {
  using file = Fd.open(sandboxFiles(spec).exit, O_WRONLY | O_CREAT, 0o600)
  saveExit(file.number, exit)
}

/** Writes into the room that {@link NO_EXIT} made. */
export function saveExit(fd: number, exit: SandboxExit): void {
  writeSync(fd, JSON.stringify(exit).padEnd(NO_EXIT.length), 0)
  fdatasyncSync(fd)
}

/** Now, as Docker prints times: RFC 3339 in UTC with nine digits of fraction. */
export function timestamp(): string {
  return new Date().toISOString().replace(/Z$/, '000000Z')
}
