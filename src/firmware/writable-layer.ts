import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { open, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Fd, O_RDONLY } from '@coracle/sys'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { run, toolCommand } from '../debian/index.js'
import { make } from './file.js'

/** Raise when OPTIONS change. */
const LAYOUT = 1
const BLOCK = 4096
const MINIMUM = 16 << 20

/**
 * A journal, since the host may lose power and nobody runs fsck; small, since a layer is. Inode tables and journal are
 * not zeroed: the file is all holes to begin with.
 */
const OPTIONS = [
  [
    '-O',
    'extent,64bit,flex_bg,sparse_super,metadata_csum,has_journal,dir_index,filetype,large_file,huge_file',
  ],
  ['-O', 'dir_nlink,extra_isize,ext_attr,^resize_inode'],
  ['-I', '256'],
  ['-i', '16384'],
  ['-b', String(BLOCK)],
  ['-m', '0'],
  ['-U', '636f7261-636c-4e00-8000-777269746500'],
  ['-E', 'lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed=636f7261-636c-4e00-8000-736565640000'],
].flat()

/**
 * Makes a sparse file with an empty ext4 file system: the disk behind a container's writable layer. The file system
 * is formatted once a size and kept in the cache as its few blocks that are not zero.
 * @param path must not exist
 * @param size bytes, at least 16 MiB; rounded down to 4 KiB
 * @throws {@link CoracleError} INVALID_ARGUMENT for a size that is too small, HOST_TOOL where mkfs.ext4 fails
 */
export async function createWritableLayer(path: string, size: number): Promise<void> {
  const whole = Math.floor(size / BLOCK) * BLOCK
  if (!(whole >= MINIMUM))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `a writable layer of ${size} bytes is too small: 16 MiB at least`,
    )
  const template = await readFile(await formatted(whole))
  const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
  try {
    await file.truncate(whole)
    for (let at = 0; at < template.length;) {
      const [offset, length] = [template.readDoubleLE(at), template.readUInt32LE(at + 8)]
      await file.write(template, at + 12, length, offset)
      at += 12 + length
    }
  } finally {
    await file.close()
  }
}

/** A file of extents, each {f64 offset, u32 length, bytes}, little-endian. */
async function formatted(size: number): Promise<string> {
  const hash = createHash('sha256')
    .update(JSON.stringify([LAYOUT, OPTIONS, size]))
    .digest('hex')
    .slice(0, 16)
  return make(join(paths.cache, 'firmware', `ext4-${hash}.extents`), async (temporary) => {
    const image = `${temporary}.img`
    try {
      await writeFile(image, '')
      await format(image, size)
      await writeFile(temporary, extents(image))
    } finally {
      await rm(image, { force: true })
    }
  })
}

/** MiB; 4 is the least that ext4 takes, and no more than half of the disk may be journal. */
const journal = (size: number): string => `size=${size < 64 << 20 ? 4 : 8}`

async function format(image: string, size: number): Promise<void> {
  const { argv, env } = await toolCommand('mkfs.ext4')
  const { status, stderr } = await run(
    [...argv, '-q', '-F', '-t', 'ext4', '-J', journal(size), ...OPTIONS, image, `${size / 1024}k`],
    {
      // No /etc/mke2fs.conf of the host, no time: the same size makes the same bytes.
      env: { ...process.env, ...env, MKE2FS_CONFIG: '/dev/null', SOURCE_DATE_EPOCH: '1' },
    },
  )
  if (status !== 0) throw new CoracleError('HOST_TOOL', `mkfs.ext4 failed: ${stderr.trim()}`)
}

function extents(image: string): Buffer {
  const parts: Buffer[] = []
  using file = Fd.open(image, O_RDONLY)
  for (let at = 0; ;) {
    const [start, end] = file.nextData(at) ?? [0, 0]
    if (end === 0) break
    const data = Buffer.alloc(end - start)
    file.pread(data, start)
    // The file system may keep larger pieces than what was written: leave out the blocks of zeros.
    const zero = (block: number): boolean => data.subarray(block, block + BLOCK).every((byte) => byte === 0)
    for (let block = 0; block < data.length; block += BLOCK) {
      const from = block
      while (block < data.length && !zero(block)) block += BLOCK
      if (block === from) continue
      const bytes = data.subarray(from, block)
      const header = Buffer.alloc(12)
      header.writeDoubleLE(start + from, 0)
      header.writeUInt32LE(bytes.length, 8)
      parts.push(header, bytes)
    }
    at = end
  }
  return Buffer.concat(parts)
}
