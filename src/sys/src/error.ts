import { constants } from 'node:os'
import { errno } from './libc.js'

const names = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]))
// asm-generic/errno-base.h; the one that Node leaves out and that callers look at.
names.set(15, 'ENOTBLK')

/**
 * A system call that failed. `code` is errno's name (`ENOENT`), as in Node's own errors; `syscall` is the
 * call's name; `detail` says on what, for the reader.
 */
export class SysError extends Error {
  readonly code: string
  override readonly name = 'SysError'
  constructor(
    readonly errno: number,
    readonly syscall: string,
    readonly detail = '',
  ) {
    const code = names.get(errno) ?? `E${errno}`
    super(`${code}: ${syscall}${detail === '' ? '' : ` ${detail}`}`)
    this.code = code
  }
}

/**
 * Turns the -1 of a system call into a {@link SysError}, and passes any other result on.
 * @throws {@link SysError}
 */
export function check(result: number | bigint, syscall: string, detail?: string): number {
  const value = Number(result)
  if (value === -1) throw new SysError(errno(), syscall, detail)
  return value
}

/** Like {@link check}, but yields -1 where a non-blocking call would have blocked or was interrupted. */
export function checkAgain(result: number | bigint, syscall: string): number {
  const value = Number(result)
  if (value !== -1) return value
  const code = errno()
  if (code === constants.errno.EAGAIN || code === constants.errno.EINTR) return -1
  throw new SysError(code, syscall)
}
