import { createHash } from 'node:crypto'
import { fstatSync } from 'node:fs'
import type { Fd } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import { Saved } from './saved.js'

/*
 * JSON in a file that tells whether it is whole: one line, the header, with what it is, its version, and the length
 * and SHA-256 of what follows; then the body.
 */
const MAX_HEADER = 512
/** Bytes of a whole file. */
export const MAX_SEALED = 64 << 20

export function seal(magic: string, version: number, body: unknown): Buffer {
  const bytes = Buffer.from(JSON.stringify(body))
  const header = { magic, version, length: bytes.length, sha256: sha256(bytes) }
  return Buffer.concat([Buffer.from(`${JSON.stringify(header)}\n`), bytes])
}

/**
 * Reads what {@link seal} made.
 * @param path for messages
 * @throws CoracleError SNAPSHOT_INVALID where it was cut or changed, SNAPSHOT_MISMATCH where it is of another version
 */
export function unseal(
  file: Fd,
  path: string,
  { magic, version }: { readonly magic: string; readonly version: number },
): Saved {
  const { size } = fstatSync(file.number)
  if (size > MAX_SEALED) throw invalid(path, 'its state is too large')
  const bytes = Buffer.alloc(size)
  let length = 0
  for (let got = 1; got > 0 && length < size; length += got) got = file.pread(bytes.subarray(length), length)
  const end = bytes.subarray(0, MAX_HEADER).indexOf(10)
  if (end < 0) throw invalid(path, 'its header is gone')
  const header = new Saved(parsed(bytes.subarray(0, end), path), 'header')
  if (header.get('magic').string() !== magic) throw invalid(path, 'it is none')
  const theirs = header.get('version').number()
  if (theirs !== version)
    throw new CoracleError(
      'SNAPSHOT_MISMATCH',
      `the snapshot ${path} has version ${theirs}, and this build makes and reads version ${version}: make a new one`,
    )
  const body = bytes.subarray(end + 1)
  if (header.get('length').number() !== body.length) throw invalid(path, 'its state is cut off')
  if (header.get('sha256').string() !== sha256(body)) throw invalid(path, 'its state was changed')
  return new Saved(parsed(body, path))
}

function parsed(bytes: Buffer, path: string): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    throw invalid(path, 'its state is no JSON', error)
  }
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

export const invalid = (path: string, why: string, cause?: unknown): CoracleError =>
  new CoracleError('SNAPSHOT_INVALID', `the snapshot ${path} cannot be used: ${why}`, { cause })
