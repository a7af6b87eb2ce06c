import { addressOf, libc } from './libc.js'
import { check } from './error.js'

/* linux/seccomp.h, linux/filter.h, linux/audit.h, x86-64. */
const SYS_SECCOMP = 317
const SECCOMP_SET_MODE_FILTER = 1
const SECCOMP_FILTER_FLAG_TSYNC = 1
const SECCOMP_RET_KILL_PROCESS = 0x8000_0000
const SECCOMP_RET_ERRNO = 0x0005_0000
const SECCOMP_RET_ALLOW = 0x7fff_0000
const AUDIT_ARCH_X86_64 = 0xc000_003e
const X32_SYSCALL_BIT = 0x4000_0000
/** BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JGE | BPF_K, BPF_RET | BPF_K */
const LOAD = 0x20
const JUMP_EQUAL = 0x15
const JUMP_AT_LEAST = 0x35
const RETURN = 0x06
/** Offsets in struct seccomp_data. */
const DATA_NUMBER = 0
const DATA_ARCH = 4
const INSTRUCTION = 8

/**
 * Forbids system calls to every thread of this process and whatever comes of it, for good (seccomp(2)): they fail
 * with EPERM. Calls of another architecture's table end the process. Needs no_new_privs or CAP_SYS_ADMIN.
 * @param numbers of x86-64, at most 200
 * @throws {@link SysError}
 */
export function forbidSystemCalls(numbers: readonly number[]): void {
  const errno = SECCOMP_RET_ERRNO | 1
  // Jumps count the instructions between.
  const program: [code: number, yes: number, no: number, k: number][] = [
    [LOAD, 0, 0, DATA_ARCH],
    [JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64],
    [RETURN, 0, 0, SECCOMP_RET_KILL_PROCESS],
    [LOAD, 0, 0, DATA_NUMBER],
    [JUMP_AT_LEAST, numbers.length + 1, 0, X32_SYSCALL_BIT],
    ...numbers.map((number, i): [number, number, number, number] => [
      JUMP_EQUAL,
      numbers.length - i,
      0,
      number,
    ]),
    [RETURN, 0, 0, SECCOMP_RET_ALLOW],
    [RETURN, 0, 0, errno],
  ]
  const filter = new DataView(new ArrayBuffer(program.length * INSTRUCTION))
  program.forEach(([code, yes, no, k], i) => {
    filter.setUint16(i * INSTRUCTION, code, true)
    filter.setUint8(i * INSTRUCTION + 2, yes)
    filter.setUint8(i * INSTRUCTION + 3, no)
    filter.setUint32(i * INSTRUCTION + 4, k, true)
  })
  // struct sock_fprog: length, padding, pointer.
  const fprog = new DataView(new ArrayBuffer(16))
  fprog.setUint16(0, program.length, true)
  fprog.setBigUint64(8, addressOf(filter), true)
  check(
    libc.seccomp(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, fprog),
    'seccomp',
    `${filter.byteLength} bytes`,
  )
}
