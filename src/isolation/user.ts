import { CoracleError } from '../errors.js'
import type { OciConfig } from './sandbox.js'

/** Who the process runs as (OCI config.md, `process.user`). */
export type ProcessUser = OciConfig['process']['user']

/** Under which the engine hands on the user as it was written: names are the image's to resolve. */
const USER_ANNOTATION = 'coracle.user'
/** The groups beside the user's, with commas between them. */
const GROUPS_ANNOTATION = 'coracle.groups'
const MAX_ID = 0x7fffffff

/** Reads a file of the container's root file system, links followed inside it; empty where there is none. */
export type ReadRootFile = (path: string) => Promise<string> | string

/** The most that is read of a file of users or groups, in bytes. */
export const MAX_USER_FILE = 1 << 20

/**
 * The process with its user resolved by the image's own files. One that is not root keeps the capabilities that it
 * may gain, but starts without any, as in Docker.
 * @throws CoracleError INVALID_ARGUMENT for a user that the image does not have
 */
export async function withUser(bundle: OciConfig, read: ReadRootFile): Promise<OciConfig['process']> {
  const { process } = bundle
  const written = bundle.annotations?.[USER_ANNOTATION]
  const user = written === undefined ? process.user : await readUser(written, bundle, read)
  return {
    ...process,
    user: { ...process.user, ...user },
    ...(process.capabilities && user.uid !== 0
      ? { capabilities: { ...process.capabilities, effective: [], permitted: [], ambient: [] } }
      : {}),
  }
}

/**
 * The user as it was written, with the groups that the bundle adds to it.
 * @throws CoracleError INVALID_ARGUMENT for a name that the image does not have
 */
export async function readUser(
  written: string,
  { annotations }: Pick<OciConfig, 'annotations'>,
  read: ReadRootFile,
): Promise<ProcessUser> {
  const groups = await read('/etc/group')
  const user = resolveUser(written, await read('/etc/passwd'), groups)
  const further = (annotations?.[GROUPS_ANNOTATION] ?? '').split(',').filter((name) => name !== '')
  if (further.length === 0) return user
  const known = entries(groups)
  const additionalGids = [...(user.additionalGids ?? []), ...further.map((name) => groupId(name, known))]
  return { ...user, additionalGids: [...new Set(additionalGids)] }
}

/**
 * Resolves a user as it was written, such as `app`, `app:staff`, `1000` or `1000:50`, by the image's own /etc/passwd
 * and /etc/group, as Docker does: without a group it is the user's, and every group that lists the user is added.
 * @param passwdText the text of /etc/passwd
 * @param groupText the text of /etc/group
 * @throws CoracleError INVALID_ARGUMENT for a name that is not there
 */
export function resolveUser(written: string, passwdText: string, groupText: string): ProcessUser {
  const [name = '', group] = written.split(':')
  const passwd = entries(passwdText)
  const entry = passwd.find((fields) => fields[0] === name) ?? passwd.find((fields) => fields[2] === name)
  const uid = idOf(entry?.[2] ?? name)
  if (uid === undefined)
    throw new CoracleError('INVALID_ARGUMENT', `unable to find user ${name}: no such user in the image`)
  const groups = entries(groupText)
  if (group !== undefined) {
    return { uid, gid: groupId(group, groups) }
  }
  const gid = idOf(entry?.[3] ?? '') ?? 0
  const member = entry?.[0]
  const further = groups
    .filter((fields) => member !== undefined && (fields[3] ?? '').split(',').includes(member))
    .map((fields) => idOf(fields[2] ?? ''))
  const additionalGids = [...new Set(further)].filter((id) => id !== undefined && id !== gid) as number[]
  return additionalGids.length > 0 ? { uid, gid, additionalGids } : { uid, gid }
}

/** @param groups the fields of /etc/group */
function groupId(name: string, groups: readonly string[][]): number {
  const gid = idOf(groups.find((fields) => fields[0] === name)?.[2] ?? name)
  if (gid !== undefined) return gid
  throw new CoracleError('INVALID_ARGUMENT', `unable to find group ${name}: no such group in the image`)
}

function idOf(text: string): number | undefined {
  return /^\d{1,10}$/.test(text) && Number(text) <= MAX_ID ? Number(text) : undefined
}

/** The lines of a file like /etc/passwd, by their fields. */
function entries(text: string): string[][] {
  return text
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.trim().split(':'))
}
