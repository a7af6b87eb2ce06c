import { join } from 'node:path'

export const MEMORY = 'memory'
export const STATE = 'state'

/** A snapshot's files: paths, any of them an open descriptor's ({@link Fd.openOrDuplicate}). */
export interface SnapshotFiles {
  readonly state: string
  readonly memory: string
}

export const snapshotFiles = (folder: string): SnapshotFiles => ({
  state: join(folder, STATE),
  memory: join(folder, MEMORY),
})
