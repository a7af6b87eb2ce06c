/** Lets go of what was held. Idempotent. */
export type LetGo = () => Promise<void>

/** What several may want to stand still at once: for the first it is made so, and with the last it goes on. */
export class Stillness {
  readonly #stop: () => Promise<void>
  readonly #go: () => Promise<void>
  #holders = 0
  #still = false
  #waiting: (() => void)[] = []
  /** One after the other. Never rejects. */
  #last: Promise<unknown> = Promise.resolve()

  /** @param stop all or nothing */
  constructor(stop: () => Promise<void>, go: () => Promise<void>) {
    this.#stop = stop
    this.#go = go
  }

  /** Resolves when it stands still. @throws what `stop` throws */
  async hold(): Promise<LetGo> {
    this.#holders++
    await this.#next(async () => {
      try {
        if (!this.#still) await this.#stop()
        this.#still = true
      } catch (error) {
        await this.#leave()
        throw error
      }
    })
    let letting: Promise<void> | undefined
    return () => (letting ??= this.#next(() => this.#leave()))
  }

  /** Resolves when nobody holds it. */
  moving(): Promise<void> {
    return this.#holders === 0 ? Promise.resolve() : new Promise((resolve) => this.#waiting.push(resolve))
  }

  async #leave(): Promise<void> {
    if (--this.#holders > 0) return
    try {
      if (this.#still) await this.#go()
    } finally {
      this.#still = false
      for (const go of this.#waiting.splice(0)) go()
    }
  }

  #next(step: () => Promise<void>): Promise<void> {
    const done = this.#last.then(step)
    this.#last = done.catch(() => undefined)
    return done
  }
}
