/** So many pieces of work at a time; the others wait in their order. */
export class Slots {
  #free: number
  readonly #waiting: (() => void)[] = []

  constructor(count: number) {
    this.#free = count
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      return await work()
    } finally {
      const next = this.#waiting.shift()
      if (next) next()
      else this.#free++
    }
  }
}

/**
 * Runs all pieces of work side by side. The first that fails aborts the others; none goes on when the promise settles.
 * @throws what the first one threw
 */
export async function together<T>(
  works: readonly ((signal: AbortSignal) => Promise<T>)[],
  signal?: AbortSignal,
): Promise<T[]> {
  const failure = new AbortController()
  const either = signal ? AbortSignal.any([signal, failure.signal]) : failure.signal
  let first: { error: unknown } | undefined
  const results = await Promise.all(
    works.map((work) =>
      work(either).catch((error: unknown) => {
        first ??= { error }
        failure.abort(error)
        return undefined
      }),
    ),
  )
  if (first) throw first.error
  return results as T[]
}
