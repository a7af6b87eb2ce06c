import { statSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/**
 * Our programs that are processes or threads of their own: the name of each one's bundle, and its module.
 *
 * A bundle is a program with all that it imports in one file: most of what a start takes is Node looking for a hundred
 * small ones. All bundles are in one folder, so a module that names another by `import.meta.url` must do so from the
 * folder that both are in: then the one is beside the other there, too. In the command line's, which names a lot, each
 * module is still told the place that it came from.
 */
export const PROGRAMS = {
  cli: 'cli/coracle.js',
  box: 'isolation/box/main.js',
  monitor: 'isolation/monitor/main.js',
  'template-maker': 'isolation/microvm/template-maker.js',
  'device-worker': 'vmm/device-thread/device-worker.js',
  'processor-worker': 'vmm/device-thread/processor-worker.js',
  'vsock-server-thread': 'vmm/vsock-server-thread.js',
  keeper: 'network/keeper/main.js',
} as const

export type Program = keyof typeof PROGRAMS

/**
 * Those whose bundles are ECMAScript modules, since they import packages of others that are, or await on their top
 * level. The rest are CommonJS, for which Node loads a third less of itself.
 */
const MODULES_STILL: readonly string[] = ['cli', 'monitor', 'keeper'] satisfies Program[]

/** A program's name as a bundle. @param name of {@link PROGRAMS}, or of a program that is bundled as those are */
export const bundleName = (name: string): string => `${name}${isModule(name) ? '.mjs' : '.js'}`

export const isModule = (name: string): boolean => MODULES_STILL.includes(name)

/** Where compiled modules are, and in it the bundles. */
const MODULES = new URL('./', import.meta.url)
export const BUNDLES = 'bundled/'
/** What the compiler writes last, of each of the parts. */
const BUILDS = [
  '../.tsbuildinfo',
  '../../src/sys/dist/.tsbuildinfo',
  '../../src/vhost-user-ts/dist/.tsbuildinfo',
]

let current: boolean | undefined

/**
 * What to run for a program: its bundle, or where the compiler ran since those were made, or they never were, its
 * module. Relative to the folder of our compiled modules.
 */
export function programPath(name: Program): string {
  current ??= bundlesAreCurrent(MODULES)
  return current ? `${BUNDLES}${bundleName(name)}` : PROGRAMS[name]
}

/** {@link programPath} on this host. */
export const programFile = (name: Program): string => fileURLToPath(new URL(programPath(name), MODULES))

/** @param modules the folder of compiled modules, with a slash at its end */
export function bundlesAreCurrent(modules: URL): boolean {
  const made = changed(new URL(`${BUNDLES}box.js`, modules))
  return made > 0 && BUILDS.every((path) => changed(new URL(path, modules)) <= made)
}

/** 0 for what is not there. */
const changed = (file: URL): number => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0
