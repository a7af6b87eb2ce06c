import { basename } from 'node:path'
import type { ServerResponse } from 'node:http'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { CommitOptions } from '../../engine/commit.js'
import { CoracleError } from '../../errors.js'
import { decompress } from '../../image/decompress.js'
import type { PathStat } from '../../isolation/archive.js'
import { bodyBytes, jsonBody } from '../body.js'
import type { Handler, Query, Route } from '../router.js'
import { COMMIT_BODY, type CommitBody } from '../schemas.js'
import { sendJson } from '../answer.js'

/* Go's os.FileMode, which Docker's clients expect: its type bits are not those of stat(2). */
const GO_TYPES: Readonly<Record<number, number>> = {
  0o040000: 0x8000_0000,
  0o120000: 0x0800_0000,
  0o060000: 0x0400_0000,
  0o020000: 0x0420_0000,
  0o010000: 0x0200_0000,
  0o140000: 0x0100_0000,
}
const GO_SPECIAL: readonly (readonly [number, number])[] = [
  [0o4000, 0x0080_0000],
  [0o2000, 0x0040_0000],
  [0o1000, 0x0010_0000],
]

/** st_mode as Go's os.FileMode. */
export function goMode(mode: number): number {
  const special = GO_SPECIAL.reduce((sum, [bit, go]) => ((mode & bit) === 0 ? sum : sum + go), 0)
  return (GO_TYPES[mode & 0o170000] ?? 0) + special + (mode & 0o777)
}

/** X-Docker-Container-Path-Stat: JSON in standard base64. */
function statHeader(path: string, { mode, size, mtime, linkTarget }: PathStat): string {
  const name = basename(path) || '/'
  const stat = { name, size, mode: goMode(mode), mtime: new Date(mtime).toISOString(), linkTarget }
  return Buffer.from(JSON.stringify(stat)).toString('base64')
}

/** A path as Docker takes it: relative ones begin at the root. @throws CoracleError INVALID_ARGUMENT */
function pathOf(query: Query): string {
  const path = query.text('path')
  if (!path) throw new CoracleError('INVALID_ARGUMENT', 'missing path')
  return path.startsWith('/') ? path : `/${path}`
}

const stat: Handler = async ({ engine, response, params: [id], query }) => {
  const path = pathOf(query)
  const found = await engine.archives.stat(id!, path)
  response.writeHead(200, { 'X-Docker-Container-Path-Stat': statHeader(path, found) }).end()
}

const read: Handler = async ({ engine, response, params: [id], query }) => {
  const path = pathOf(query)
  await engine.archives.read(id!, path, async (found, tar) => {
    response.setHeader('X-Docker-Container-Path-Stat', statHeader(path, found))
    await sendTar(response, tar)
  })
  response.end()
}

const write: Handler = async ({ engine, request, response, params: [id], query }) => {
  await engine.archives.write(id!, pathOf(query), decompress(bodyBytes(request), 'the archive'), {
    keepKinds: query.flag('noOverwriteDirNonDir'),
    ownRoot: false,
  })
  response.writeHead(200).end()
}

const exportAll: Handler = async ({ engine, response, params: [id] }) => {
  await engine.archives.export(id!, (tar) => sendTar(response, tar))
  response.end()
}

/**
 * An archive that breaks off breaks the connection: the client must not take it for whole. The answer ends later, when
 * what was made for it is gone again.
 */
async function sendTar(response: ServerResponse, tar: Readable): Promise<void> {
  response.writeHead(200, { 'Content-Type': 'application/x-tar' })
  await pipeline(tar, response, { end: false })
}

const KINDS = { modified: 0, added: 1, deleted: 2 } as const

const changes: Handler = async ({ engine, response, params: [id] }) => {
  const all = await engine.archives.changes(id!)
  sendJson(
    response,
    200,
    all.map(({ kind, path }) => ({ Path: path, Kind: KINDS[kind] })),
  )
}

const commit: Handler = async ({ engine, request, response, query }) => {
  const body = await jsonBody<CommitBody>(request, COMMIT_BODY)
  const container = query.text('container')
  if (!container) throw new CoracleError('INVALID_ARGUMENT', 'a commit needs container=')
  const repository = query.text('repo')
  const tag = query.text('tag')
  const named = repository ? { name: tag ? `${repository}:${tag}` : repository } : {}
  const [comment, author] = [query.text('comment'), query.text('author')]
  const options: CommitOptions = {
    ...named,
    ...(comment ? { comment } : {}),
    ...(author ? { author } : {}),
    config: given(body),
    changes: query.texts('changes'),
    pause: query.flag('pause', true),
  }
  const { id } = await engine.commit(container, options)
  sendJson(response, 201, { Id: id })
}

/** What the body says of the configuration; Docker's client sends nothing but empty values. */
function given(body: CommitBody): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(body).filter(([name, value]) => {
      if (!Object.hasOwn(COMMIT_BODY.properties, name)) return false
      if (value === null || value === '') return false
      return typeof value !== 'object' || Object.keys(value as object).length > 0
    }),
  )
}

export const ARCHIVE_ROUTES: readonly Route[] = [
  { method: 'HEAD', pattern: '/containers/{id}/archive', handler: stat },
  { method: 'GET', pattern: '/containers/{id}/archive', handler: read },
  { method: 'PUT', pattern: '/containers/{id}/archive', handler: write },
  { method: 'GET', pattern: '/containers/{id}/export', handler: exportAll },
  { method: 'GET', pattern: '/containers/{id}/changes', handler: changes },
  { method: 'POST', pattern: '/commit', handler: commit },
]
