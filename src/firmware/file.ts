import { randomBytes } from 'node:crypto'
import { mkdir, open, rename, rm, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

/**
 * Makes a file of the cache unless it is there. `make` writes beside it, and only what is complete gets the name:
 * several processes may do so at once, and the last one wins with the same content.
 * @param path ends with a hash of all that the content depends on
 */
export async function make(path: string, write: (temporary: string) => Promise<void>): Promise<string> {
  if (await stat(path).catch(() => undefined)) return path
  await mkdir(dirname(path), { recursive: true })
  const temporary = `${path}.${randomBytes(6).toString('hex')}`
  try {
    await write(temporary)
    const file = await open(temporary, 'r')
    await file.sync().finally(() => file.close())
    await rename(temporary, path)
  } finally {
    await rm(temporary, { recursive: true, force: true })
  }
  return path
}
