import t from 'tap'
import fc from 'fast-check'
import { CoracleError } from '../../src/errors.js'
import { capabilitySet } from '../../src/engine/capabilities.js'
import { type OciSeccomp, seccompOf } from '../../src/engine/seccomp.js'
import { run, specOf } from '../isolation/sandbox.js'

const allowed = (profile: OciSeccomp | undefined): Set<string> =>
  new Set(
    profile!.syscalls
      .filter(({ action, args }) => action === 'SCMP_ACT_ALLOW' && !args)
      .flatMap(({ names }) => names),
  )
/** What Docker's documentation lists as blocked. */
const BLOCKED =
  'acct add_key bpf clock_settime clone create_module delete_module finit_module get_kernel_syms get_mempolicy init_module ioperm iopl kexec_file_load kexec_load keyctl lookup_dcookie mbind mount move_pages nfsservctl open_by_handle_at perf_event_open personality pivot_root quotactl query_module reboot request_key set_mempolicy setns settimeofday socket stime swapon swapoff sysfs _sysctl umount umount2 unshare uselib userfaultfd ustat vm86 vm86old io_uring_setup'

t.test("the default is Docker's: what is blocked, and what a capability brings back", async (t) => {
  const plain = allowed(seccompOf(undefined, capabilitySet([], [], 'microvm')))
  for (const name of BLOCKED.split(' ')) t.notOk(plain.has(name), `${name} is not allowed as it is`)
  for (const name of ['read', 'execve', 'fork', 'ptrace', 'futex', 'openat2', 'epoll_pwait2', 'chroot'])
    t.ok(plain.has(name), name)
  const admin = allowed(seccompOf(undefined, capabilitySet(['SYS_ADMIN', 'SYS_TIME'], [], 'microvm')))
  for (const name of ['mount', 'unshare', 'clone', 'clone3', 'setns', 'bpf', 'clock_settime'])
    t.ok(admin.has(name), name)
  t.notOk(admin.has('init_module'))
  t.notOk(allowed(seccompOf(undefined, [])).has('chroot'))
  t.equal(seccompOf('unconfined', []), undefined)
  t.same(seccompOf('builtin', []), seccompOf(undefined, []))
})

t.test('profiles of users, in the form that Docker takes', async (t) => {
  const text = JSON.stringify({
    defaultAction: 'SCMP_ACT_ALLOW',
    archMap: [{ architecture: 'SCMP_ARCH_AARCH64' }],
    syscalls: [
      { name: 'mkdir', action: 'SCMP_ACT_ERRNO', errnoRet: 95, args: null, comment: 'x', includes: {} },
      { names: ['reboot'], action: 'SCMP_ACT_ALLOW', includes: { caps: ['CAP_SYS_BOOT'] } },
      { names: ['breakpoint'], action: 'SCMP_ACT_ALLOW', includes: { arches: ['arm'] } },
      { names: ['ptrace'], action: 'SCMP_ACT_KILL', excludes: { minKernel: '4.8' } },
    ],
  })
  t.same(seccompOf(text, [])!.syscalls, [{ names: ['mkdir'], action: 'SCMP_ACT_ERRNO', errnoRet: 95 }])
  t.equal(seccompOf(text, ['CAP_SYS_BOOT'])!.syscalls.length, 2)
  for (const bad of [
    '',
    '{',
    'null',
    '[]',
    '{"defaultAction":"X"}',
    '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}',
  ])
    t.throws(() => seccompOf(bad, []), { code: 'INVALID_ARGUMENT' }, bad)
  fc.assert(
    fc.property(fc.json(), (json) => {
      try {
        seccompOf(json, [])
      } catch (error) {
        return error instanceof CoracleError && error.code === 'INVALID_ARGUMENT'
      }
      return true
    }),
  )
})

t.test('crun applies it to a process', { skip: process.getuid?.() !== 0 && 'needs root' }, async (t) => {
  const words = ['sh', '-c', 'grep Seccomp: /proc/self/status; busybox unshare -U true && echo made']
  const withFilter = (wanted: string | undefined): Parameters<typeof run>[0] => {
    const spec = specOf(words)
    const seccomp = seccompOf(wanted, [])
    return {
      ...spec,
      bundle: { ...spec.bundle, linux: { ...spec.bundle.linux, ...(seccomp && { seccomp }) } },
    }
  }
  const filtered = await run(withFilter(undefined))
  t.equal(filtered[1].toString(), 'Seccomp:\t2\n')
  t.match(filtered[2].toString(), /not permitted/)
  const free = await run(withFilter('unconfined'))
  t.equal(free[1].toString(), 'Seccomp:\t0\nmade\n')
  const own = JSON.stringify({
    defaultAction: 'SCMP_ACT_ALLOW',
    syscalls: [{ names: ['unshare'], action: 'SCMP_ACT_ERRNO', errnoRet: 95 }],
  })
  t.match((await run(withFilter(own)))[2].toString(), /not supported/)
})
