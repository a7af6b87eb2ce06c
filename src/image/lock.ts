import { Fd, LOCK_EX, LOCK_NB, O_CREAT, O_RDWR } from '@coracle/sys'

/**
 * A file whose flock(2) keeps processes apart; the kernel frees it when its holder dies. The holder must not await
 * anything while it holds a lock that others wait for, since waiting blocks their threads.
 */
export class FileLock implements Disposable {
  readonly #fd: Fd

  /** @throws SysError */
  constructor(path: string) {
    this.#fd = Fd.open(path, O_RDWR | O_CREAT)
  }

  /** Takes the lock, waiting for it. */
  take(): void {
    // A signal can interrupt the call, which then has to be made again.
    while (!this.#fd.lock(LOCK_EX));
  }

  /** @returns false where another holds it */
  tryTake(): boolean {
    return this.#fd.lock(LOCK_EX | LOCK_NB)
  }

  /** Frees the lock by closing the file. */
  [Symbol.dispose](): void {
    this.#fd.close()
  }
}
