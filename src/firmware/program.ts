import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CoracleError } from '../errors.js'
import { paths } from '../paths.js'
import { run } from '../debian/index.js'
import { make } from './file.js'

const SOURCES = fileURLToPath(new URL('../../../firmware/', import.meta.url))

/** Static: they run where no library is. */
const FLAGS = [
  '-std=c11',
  '-D_GNU_SOURCE',
  '-D_FORTIFY_SOURCE=2',
  '-Os',
  '-Wall',
  '-Wextra',
  '-Werror',
  '-fstack-protector-strong',
  '-ffunction-sections',
  '-fdata-sections',
  '-static',
  '-s',
  '-Wl,--gc-sections,--build-id=none,-z,relro,-z,now,-z,noexecstack',
]

const WHAT = { agent: "the guest's agent", init: "containers' init" }

/** The guest's agent, @see buildProgram */
export const buildAgent = (): Promise<string> => buildProgram('agent')

/** What containers with --init have as process 1, @see buildProgram */
export const buildInit = (): Promise<string> => buildProgram('init')

/**
 * Compiles a program of `firmware/` with the machine's C compiler, once a version of its source.
 * @returns its path in the cache
 * @throws {@link CoracleError} HOST_TOOL without a compiler or its static C library
 */
async function buildProgram(program: 'agent' | 'init'): Promise<string> {
  const folder = join(SOURCES, program)
  const names = readdirSync(folder)
    .filter((name) => /\.[ch]$/.test(name))
    .sort()
  const hash = createHash('sha256').update(FLAGS.join(' '))
  for (const name of names) hash.update(`\0${name}\0`).update(readFileSync(join(folder, name)))
  return make(
    join(paths.cache, 'firmware', `${program}-${hash.digest('hex').slice(0, 16)}`),
    async (temporary) => {
      const files = names.filter((name) => name.endsWith('.c'))
      const compiler = process.env['CC'] ?? 'cc'
      const { status, stderr } = await run([compiler, ...FLAGS, ...files, '-o', temporary], {
        cwd: folder,
      }).catch((cause: unknown) => {
        throw new CoracleError(
          'HOST_TOOL',
          `no C compiler for ${WHAT[program]}: install one (on Debian: apt-get install gcc libc6-dev), or name it in CC`,
          { cause },
        )
      })
      if (status !== 0) {
        const line = stderr.split('\n').find((text) => /error|cannot find/.test(text)) ?? stderr.trim()
        throw new CoracleError('HOST_TOOL', `${compiler} cannot compile ${WHAT[program]}: ${line.trim()}`)
      }
    },
  )
}
