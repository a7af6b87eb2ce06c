import { CoracleError } from '../errors.js'

/**
 * Turns what crun said, on the host or in a guest, into the error that a user knows from Docker: a command that is
 * not there is 127, one that cannot be run is 126, anything else is ours, 125.
 * @param command the first of the process's arguments
 */
export function crunError(message: string, command: string): CoracleError {
  const lower = message.toLowerCase()
  if (/executable file .* not found/.test(lower))
    return new CoracleError(
      'COMMAND_NOT_FOUND',
      command.includes('/')
        ? `exec: "${command}": stat ${command}: no such file or directory`
        : `exec: "${command}": executable file not found in $PATH`,
    )
  if (/^open executable|^exec|exec container process/.test(lower)) {
    if (lower.includes('no such file'))
      return new CoracleError('COMMAND_NOT_FOUND', `exec: "${command}": no such file or directory`)
    const reason = lower.includes('format')
      ? 'exec format error'
      : lower.includes('not permitted') || lower.includes('is a directory')
        ? 'is a directory or no program'
        : 'permission denied'
    return new CoracleError('COMMAND_NOT_EXECUTABLE', `exec: "${command}": ${reason}`)
  }
  return new CoracleError('SANDBOX_FAILED', `crun: ${message}`)
}
