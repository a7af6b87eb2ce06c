import { randomBytes } from 'node:crypto'
import { fstatSync } from 'node:fs'
import { Fd, O_RDONLY, SysError } from '@coracle/sys'
import { CoracleError } from '../../errors.js'
import type { Vcpu } from '../../kvm/index.js'
import { Registers } from '../../kvm/index.js'
import {
  ACPI_AREA,
  BIOS_AREA,
  ECAM,
  ECAM_SIZE,
  GIB,
  MIB,
  ONE_MIB,
  PAGE,
  checkGuestMemory,
} from '../memory/layout.js'
import type { Ram } from '../memory/ram.js'
import { KernelFile } from './elf.js'

/*
 * The 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol") on a vmlinux: one page of
 * parameters, page tables that map the first 4 GiB one to one, and the processor in long mode at startup_64. Chosen
 * over PVH since its parameters carry a seed for the random number generator, and since no 32-bit code runs first.
 *
 * Below 640 KiB:
 */
const GDT = 0x500
const ZERO_PAGE = 0x7000
const SETUP_DATA = 0x8000
const PAGE_MAP_LEVEL_4 = 0x9000
const PAGE_DIRECTORY_POINTERS = 0xa000
/** Four pages, one a GiB. */
const PAGE_DIRECTORIES = 0xb000
const COMMAND_LINE = 0x2_0000
/** COMMAND_LINE_SIZE of x86, with the closing zero. */
const COMMAND_LINE_SIZE = 2048

/** Offsets in struct boot_params and its struct setup_header (asm/bootparam.h). */
const ACPI_RSDP_ADDR = 0x070
const E820_ENTRIES = 0x1e8
const BOOT_FLAG = 0x1fe
const HEADER = 0x202
const VERSION = 0x206
const TYPE_OF_LOADER = 0x210
const RAMDISK_IMAGE = 0x218
const RAMDISK_SIZE = 0x21c
const CMD_LINE_PTR = 0x228
const KERNEL_ALIGNMENT = 0x230
const CMDLINE_SIZE = 0x238
const SETUP_DATA_PTR = 0x250
const E820_TABLE = 0x2d0
const E820_TYPE_RAM = 1
const E820_TYPE_RESERVED = 2
const SETUP_RNG_SEED = 9
const SEED_SIZE = 32
/** A loader without a number of its own. */
const LOADER_UNDEFINED = 0xff

const CR0_PE = 1n << 0n
const CR0_ET = 1n << 4n
const CR0_PG = 1n << 31n
const CR4_PAE = 1n << 5n
const EFER_LME = 1n << 8n
const EFER_LMA = 1n << 10n
const PTE_PRESENT_WRITABLE = 3n
const PTE_LARGE = 1n << 7n
/** __BOOT_CS and __BOOT_DS of the protocol, and the descriptors behind them: flat, 64-bit code and data. */
const BOOT_CS = 0x10
const BOOT_DS = 0x18
const CODE_DESCRIPTOR = 0x00af_9b00_0000_ffffn
const DATA_DESCRIPTOR = 0x00cf_9300_0000_ffffn

/** What a kernel of our kind needs beyond itself and its initramfs to come up (seen: 6.1 boots with less). */
const WORKING_MEMORY = 24 * MIB

/** What is booted. */
export interface BootSource {
  /** Path of a vmlinux. */
  readonly kernel: string
  /** Path of an initramfs: a cpio, compressed or not. */
  readonly initramfs?: string
  readonly commandLine: string
}

/** Where a processor starts. Structured-cloneable. */
export interface BootEntry {
  readonly instructionPointer: number
  readonly bootParameters: number
}

/**
 * Loads kernel, initramfs and parameters into the guest's memory.
 * @throws CoracleError KERNEL_INVALID, MEMORY_SIZE, INVALID_ARGUMENT
 */
export function loadLinux(ram: Ram, source: BootSource, rsdp: number): BootEntry {
  const commandLine = Buffer.from(source.commandLine, 'utf8')
  if (commandLine.length >= COMMAND_LINE_SIZE || commandLine.includes(0))
    throw new CoracleError(
      'INVALID_ARGUMENT',
      `the kernel's command line has ${commandLine.length} bytes: at most ${COMMAND_LINE_SIZE - 1}, none zero`,
    )
  using kernel = KernelFile.open(source.kernel)
  using initramfs = source.initramfs === undefined ? undefined : openInitramfs(source.initramfs)
  const ramdiskSize = initramfs ? fstatSync(initramfs.number).size : 0
  const low = ram.layout.ram[0]!
  checkGuestMemory(ram.layout.size, kernel.end + ramdiskSize * 3 + WORKING_MEMORY)
  kernel.load(ram)
  // As high as it goes: the kernel frees it in one piece, and its own allocations start below.
  const ramdisk = Math.floor((low.size - ramdiskSize) / PAGE) * PAGE
  if (initramfs && ramdiskSize > 0) ram.copyFile(initramfs, 0, ramdiskSize, ramdisk)

  ram.bytes(COMMAND_LINE, commandLine.length).set(commandLine)
  writeZeroPage(ram, { rsdp, ramdisk: ramdiskSize > 0 ? ramdisk : 0, ramdiskSize })
  writePageTables(ram)
  const descriptors = view(ram, GDT, 32)
  descriptors.setBigUint64(BOOT_CS, CODE_DESCRIPTOR, true)
  descriptors.setBigUint64(BOOT_DS, DATA_DESCRIPTOR, true)
  return { instructionPointer: kernel.entry, bootParameters: ZERO_PAGE }
}

