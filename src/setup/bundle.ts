import { copyFileSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Plugin, build } from 'esbuild'
import { BUNDLES, PROGRAMS } from '../programs.js'

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

/** The one that koffi takes on a host with the GNU C library. */
function koffiBinary(): string {
  const resolve = (name: string, from: string): string => createRequire(from).resolve(name)
  const koffi = resolve('koffi', resolve('@coracle/sys', import.meta.url))
  return join(dirname(resolve('@koromix/koffi-linux-x64', koffi)), 'linux_x64/koffi.node')
}

/**
 * Bundles programs into `folder`: each is one file, and one more for what it imports later, with a source map beside.
 * koffi's native part is put beside them.
 * @param programs paths of compiled modules, by the names that the bundles get
 */
export async function bundle(programs: Readonly<Record<string, string>>, folder: string): Promise<void> {
  for (const [name, path] of Object.entries(programs))
    await build({
      entryPoints: { [name]: path },
      outdir: folder,
      bundle: true,
      // For imports that a program makes when it runs already.
      splitting: true,
      chunkNames: `${name}-[hash]`,
      format: 'esm',
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
  copyFileSync(koffiBinary(), join(folder, 'koffi.node'))
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
