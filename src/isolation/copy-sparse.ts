import { Fd, O_RDONLY, SysError } from '@coracle/sys'
import { run } from '../debian/run.js'
import { CoracleError } from '../errors.js'

/**
 * Copies a file, holes and all, onto the disk: as one that shares its blocks with the first where the file system can
 * (FICLONE), else by what is no hole.
 * @throws CoracleError HOST_TOOL with the reason, such as a full disk; what was copied by then stays
 */
export async function copySparse(from: string, to: string): Promise<void> {
  const { status, stderr } = await run(['cp', '--reflink=auto', '--sparse=auto', '--', from, to], {
    env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', LC_ALL: 'C' },
  })
  if (status !== 0)
    throw new CoracleError('HOST_TOOL', `cannot copy ${from}: ${stderr.trim().split('\n').at(-1)}`)
  try {
    using file = Fd.open(to, O_RDONLY)
    file.sync()
  } catch (error) {
    if (!(error instanceof SysError)) throw error
    throw new CoracleError('HOST_TOOL', `cannot copy ${from}: ${error.message}`, { cause: error })
  }
}
