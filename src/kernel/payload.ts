import { spawn } from 'node:child_process'
import { gunzipSync } from 'node:zlib'
import { toolCommand } from '../debian/index.js'
import { CoracleError } from '../errors.js'
import type { BzImageHeader } from './bzimage.js'

/** No kernel is larger than this once unpacked; a payload that claims more is an attack or damage. */
export const MAXIMUM_VMLINUX = 512 * 1024 * 1024

const PROGRAMS = {
  lz4: ['lz4', '-dcq'],
  zstd: ['zstd', '-dcq', '--long=31'],
  xz: ['xz', '-dcq', '--format=xz'],
  lzma: ['xz', '-dcq', '--format=lzma'],
} as const

/**
 * Decompresses the kernel inside a bzImage.
 * @throws {@link CoracleError} KERNEL_INVALID where it is damaged or unpacks to more than it says
 */
export async function unpackPayload(image: Buffer, header: BzImageHeader, path: string): Promise<Buffer> {
  const { offset, length, format } = header.payload
  const invalid = (why: string, cause?: unknown): CoracleError =>
    new CoracleError('KERNEL_INVALID', `${path}: the kernel inside cannot be unpacked (${format}): ${why}`, {
      cause,
    })
  if (format === 'none') return image.subarray(offset, offset + length)
  if (format === 'bzip2') throw invalid('bzip2 is not supported')
  // The kernel's build appends the size of the unpacked kernel (u32); gzip has it in its own trailer, at the same place.
  const size = image.readUInt32LE(offset + length - 4)
  if (size > MAXIMUM_VMLINUX) throw invalid(`it says that it is ${size} bytes large`)
  const body = image.subarray(offset, offset + length - (format === 'gzip' ? 0 : 4))
  let output: Buffer
  try {
    output =
      format === 'gzip'
        ? gunzipSync(body, { maxOutputLength: size })
        : await decompress(PROGRAMS[format], body, size)
  } catch (error) {
    if (error instanceof CoracleError) throw error
    throw invalid((error as Error).message, error)
  }
  if (output.length !== size) throw invalid(`${output.length} bytes came out in place of ${size}`)
  return output
}

/** Runs a decompressor over `input`, and ends it when it gives more than `limit` bytes. */
async function decompress(
  [program, ...options]: readonly [string, ...string[]],
  input: Buffer,
  limit: number,
): Promise<Buffer> {
  const { argv, env } = await toolCommand(program)
  const child = spawn(argv[0]!, [...argv.slice(1), ...options], {
    env: { ...process.env, ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  const output = Buffer.allocUnsafe(limit)
  let length = 0
  let stderr = ''
  child.stdout.on('data', (chunk: Buffer) => {
    if (length + chunk.length > limit) {
      length = limit + 1
      child.kill('SIGKILL')
    } else length += chunk.copy(output, length)
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  // A decompressor that has had enough closes its input: its status tells, not the broken pipe.
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  const status = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', resolve)
  })
  if (length > limit) throw new Error('it unpacks to more than it says')
  if (status !== 0)
    throw new Error(stderr.trim().split('\n').at(-1) || `${program} ended with status ${status}`)
  return output.subarray(0, length)
}
