/** Lets go of what was held. Idempotent. */
export type LetGo = () => Promise<void>

/** What several may want to stand still at once: for the first it is made so, and with the last it goes on. */
export class Stillness {
  readonly #stop: () => Promise<void>
  readonly #go: () => Promise<void>
  #holders = 0
  /** One after the other. Never rejects. */
  #last: Promise<unknown> = Promise.resolve()

  /** @param stop all or nothing */
  constructor(stop: () => Promise<void>, go: () => Promise<void>) {
    this.#stop = stop
    this.#go = go
  }

  /** Resolves when it stands still. @throws what `stop` throws */
  async hold(): Promise<LetGo> {
    await this.#next(async () => {
      if (this.#holders === 0) await this.#stop()
      this.#holders++
    })
    let letting: Promise<void> | undefined
    return () =>
      (letting ??= this.#next(async () => {
        if (--this.#holders === 0) await this.#go()
      }))
  }

  #next(step: () => Promise<void>): Promise<void> {
    const done = this.#last.then(step)
    this.#last = done.catch(() => undefined)
    return done
  }
}
