import { renameSync, rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { BUNDLES, PROGRAMS } from '../programs.js'

/** Node's that every user of ours has. */
const TARGET = 'node20'

/**
 * Bundles programs into `folder`: each is one file, and one more for what it imports later, with a source map beside.
 * The native package stays outside, and is found from there as from the modules.
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
      external: ['koffi'],
      sourcemap: 'linked',
      logLevel: 'warning',
    })
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
