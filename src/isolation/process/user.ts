import { lstatSync, readFileSync, readlinkSync, type Stats } from 'node:fs'
import { join } from 'node:path'
import { CoracleError } from '../../errors.js'
import type { OciConfig } from '../sandbox.js'

/** Who the process runs as (OCI config.md, `process.user`). */
export type ProcessUser = OciConfig['process']['user']

/** The kernel's own limit on links in one path (MAXSYMLINKS), and the most that is read of a file, in bytes. */
const MAX_LINKS = 40
const MAX_FILE = 4 << 20
const MAX_ID = 0x7fffffff

/**
 * Resolves a user as it was written, such as `app`, `app:staff`, `1000` or `1000:50`, by the image's own /etc/passwd
 * and /etc/group, as Docker does: without a group it is the user's, and every group that lists the user is added.
 * @param root the container's root file system; its links are followed inside it
 * @throws CoracleError INVALID_ARGUMENT for a name that is not there
 */
export function resolveUser(root: string, written: string): ProcessUser {
  const [name = '', group] = written.split(':')
  const passwd = entries(root, 'etc/passwd')
  const entry = passwd.find((fields) => fields[0] === name) ?? passwd.find((fields) => fields[2] === name)
  const uid = idOf(entry?.[2] ?? name)
  if (uid === undefined)
    throw new CoracleError('INVALID_ARGUMENT', `unable to find user ${name}: no such user in the image`)
  const groups = entries(root, 'etc/group')
  if (group !== undefined) {
    const gid = idOf(groups.find((fields) => fields[0] === group)?.[2] ?? group)
    if (gid === undefined)
      throw new CoracleError('INVALID_ARGUMENT', `unable to find group ${group}: no such group in the image`)
    return { uid, gid }
  }
  const gid = idOf(entry?.[3] ?? '') ?? 0
  const member = entry?.[0]
  const further = groups
    .filter((fields) => member !== undefined && (fields[3] ?? '').split(',').includes(member))
    .map((fields) => idOf(fields[2] ?? ''))
  const additionalGids = [...new Set(further)].filter((id) => id !== undefined && id !== gid) as number[]
  return additionalGids.length > 0 ? { uid, gid, additionalGids } : { uid, gid }
}

function idOf(text: string): number | undefined {
  return /^\d{1,10}$/.test(text) && Number(text) <= MAX_ID ? Number(text) : undefined
}

/** The lines of a file like /etc/passwd, by their fields; none where there is no such file. */
function entries(root: string, path: string): string[][] {
  const file = resolveInRoot(root, path)
  if (file === undefined) return []
  return readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.trim().split(':'))
}

/** Where a regular file of a root file system is on the host, its links followed as the container would see them. */
function resolveInRoot(root: string, path: string): string | undefined {
  const pending = path.split('/').reverse()
  const done: string[] = []
  let stat: Stats | undefined
  for (let links = 0; pending.length > 0;) {
    const part = pending.pop()!
    if (part === '' || part === '.') continue
    if (part === '..') {
      done.pop()
      continue
    }
    const at = join(root, ...done, part)
    stat = lstatSync(at, { throwIfNoEntry: false })
    if (stat === undefined) return undefined
    if (!stat.isSymbolicLink()) {
      done.push(part)
      continue
    }
    if (++links > MAX_LINKS) return undefined
    const target = readlinkSync(at)
    if (target.startsWith('/')) done.length = 0
    pending.push(...target.split('/').reverse())
  }
  return stat?.isFile() && stat.size <= MAX_FILE ? join(root, ...done) : undefined
}
