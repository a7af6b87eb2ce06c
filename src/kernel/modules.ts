import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CoracleError } from '../errors.js'

/**
 * The files of modules and of all they need, in the order in which to load them.
 * @param folder `lib/modules/<release>` with modules.dep and modules.builtin in it
 * @param names with - or _ alike; what is built into the kernel is left out
 * @returns absolute paths
 * @throws {@link CoracleError} KERNEL_INVALID for a module that this kernel does not have
 */
export function modulePaths(folder: string, names: readonly string[]): string[] {
  const dependencies = new Map<string, string[]>()
  const byName = new Map<string, string>()
  for (const line of readFileSync(join(folder, 'modules.dep'), 'utf8').split('\n')) {
    const [path, needs] = line.split(':')
    if (!path || needs === undefined) continue
    dependencies.set(path, needs.split(' ').filter(Boolean))
    byName.set(nameOf(path), path)
  }
  const builtin = new Set(readFileSync(join(folder, 'modules.builtin'), 'utf8').split('\n').map(nameOf))
  const order = new Set<string>()
  const visit = (path: string): void => {
    if (order.has(path)) return
    // depmod lists all that a module needs, nearest first: loading from the end satisfies each
    for (const need of [...(dependencies.get(path) ?? [])].reverse()) visit(need)
    order.add(path)
  }
  for (const name of names) {
    const path = byName.get(nameOf(name))
    if (path) visit(path)
    else if (!builtin.has(nameOf(name)))
      throw new CoracleError('KERNEL_INVALID', `the kernel in ${folder} has no module ${name}`)
  }
  return [...order].map((path) => join(folder, path))
}

/**
 * The modules that drive a device; none where its driver is built into the kernel.
 * @param folder as {@link modulePaths}
 * @param modalias as the device's file in sysfs has it, such as `pci:v00008086d000010CA…`
 * @returns undefined where the kernel has no driver for it
 */
export function driversOf(folder: string, modalias: string): string[] | undefined {
  const drivers = new Set<string>()
  for (const line of readFileSync(join(folder, 'modules.alias'), 'utf8').split('\n')) {
    const [word, pattern, name] = line.split(' ')
    if (word === 'alias' && pattern && name && matches(pattern, modalias)) drivers.add(name)
  }
  if (drivers.size > 0) return [...drivers]
  const builtin = readFileSync(join(folder, 'modules.builtin.modinfo'), 'latin1').split('\0')
  const alias = /^[^.]+\.alias=(.*)$/
  return builtin.some((line) => matches(alias.exec(line)?.[1] ?? '', modalias)) ? [] : undefined
}

/** Of the shell's patterns those that modules.alias has. */
function matches(pattern: string, text: string): boolean {
  const literal = pattern.search(/[*?[]/)
  // Most patterns are other buses' and other vendors': a comparison in place of an expression.
  if (literal < 0) return pattern === text
  if (pattern.slice(0, literal) !== text.slice(0, literal)) return false
  const expression = pattern
    .replace(/[.+^${}()|\\]/g, '\\$&')
    .replaceAll('*', '.*')
    .replaceAll('?', '.')
  return new RegExp(`^${expression}$`).test(text)
}

const nameOf = (path: string): string =>
  path
    .slice(path.lastIndexOf('/') + 1)
    .replace(/\.ko(\.\w+)?$/, '')
    .replaceAll('-', '_')
