import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Mapping } from '@coracle/sys'
import { Kvm, Registers, type Vcpu, type Vm } from '../../src/kvm/index.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const sources = join(root, 'firmware/test-guests')
const built = join(root, 'dist/firmware/test-guests')
const ENTRY = 0x1000

/** Why guests cannot run here, or false. */
export function noKvm(): string | false {
  try {
    Kvm.open().close()
    execFileSync('as', ['--version'], { stdio: 'ignore' })
    return false
  } catch (error) {
    return `cannot run test guests here: ${error instanceof Error ? error.message : String(error)}`
  }
}

/** The flat binary of `firmware/test-guests/NAME.S` for the address `entry`, assembled where it is older than its source. */
export function assemble(name: string, entry = ENTRY): Uint8Array {
  const source = join(sources, `${name}.S`)
  const binary = join(built, `${name}.bin`)
  const newest = Math.max(...[source, join(sources, 'protected.inc')].map((path) => statSync(path).mtimeMs))
  if (!existsSync(binary) || statSync(binary).mtimeMs < newest) {
    mkdirSync(built, { recursive: true })
    // Tests run side by side: each assembles to a name of its own and renames.
    const scratch = `${binary}.${process.pid}`
    execFileSync('as', ['--64', '-o', `${scratch}.o`, source], { cwd: root })
    const place = [`-Ttext=0x${entry.toString(16)}`, `--entry=0x${entry.toString(16)}`]
    execFileSync('ld', ['--oformat=binary', ...place, '-o', scratch, `${scratch}.o`], { cwd: root })
    rmSync(`${scratch}.o`)
    renameSync(scratch, binary)
  }
  return readFileSync(binary)
}

export interface TestMachine extends Disposable {
  readonly kvm: Kvm
  readonly vm: Vm
  readonly vcpu: Vcpu
  /** 1 MiB from address 0, slot 0. */
  readonly memory: Mapping
}

/** A VM with one vCPU about to run `firmware/test-guests/NAME.S`.
 * @param irqchip with PIC, IOAPIC and local APIC @param split with a local APIC alone */
export function newMachine(name: string, { irqchip = false, split = false } = {}): TestMachine {
  const kvm = Kvm.open()
  const vm = kvm.createVm()
  vm.setTssAddress(0xfffb_d000)
  vm.setIdentityMapAddress(0xfffb_c000)
  if (irqchip) vm.createIrqchip()
  if (split) vm.createSplitIrqchip(24)
  const memory = Mapping.create({ length: 1 << 20 })
  memory.bytes().set(assemble(name), ENTRY)
  vm.setMemory(0, { guestAddress: 0, size: memory.length, mapping: memory, mappingOffset: 0 })
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid(kvm.supportedCpuid())
  const special = vcpu.getSpecialRegisters()
  special.cs.base = 0n
  special.cs.selector = 0
  vcpu.setSpecialRegisters(special)
  const registers = new Registers()
  registers.rip = BigInt(ENTRY)
  registers.rflags = 2n
  vcpu.setRegisters(registers)
  const close = (): void => {
    vcpu.close()
    vm.close()
    kvm.close()
    memory.unmap()
  }
  return { kvm, vm, vcpu, memory, [Symbol.dispose]: close }
}
