import { release } from 'node:os'
import { CoracleError } from '../errors.js'
import { DEFAULT_PROFILE } from './seccomp-default.js'

/** Of a system call, which of its arguments must be what. */
export interface SeccompArgument {
  readonly index: number
  readonly value: number
  readonly valueTwo?: number
  readonly op: string
}

interface Condition {
  readonly caps?: readonly string[]
  readonly arches?: readonly string[]
  /** Such as `4.8`. */
  readonly minKernel?: string
}

/** One rule of a profile in Docker's form: OCI's, with conditions of when it is there. */
export interface SeccompRule {
  readonly names: readonly string[]
  readonly action: string
  readonly errnoRet?: number
  readonly args?: readonly SeccompArgument[]
  readonly includes?: Condition
  readonly excludes?: Condition
}

export interface SeccompProfile {
  readonly defaultAction: string
  readonly defaultErrnoRet?: number
  readonly architectures?: readonly string[]
  readonly syscalls: readonly SeccompRule[]
}

/** OCI runtime-spec's `linux.seccomp`. */
export interface OciSeccomp {
  readonly defaultAction: string
  readonly defaultErrnoRet?: number
  readonly architectures?: readonly string[]
  readonly syscalls: readonly Omit<SeccompRule, 'includes' | 'excludes'>[]
}

/** A profile's text is at most this long; Docker's own has 20 KiB. */
const MAX_PROFILE = 256 * 1024
const ACTION = /^SCMP_ACT_(ALLOW|ERRNO|KILL|KILL_PROCESS|KILL_THREAD|TRAP|TRACE|LOG)$/
const OPERATOR = /^SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)$/
const ARCHITECTURES = ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32']

/**
 * The filter of a container's system calls.
 * @param wanted `unconfined` for none, the text of a profile as Docker's `--security-opt seccomp=` takes it, or
 * undefined for the default
 * @param capabilities that the container may have: rules may depend on them
 * @throws CoracleError INVALID_ARGUMENT for a text that is no profile
 */
export function seccompOf(
  wanted: string | undefined,
  capabilities: readonly string[],
): OciSeccomp | undefined {
  if (wanted === 'unconfined') return undefined
  const profile = wanted === undefined || wanted === 'builtin' ? DEFAULT_PROFILE : parseProfile(wanted)
  const { syscalls, ...rest } = profile
  return {
    ...rest,
    syscalls: syscalls
      .filter((rule) => applies(rule, capabilities))
      .map(({ includes: _, excludes: __, ...rule }) => rule),
  }
}

function applies({ includes, excludes }: SeccompRule, capabilities: readonly string[]): boolean {
  const has = (cap: string): boolean => capabilities.includes(cap)
  const ours = (arch: string): boolean => /^(amd64|x86|x32|x86_64)$/.test(arch)
  if (includes?.caps?.length && !includes.caps.every(has)) return false
  if (includes?.arches?.length && !includes.arches.some(ours)) return false
  if (includes?.minKernel && !isKernel(includes.minKernel)) return false
  if (excludes?.caps?.some(has)) return false
  if (excludes?.arches?.some((arch) => arch === 'amd64')) return false
  return !(excludes?.minKernel && isKernel(excludes.minKernel))
}

/** Whether this kernel is as new; a microVM's is never older than what conditions of this kind are about. */
function isKernel(least: string): boolean {
  const [major = 0, minor = 0] = least.split('.').map(Number)
  const [ours = 0, oursMinor = 0] = release()
    .split('.')
    .map((part) => Number.parseInt(part, 10))
  return ours > major || (ours === major && oursMinor >= minor)
}

/** A profile as people have it in a file. What is in it is taken over piece by piece, and only what is known. */
function parseProfile(text: string): SeccompProfile {
  const bad = (why: string): never => {
    throw new CoracleError('INVALID_ARGUMENT', `the seccomp profile is invalid: ${why}`)
  }
  if (text.length > MAX_PROFILE) bad('it is too long')
  let value: Record<string, unknown>
  try {
    value = JSON.parse(text) as typeof value
  } catch {
    return bad('it is no JSON')
  }
  if (typeof value !== 'object' || value === null) bad('it is no object')
  const action = (name: unknown): string =>
    typeof name === 'string' && ACTION.test(name) ? name : bad(`unknown action ${String(name).slice(0, 40)}`)
  const list = (each: unknown): unknown[] =>
    each === undefined || each === null
      ? []
      : Array.isArray(each)
        ? (each as unknown[])
        : bad('a list is none')
  const strings = (each: unknown): string[] =>
    list(each).map((word) => (typeof word === 'string' ? word : bad('a name is no string')))
  const number = (each: unknown): number =>
    Number.isSafeInteger(each) && (each as number) >= 0 ? (each as number) : bad('a number is none')
  const condition = (each: unknown): Condition | undefined => {
    const { caps, arches, minKernel } = (each ?? {}) as Record<string, unknown>
    if (caps === undefined && arches === undefined && minKernel === undefined) return undefined
    if (minKernel !== undefined && !/^\d{1,3}\.\d{1,3}$/.test(String(minKernel))) bad('minKernel')
    return {
      caps: strings(caps),
      arches: strings(arches),
      ...(minKernel !== undefined && { minKernel: String(minKernel) }),
    }
  }
  const syscalls = list(value['syscalls']).map((each): SeccompRule => {
    if (typeof each !== 'object' || each === null) return bad('a rule is no object')
    const rule = each as Record<string, unknown>
    const includes = condition(rule['includes'])
    const excludes = condition(rule['excludes'])
    const args = list(rule['args']).map((arg): SeccompArgument => {
      const { index, value, valueTwo, op } = (arg ?? {}) as Record<string, unknown>
      if (!Number.isInteger(index) || (index as number) < 0 || (index as number) > 5)
        bad('an argument is 0 to 5')
      if (typeof op !== 'string' || !OPERATOR.test(op)) return bad('an argument has no operator')
      const second = valueTwo === undefined ? {} : { valueTwo: number(valueTwo) }
      return { index: index as number, value: number(value), ...second, op }
    })
    const names = [...strings(rule['names']), ...(rule['name'] === undefined ? [] : strings([rule['name']]))]
    if (names.length === 0) bad('a rule names no system call')
    return {
      names,
      action: action(rule['action']),
      ...(rule['errnoRet'] !== undefined && { errnoRet: number(rule['errnoRet']) }),
      ...(args.length > 0 && { args }),
      ...(includes && { includes }),
      ...(excludes && { excludes }),
    }
  })
  const asked = strings(value['architectures']).filter((name) => ARCHITECTURES.includes(name))
  return {
    defaultAction: action(value['defaultAction']),
    ...(value['defaultErrnoRet'] !== undefined && { defaultErrnoRet: number(value['defaultErrnoRet']) }),
    architectures: asked.length > 0 ? asked : ARCHITECTURES,
    syscalls,
  }
}
