import { open } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { CoracleError } from '../errors.js'

/**
 * An archive to be sent: a file, or stdin.
 * @param path undefined for stdin
 * @param instead what to do where stdin is a terminal
 * @throws CoracleError USAGE
 */
export async function openArchive(path: string | undefined, instead: string): Promise<Readable> {
  if (path === undefined) {
    if (process.stdin.isTTY)
      throw new CoracleError('USAGE', `there is no archive: ${instead}, or send one to stdin`)
    return process.stdin
  }
  try {
    const file = await open(path, 'r')
    if ((await file.stat()).isDirectory())
      throw Object.assign(new Error('it is a directory'), { code: 'EISDIR' })
    return file.createReadStream()
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    throw new CoracleError(
      'USAGE',
      `cannot read ${path}: ${code === 'ENOENT' ? 'there is no such file' : message}`,
    )
  }
}
