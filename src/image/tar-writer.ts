import type { TarEntry, TarType } from './tar.js'

const BLOCK = 512

const FLAGS: Readonly<Record<TarType, string>> = {
  file: '0',
  link: '1',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
}

/** A file of root's as an archive of our own making has it: what is told of one is put over this. */
export const OWN_ENTRY: TarEntry = {
  name: '',
  type: 'file',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: 0,
  mtimeNsec: 0,
  linkName: '',
  major: 0,
  minor: 0,
  xattrs: undefined,
}

/** What ends a tar stream. */
export const TAR_END = Buffer.alloc(2 * BLOCK)

/** The zeros behind a file's content of so many bytes. */
export const tarPadding = (size: number): Buffer => Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK)

/**
 * An entry's header as ustar, with a pax header before it for what does not fit (POSIX.1-2001 pax(1)). Strings hold
 * bytes, one a character, as {@link TarEntry} has them. The content and {@link tarPadding} follow it.
 */
export function tarHeader(entry: TarEntry): Buffer {
  const records: Buffer[] = []
  const text = (key: string, value: string, room: number): string => {
    if (value.length > room) records.push(record(key, Buffer.from(value, 'latin1')))
    return value.slice(0, room)
  }
  const number = (key: string, value: number, digits: number): string => {
    const octal = value.toString(8)
    if (value >= 0 && octal.length <= digits) return octal.padStart(digits, '0')
    records.push(record(key, Buffer.from(String(value))))
    return '0'.repeat(digits)
  }
  const type = entry.type
  const size = type === 'file' ? entry.size : 0
  const header = Buffer.alloc(BLOCK)
  const put = (at: number, value: string): void => void header.write(value, at, 'latin1')
  put(0, text('path', entry.name, 100))
  put(100, number('mode', entry.mode, 7))
  put(108, number('uid', entry.uid, 7))
  put(116, number('gid', entry.gid, 7))
  put(124, number('size', size, 11))
  put(136, number('mtime', Math.max(0, entry.mtime), 11))
  put(156, FLAGS[type])
  put(157, text('linkpath', entry.linkName, 100))
  put(257, 'ustar\x0000')
  if (type === 'character' || type === 'block') {
    put(329, entry.major.toString(8).padStart(7, '0'))
    put(337, entry.minor.toString(8).padStart(7, '0'))
  }
  if (entry.mtimeNsec !== 0 && entry.mtime >= 0)
    records.push(record('mtime', Buffer.from(`${entry.mtime}.${String(entry.mtimeNsec).padStart(9, '0')}`)))
  for (const [name, value] of entry.xattrs ?? []) records.push(record(`SCHILY.xattr.${name}`, value))
  seal(header)
  if (records.length === 0) return header
  const body = Buffer.concat(records)
  const extension = Buffer.alloc(BLOCK)
  extension.write('pax', 0, 'latin1')
  extension.write('0000644\x000000000\x000000000\x00', 100, 'latin1')
  extension.write(body.length.toString(8).padStart(11, '0'), 124, 'latin1')
  extension.write('00000000000', 136, 'latin1')
  extension.write('x', 156, 'latin1')
  extension.write('ustar\x0000', 257, 'latin1')
  seal(extension)
  return Buffer.concat([extension, body, tarPadding(body.length), header])
}

/** `LENGTH KEY=VALUE\n`, where the length counts itself. */
function record(key: string, value: Buffer): Buffer {
  const rest = Buffer.byteLength(key) + value.length + 3
  let length = rest + String(rest).length
  if (rest + String(length).length > length) length++
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from('\n')])
}

function seal(header: Buffer): void {
  header.fill(' ', 148, 156)
  let sum = 0
  for (const byte of header) sum += byte
  header.write(`${sum.toString(8).padStart(6, '0')}\x00 `, 148, 'latin1')
}
