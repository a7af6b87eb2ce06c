import { struct } from './struct.js'

/** struct kvm_regs (asm/kvm.h): the general registers. */
export const Registers = struct(144, {
  rax: [0, 'u64'],
  rbx: [8, 'u64'],
  rcx: [16, 'u64'],
  rdx: [24, 'u64'],
  rsi: [32, 'u64'],
  rdi: [40, 'u64'],
  rsp: [48, 'u64'],
  rbp: [56, 'u64'],
  r8: [64, 'u64'],
  r9: [72, 'u64'],
  r10: [80, 'u64'],
  r11: [88, 'u64'],
  r12: [96, 'u64'],
  r13: [104, 'u64'],
  r14: [112, 'u64'],
  r15: [120, 'u64'],
  rip: [128, 'u64'],
  rflags: [136, 'u64'],
})
export type Registers = InstanceType<typeof Registers>

/** struct kvm_segment (asm/kvm.h). `type`, `s`, `dpl`, … are the descriptor's fields (SDM 3A §3.4.5). */
export const Segment = struct(24, {
  base: [0, 'u64'],
  limit: [8, 'u32'],
  selector: [12, 'u16'],
  type: [14, 'u8'],
  present: [15, 'u8'],
  dpl: [16, 'u8'],
  db: [17, 'u8'],
  s: [18, 'u8'],
  l: [19, 'u8'],
  g: [20, 'u8'],
  avl: [21, 'u8'],
  unusable: [22, 'u8'],
})
export type Segment = InstanceType<typeof Segment>

/** struct kvm_dtable (asm/kvm.h): GDTR or IDTR. */
export const DescriptorTable = struct(16, { base: [0, 'u64'], limit: [8, 'u16'] })
export type DescriptorTable = InstanceType<typeof DescriptorTable>

/** struct kvm_sregs (asm/kvm.h): segments, tables, control registers. */
export const SpecialRegisters = struct(312, {
  cs: [0, Segment],
  ds: [24, Segment],
  es: [48, Segment],
  fs: [72, Segment],
  gs: [96, Segment],
  ss: [120, Segment],
  tr: [144, Segment],
  ldt: [168, Segment],
  gdt: [192, DescriptorTable],
  idt: [208, DescriptorTable],
  cr0: [224, 'u64'],
  cr2: [232, 'u64'],
  cr3: [240, 'u64'],
  cr4: [248, 'u64'],
  cr8: [256, 'u64'],
  efer: [264, 'u64'],
  apic_base: [272, 'u64'],
})
export type SpecialRegisters = InstanceType<typeof SpecialRegisters>

/** struct kvm_fpu (asm/kvm.h): x87 and SSE state; `view` holds the registers, `fpr` at 0 and `xmm` at 144.
 * KVM_SET_FPU leaves `mxcsr` as it is; {@link Vcpu.setXsave} sets it. */
export const FpuState = struct(416, {
  fcw: [128, 'u16'],
  fsw: [130, 'u16'],
  ftwx: [132, 'u8'],
  mxcsr: [408, 'u32'],
})
export type FpuState = InstanceType<typeof FpuState>

export const RFLAGS_IF = 1n << 9n
