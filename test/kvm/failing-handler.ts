import type { ExitHandler } from '../../src/kvm/index.js'

/** A handler with an error of ours in it. */
export const createHandler = (): ExitHandler => ({
  access() {
    throw new Error('a bug in the handler')
  },
})