/** Puts the boot processor into the state that the protocol asks for; the others wait for INIT and SIPI. */
export function setBootState(vcpu: Vcpu, entry: BootEntry): void {
  const special = vcpu.getSpecialRegisters()
  special.cr0 = CR0_PE | CR0_ET | CR0_PG
  special.cr3 = BigInt(PAGE_MAP_LEVEL_4)
  special.cr4 = CR4_PAE
  special.efer = EFER_LME | EFER_LMA
  special.gdt.base = BigInt(GDT)
  special.gdt.limit = 31
  for (const name of ['cs', 'ds', 'es', 'fs', 'gs', 'ss'] as const) {
    const code = name === 'cs'
    Object.assign(special[name], {
      base: 0n,
      limit: 0xffff_ffff,
      selector: code ? BOOT_CS : BOOT_DS,
      type: code ? 0xb : 0x3,
      present: 1,
      dpl: 0,
      db: code ? 0 : 1,
      s: 1,
      l: code ? 1 : 0,
      g: 1,
    })
  }
  vcpu.setSpecialRegisters(special)
  const registers = new Registers()
  registers.rip = BigInt(entry.instructionPointer)
  registers.rsi = BigInt(entry.bootParameters)
  registers.rflags = 2n
  vcpu.setRegisters(registers)
}

function writeZeroPage(ram: Ram, init: { rsdp: number; ramdisk: number; ramdiskSize: number }): void {
  const page = view(ram, ZERO_PAGE, PAGE)
  page.setBigUint64(ACPI_RSDP_ADDR, BigInt(init.rsdp), true)
  page.setUint16(BOOT_FLAG, 0xaa55, true)
  page.setUint32(HEADER, 0x53726448, true)
  page.setUint16(VERSION, 0x020f, true)
  page.setUint8(TYPE_OF_LOADER, LOADER_UNDEFINED)
  page.setUint32(RAMDISK_IMAGE, init.ramdisk, true)
  page.setUint32(RAMDISK_SIZE, init.ramdiskSize, true)
  page.setUint32(CMD_LINE_PTR, COMMAND_LINE, true)
  page.setUint32(CMDLINE_SIZE, COMMAND_LINE_SIZE - 1, true)
  page.setUint32(KERNEL_ALIGNMENT, 2 * MIB, true)
  page.setBigUint64(SETUP_DATA_PTR, BigInt(SETUP_DATA), true)

  const low = ram.layout.ram[0]!
  const table = [
    { start: 0, size: BIOS_AREA, type: E820_TYPE_RAM },
    { start: ACPI_AREA, size: ONE_MIB - ACPI_AREA, type: E820_TYPE_RESERVED },
    { start: ONE_MIB, size: low.size - ONE_MIB, type: E820_TYPE_RAM },
    { start: ECAM, size: ECAM_SIZE, type: E820_TYPE_RESERVED },
    ...ram.layout.ram.slice(1).map((range) => ({ ...range, type: E820_TYPE_RAM })),
  ]
  page.setUint8(E820_ENTRIES, table.length)
  table.forEach(({ start, size, type }, i) => {
    page.setBigUint64(E820_TABLE + i * 20, BigInt(start), true)
    page.setBigUint64(E820_TABLE + i * 20 + 8, BigInt(size), true)
    page.setUint32(E820_TABLE + i * 20 + 16, type, true)
  })

  // struct setup_data: next, type, length, then the seed, which the kernel wipes once it has used it.
  const setup = view(ram, SETUP_DATA, 16)
  setup.setUint32(8, SETUP_RNG_SEED, true)
  setup.setUint32(12, SEED_SIZE, true)
  ram.bytes(SETUP_DATA + 16, SEED_SIZE).set(randomBytes(SEED_SIZE))
}

/** Identity maps 4 GiB in 2 MiB pages: kernel, parameters, initramfs, wherever they lie in low memory. */
function writePageTables(ram: Ram): void {
  view(ram, PAGE_MAP_LEVEL_4, 8).setBigUint64(0, BigInt(PAGE_DIRECTORY_POINTERS) | PTE_PRESENT_WRITABLE, true)
  const pointers = view(ram, PAGE_DIRECTORY_POINTERS, 32)
  for (let gib = 0; gib < 4; gib++)
    pointers.setBigUint64(gib * 8, BigInt(PAGE_DIRECTORIES + gib * PAGE) | PTE_PRESENT_WRITABLE, true)
  const entries = view(ram, PAGE_DIRECTORIES, 4 * PAGE)
  for (let i = 0; i < (4 * GIB) / (2 * MIB); i++)
    entries.setBigUint64(i * 8, BigInt(i * 2 * MIB) | PTE_LARGE | PTE_PRESENT_WRITABLE, true)
}

function view(ram: Ram, address: number, length: number): DataView {
  const bytes = ram.bytes(address, length)
  return new DataView(bytes.buffer, bytes.byteOffset, length)
}

function openInitramfs(path: string): Fd {
  try {
    return Fd.openOrDuplicate(path, O_RDONLY)
  } catch (error) {
    const why = error instanceof SysError ? error.code : String(error)
    throw new CoracleError('KERNEL_INVALID', `cannot read the initramfs ${path}: ${why}`, { cause: error })
  }
}
