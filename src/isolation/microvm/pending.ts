/** A promise, and who keeps it. */
export interface Pending<T> {
  readonly promise: Promise<T>
  readonly resolve: (value: T) => void
  readonly reject: (error: Error) => void
}

export function pending<T>(): Pending<T> {
  let resolve!: (value: T) => void
  let reject!: (error: Error) => void
  const promise = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  // Whoever awaits it sees the error; that nobody does is no crash.
  promise.catch(() => undefined)
  return { promise, resolve, reject }
}
