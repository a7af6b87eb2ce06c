import { libc } from './libc.js'
import { SysError, check, checkAgain } from './error.js'

const SIG_BLOCK = 0
/** glibc's sigset_t is 128 bytes; the kernel reads the first 8. */
const SIGSET_SIZE = 128

/** The kernel's id of the calling thread. */
export function threadId(): number {
  return check(libc.gettid(), 'gettid')
}

/** Keeps `signal` pending in the calling thread in place of running its handler. */
export function blockSignal(signal: number): void {
  const result: number = libc.sigmask(SIG_BLOCK, signalSet(signal), null)
  if (result !== 0) throw new SysError(result, 'pthread_sigmask')
}

/**
 * Takes a pending, blocked `signal` away from the calling thread, without waiting: else it would interrupt the
 * next KVM_RUN too. @returns whether there was one
 */
export function takeSignal(signal: number): boolean {
  return (
    checkAgain(libc.sigtimedwait(signalSet(signal), null, new BigInt64Array(2)), 'sigtimedwait') === signal
  )
}

/** Sends `signal` to one thread of this process. */
export function signalThread(tid: number, signal: number): void {
  check(libc.tgkill(process.pid, tid, signal), 'tgkill')
}

const PR_SET_PDEATHSIG = 1
const PR_SET_CHILD_SUBREAPER = 36
const PR_SET_NO_NEW_PRIVS = 38

/** Asks for `signal` when the thread that made this process ends (prctl(2)); 0 takes it back. */
export function setParentDeathSignal(signal: number): void {
  check(libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), 'prctl')
}

/** Makes orphans below this process its children, so that it can wait for them (prctl(2)). */
export function becomeSubreaper(): void {
  check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 'prctl')
}

/** Gives up gaining rights through set-uid programs, for good (prctl(2)). */
export function setNoNewPrivileges(): void {
  check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 'prctl')
}

function signalSet(signal: number): BigUint64Array {
  const set = new BigUint64Array(SIGSET_SIZE / 8)
  set[0] = 1n << BigInt(signal - 1)
  return set
}
