import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const source = fileURLToPath(new URL('../../src/', import.meta.url))

/** Lowest first: a file may import from its own room and from rooms before it. */
const ROOMS = [
  ['sys', 'device-number.ts', 'durable.ts', 'errors.ts', 'paths.ts', 'log.ts', 'programs.ts', 'size.ts'],
  ['debian'],
  ['kvm'],
  ['vhost-user-ts'],
  ['kernel', 'firmware', 'sriov'],
  ['vmm'],
  ['isolation'],
  ['image'],
  ['network', 'volume'],
  ['engine'],
  ['api'],
  ['cli', 'swarm'],
  ['lab', 'setup'],
]

const rank = (room: string): number => ROOMS.findIndex((rooms) => rooms.includes(room))

const room = (path: string): string => relative(source, path).split('/')[0]!

const files = readdirSync(source, { recursive: true, encoding: 'utf8' }).filter(
  (path) => path.endsWith('.ts') && !/(^|\/)(dist|node_modules)\//.test(path),
)

t.test('every folder of src has its place in the order of layers', async (t) => {
  for (const file of files) t.ok(rank(file.split('/')[0]!) >= 0, file)
})

t.test('no import points up', async (t) => {
  for (const file of files) {
    const path = join(source, file)
    const text = readFileSync(path, 'utf8')
    for (const [, specifier] of text.matchAll(/(?:from|import)\s*\(?\s*'([^']+)'/g)) {
      const target =
        specifier === '@coracle/sys'
          ? 'sys'
          : specifier === 'vhost-user-ts'
            ? 'vhost-user-ts'
            : specifier!.startsWith('.')
              ? room(resolve(dirname(path), specifier!.replace(/\.js$/, '.ts')))
              : undefined
      if (target !== undefined && rank(target) > rank(room(path))) t.fail(`${file} imports ${specifier}`)
    }
  }
  t.pass('looked at all of them')
})

t.test('only src/sys touches koffi', async (t) => {
  for (const file of files.filter((path) => !path.startsWith('sys/')))
    t.notMatch(readFileSync(join(source, file), 'utf8'), /(from|import|require)\s*\(?\s*['"]koffi['"]/, file)
})
