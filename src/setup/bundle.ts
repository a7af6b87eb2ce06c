import { copyFileSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { Script } from 'node:vm'
import { type Plugin, build } from 'esbuild'
import { BUNDLES, PROGRAMS, isModule } from '../programs.js'

/** Node's that every user of ours has. */
const TARGET = 'node20'

/** What koffi's own JavaScript does for us, without the search that each thread would make, and keep in its memory. */
const KOFFI = `
import { fileURLToPath } from 'node:url'
const native = { exports: {} }
process.dlopen(native, fileURLToPath(new URL('koffi.node', import.meta.url)))
export default native.exports`

const koffi: Plugin = {
  name: 'koffi',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^koffi$/ }, ({ path }) => ({ path, namespace: 'koffi' }))
    onLoad({ filter: /^koffi$/, namespace: 'koffi' }, () => ({ contents: KOFFI }))
  },
}

/** Tells modules the place that they came from: for what finds its files by `import.meta.url`. */
const inPlace = (folder: string): Plugin => ({
  name: 'in-place',
  setup({ onLoad }) {
    onLoad({ filter: /\.js$/ }, ({ path }) => {
      const text = readFileSync(path, 'utf8')
      if (!text.includes('import.meta.url')) return undefined
      const place = `new URL(${JSON.stringify(relative(folder, path))}, import.meta.url).href`
      return { contents: text.replaceAll('import.meta.url', place) }
    })
  },
})

/** Packages of others that the command line loads from where they are: some find files of their own beside them. */
const OTHERS = ['ajv', 'fzstd', 'tar-stream', 'typebox', 'ws', 'xz-decompress', 'yargs']

/** A CommonJS module is a function of these, and has no `import.meta`. */
const AROUND = {
  define: { 'import.meta.url': 'importMetaUrl' },
  banner: {
    js: `(function (exports, require, module, __filename, __dirname) { 'use strict'
const importMetaUrl = require('node:url').pathToFileURL(__filename).href`,
  },
  footer: { js: '})' },
}

/** Runs the bundle beside it, from what V8 made of it where that is of this Node, else from its text. */
const RUNNER = `'use strict'
const { readFileSync } = require('node:fs')
const { Script } = require('node:vm')
const filename = __filename.replace(/js$/, 'bundle.js')
const cachedData = readFileSync(filename + '.cache')
const script = new Script(readFileSync(filename, 'latin1'), { filename, cachedData })
script.runInThisContext()(exports, require, module, filename, __dirname)
`

/** Has V8 compile each function of a bundle, which else every thread would do that loads it, when it comes to one. */
function compileAhead(folder: string, name: string): void {
  const filename = join(folder, `${name}.bundle.js`)
  setFlagsFromString('--no-lazy')
  const script = new Script(readFileSync(filename, 'latin1'), { filename })
  // With another flag than who runs it V8 would not take it.
  setFlagsFromString('--lazy')
  writeFileSync(`${filename}.cache`, script.createCachedData())
  writeFileSync(join(folder, `${name}.js`), RUNNER)
}

/** The one that koffi takes on a host with the GNU C library. */
function koffiBinary(): string {
  const resolve = (name: string, from: string): string => createRequire(from).resolve(name)
  const koffi = resolve('koffi', resolve('@coracle/sys', import.meta.url))
  return join(dirname(resolve('@koromix/koffi-linux-x64', koffi)), 'linux_x64/koffi.node')
}

/**
 * Bundles programs into `folder`: each is one file with its compiled form, or where it is a module with more for what it
 * imports later, and a source map beside.
 * koffi's native part is put beside them.
 * @param programs paths of compiled modules, by the names that the bundles get
 */
export async function bundle(programs: Readonly<Record<string, string>>, folder: string): Promise<void> {
  for (const [name, path] of Object.entries(programs)) {
    await build({
      entryPoints: { [isModule(name) ? name : `${name}.bundle`]: path },
      outdir: folder,
      bundle: true,
      ...(isModule(name)
        ? // Splitting is for imports that a program makes when it runs already.
          { format: 'esm', splitting: true, chunkNames: `${name}-[hash]`, outExtension: { '.js': '.mjs' } }
        : { format: 'cjs', ...AROUND }),
      platform: 'node',
      target: TARGET,
      ...(name === 'cli' ? { plugins: [koffi, inPlace(folder)], external: OTHERS } : { plugins: [koffi] }),
      sourcemap: 'linked',
      // A thread parses all that it loads. Names stay, for stacks; lines stay short, for what Node shows of a failure.
      minifyWhitespace: true,
      minifySyntax: true,
      lineLimit: 160,
      legalComments: 'none',
      logLevel: 'warning',
    })
    if (!isModule(name)) compileAhead(folder, name)
  }
  copyFileSync(koffiBinary(), join(folder, 'koffi.node'))
  writeFileSync(join(folder, 'package.json'), '{ "type": "commonjs" }\n')
}

/** Bundles all programs, complete or not at all. @see programPath */
export async function bundlePrograms(): Promise<void> {
  const modules = new URL('../', import.meta.url)
  const path = (name: string): string => fileURLToPath(new URL(name, modules))
  const folder = path(BUNDLES.replace(/\/$/, ''))
  rmSync(`${folder}.new`, { recursive: true, force: true })
  await bundle(
    Object.fromEntries(Object.entries(PROGRAMS).map(([name, file]) => [name, path(file)])),
    `${folder}.new`,
  )
  rmSync(folder, { recursive: true, force: true })
  renameSync(`${folder}.new`, folder)
}
