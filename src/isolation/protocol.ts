import { CoracleError, ERRORS, type ErrorCode } from '../errors.js'
import type { PathStat } from './archive.js'
import type { ProcessList } from './processes.js'
import type { SandboxStats } from './stats.js'
import type {
  AttachOptions,
  ExecSpec,
  ExecState,
  SandboxExit,
  SandboxInterface,
  SandboxLimits,
} from './sandbox.js'

/*
 * What goes over a monitor's control socket: one request a connection, one line of JSON, answered by one line of
 * JSON. After the answer to `attach`, `exec-start`, `archive-read` and `archive-write` the connection is the stream itself. The answer to `wait` comes when the
 * workload has ended; that connection stays open until the monitor is gone too.
 *
 * `snapshot` is answered by frames alone: u32 kind, u32 length, u64 offset, all little-endian, and as many bytes. They
 * are BEGIN, from which on the machine stands still, with its memory's size as the offset; MEMORY, in order; STATE, after
 * which whoever asked copies what else belongs to it and sends a byte, for the machine to go on; and END. With `stay` it stands still until `resume`. In place of any
 * FAILED, an error as JSON, is the last.
 */

/** A request line. */
export type Request =
  | { op: 'state' | 'wait' | 'destroy' | 'stats' | 'processes' | 'machine' }
  | { op: 'start'; still: boolean }
  | { op: 'pause' | 'resume' }
  | { op: 'kill'; signal: number }
  | { op: 'snapshot'; stay: boolean }
  | { op: 'update'; limits: SandboxLimits }
  | { op: 'interfaces'; interfaces: readonly SandboxInterface[] }
  | { op: 'resize'; width: number; height: number }
  | ({ op: 'attach' } & AttachOptions)
  | { op: 'exec-create'; spec: ExecSpec }
  | ({ op: 'exec-start'; id: string; detach: boolean } & AttachOptions)
  | { op: 'exec-state' | 'exec-wait'; id: string }
  | { op: 'exec-kill'; id: string; signal: number }
  | { op: 'exec-resize'; id: string; width: number; height: number }
  | { op: 'archive-stat'; path: string }
  | { op: 'archive-read'; path: string; flags: number; still: boolean }
  | { op: 'archive-write'; path: string; flags: number }

/** Where a sandbox is in its life. */
export type SandboxStatus = 'created' | 'starting' | 'running' | 'ended'

/** The answer to `state`. */
export interface SandboxState {
  readonly status: SandboxStatus
  /** The monitor's process id as the host counts. */
  readonly pid: number
}

/** What a request is answered with; of `machine` it is a description as plain data. */
export type Result =
  SandboxState | SandboxExit | ExecState | SandboxStats | ProcessList | PathStat | object | null

/** A response line. */
export type Response = { result: Result } | { error: { code: ErrorCode; message: string } }

/** A line longer than this is no request or response of ours. */
export const MAX_LINE = 1024 * 1024

/** The frames of a snapshot. */
export const SNAPSHOT_FRAME = 16
export const BEGIN = 1
export const MEMORY = 2
export const STATE = 3
export const END = 4
export const FAILED = 5

/** An error in the form that crosses the socket. */
export function describeError(error: unknown): { code: ErrorCode; message: string } {
  if (error instanceof CoracleError) return { code: error.code, message: error.message }
  const message = error instanceof Error ? error.message : String(error)
  return { code: 'SANDBOX_FAILED', message }
}

/** The error that {@link describeError} described. */
export function restoreError({ code, message }: { code: string; message: string }): CoracleError {
  return new CoracleError(code in ERRORS ? (code as ErrorCode) : 'INTERNAL', message)
}

/** Length of the header before each piece of output (Docker Engine API, "Stream format"). */
export const FRAME_HEADER = 8
export const STDOUT = 1
export const STDERR = 2
export type OutputStream = typeof STDOUT | typeof STDERR

/** `[stream, 0, 0, 0, length as u32 big-endian]`. */
export function frameHeader(stream: OutputStream, length: number): Buffer {
  const header = Buffer.alloc(FRAME_HEADER)
  header[0] = stream
  header.writeUInt32BE(length, 4)
  return header
}
