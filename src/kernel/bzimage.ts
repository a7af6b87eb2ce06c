import { CoracleError } from '../errors.js'

/** How the kernel inside a bzImage is compressed. */
export type PayloadFormat = 'gzip' | 'lz4' | 'zstd' | 'xz' | 'lzma' | 'bzip2' | 'none'

/** The setup header of a bzImage (Linux, Documentation/arch/x86/boot.rst), as far as it is of use here. */
export interface BzImageHeader {
  /** Boot protocol, 0x020f for 2.15. */
  readonly protocol: number
  /** Real-mode code and boot sector in bytes: where the protected-mode kernel starts in the file. */
  readonly setupSize: number
  /** The `uname -r` and build line that the kernel states, such as `6.1.0-56-cloud-amd64 (debian-kernel@…) #1 SMP …`. */
  readonly version: string
  readonly loadFlags: number
  /** XLF_*: bit 0 says that there is a 64-bit entry point at 0x200. */
  readonly xloadFlags: number
  /** Longest command line in bytes without its terminating zero. */
  readonly commandLineSize: number
  /** Physical address at which the kernel would like to run. */
  readonly preferredAddress: bigint
  /** Bytes of memory from there that it needs to unpack itself. */
  readonly initSize: number
  /** The compressed ELF image, in bytes from the start of the file. */
  readonly payload: { readonly offset: number; readonly length: number; readonly format: PayloadFormat }
}

const SECTOR = 512
const MINIMUM_PROTOCOL = 0x0208
const HEADER_END = 0x268

const MAGIC: readonly [PayloadFormat, readonly number[]][] = [
  ['gzip', [0x1f, 0x8b]],
  ['lz4', [0x02, 0x21, 0x4c, 0x18]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd]],
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
  ['bzip2', [0x42, 0x5a, 0x68]],
  ['lzma', [0x5d, 0x00, 0x00]],
  ['none', [0x7f, 0x45, 0x4c, 0x46]],
]

/**
 * Reads a bzImage's setup header.
 * @param image the whole file
 * @param path for the message
 * @throws {@link CoracleError} KERNEL_INVALID for what is no bzImage, is cut short, or points outside itself
 */
export function parseBzImage(image: Buffer, path: string): BzImageHeader {
  const invalid = (why: string): CoracleError =>
    new CoracleError('KERNEL_INVALID', `${path} is no Linux kernel for x86-64: ${why}`)
  if (image.length < HEADER_END) throw invalid(`it has only ${image.length} bytes`)
  if (image.readUInt16LE(0x1fe) !== 0xaa55 || image.toString('latin1', 0x202, 0x206) !== 'HdrS')
    throw invalid('it has no setup header (the bytes "HdrS" at 0x202)')
  const protocol = image.readUInt16LE(0x206)
  if (protocol < MINIMUM_PROTOCOL)
    throw invalid(`its boot protocol ${protocol >> 8}.${protocol & 0xff} is older than 2.08`)
  // boot.rst: a value of 0 stands for 4
  const setupSize = ((image[0x1f1]! || 4) + 1) * SECTOR
  const offset = setupSize + image.readUInt32LE(0x248)
  const length = image.readUInt32LE(0x24c)
  if (length < 16) throw invalid('its payload is empty')
  if (offset + length > image.length)
    throw invalid(`its payload ends at ${offset + length}, the file at ${image.length}: it is cut short`)
  const format = MAGIC.find(([, magic]) => magic.every((byte, at) => image[offset + at] === byte))?.[0]
  if (!format)
    throw invalid(
      `its payload is compressed in an unknown way (${image.toString('hex', offset, offset + 6)})`,
    )
  return {
    protocol,
    setupSize,
    version: versionText(image, setupSize),
    loadFlags: image[0x211]!,
    xloadFlags: image.readUInt16LE(0x236),
    commandLineSize: image.readUInt32LE(0x238),
    preferredAddress: image.readBigUInt64LE(0x258),
    initSize: image.readUInt32LE(0x260),
    payload: { offset, length, format },
  }
}

/** `kernel_version` is an offset from 0x200 to a string within the setup part; 0 for none. */
function versionText(image: Buffer, setupSize: number): string {
  const offset = image.readUInt16LE(0x20e)
  if (offset === 0 || offset + 0x200 >= Math.min(setupSize, image.length)) return ''
  const end = image.indexOf(0, offset + 0x200)
  return image.toString('latin1', offset + 0x200, Math.min(end < 0 ? image.length : end, setupSize))
}
