import type { RawConfig } from '../../image/compose.js'
import { type Instruction, parseInstruction, problem } from '../../image/dockerfile/parse.js'
import { expand, pairs, splitWords } from '../../image/dockerfile/words.js'
import type { Stage } from './stage.js'

/** Carries out an instruction that changes the configuration alone. @throws CoracleError INVALID_ARGUMENT */
export function configure(stage: Stage, step: Instruction, escape: string): void {
  const { config } = stage
  const text = (): string => expand(step.rest, stage.lookup, escape)
  const named = (): [string, string][] => {
    const found = pairs(step.rest, stage.lookup, escape)
    if (!found) throw problem(step.line, `${step.word} takes NAME=VALUE…`)
    return found
  }
  const map = (key: string, names: readonly string[]): void => {
    config[key] = {
      ...(config[key] as object | undefined),
      ...Object.fromEntries(names.map((name) => [name, {}])),
    }
  }
  switch (step.word) {
    case 'ENV':
      for (const [name, value] of named()) stage.setEnv(name, value)
      break
    case 'LABEL':
      config['Labels'] = { ...(config['Labels'] as object | undefined), ...Object.fromEntries(named()) }
      break
    case 'MAINTAINER':
      config['Labels'] = { ...(config['Labels'] as object | undefined), maintainer: step.rest }
      break
    case 'USER':
      config['User'] = text()
      break
    case 'STOPSIGNAL':
      config['StopSignal'] = text()
      break
    case 'SHELL':
      if (!step.list?.length) throw problem(step.line, 'SHELL takes a list in JSON')
      config['Shell'] = step.list
      break
    case 'CMD':
      config['Cmd'] = step.list ?? [...stage.shell, step.rest]
      break
    case 'ENTRYPOINT':
      config['Entrypoint'] = step.list ?? [...stage.shell, step.rest]
      // A command of the base image was for its entrypoint.
      if (!stage.pending.some(({ created_by: line }) => line.startsWith('CMD ')))
        Reflect.deleteProperty(config, 'Cmd')
      break
    case 'EXPOSE':
      map(
        'ExposedPorts',
        splitWords(step.rest, stage.lookup, escape).flatMap((word) => ports(step, word)),
      )
      break
    case 'VOLUME':
      map('Volumes', step.list ?? splitWords(step.rest, stage.lookup, escape))
      break
    case 'HEALTHCHECK':
      config['Healthcheck'] = healthcheck(step, stage)
      break
    case 'ONBUILD': {
      const trigger = parseInstruction(step.rest, step.line, () => undefined)
      if (['FROM', 'MAINTAINER', 'ONBUILD'].includes(trigger.word))
        throw problem(step.line, `${trigger.word} isn't allowed as an ONBUILD trigger`)
      config['OnBuild'] = [...((config['OnBuild'] as string[] | undefined) ?? []), step.rest]
      break
    }
  }
}

function ports(step: Instruction, text: string): string[] {
  const [, from, to, protocol = 'tcp'] = /^(\d+)(?:-(\d+))?(?:\/(tcp|udp|sctp))?$/i.exec(text) ?? []
  const last = Number(to ?? from)
  if (from === undefined || Number(from) > last || last > 65_535)
    throw problem(step.line, `invalid port: ${text.slice(0, 64)}`)
  return Array.from(
    { length: last - Number(from) + 1 },
    (_, i) => `${Number(from) + i}/${protocol.toLowerCase()}`,
  )
}

/** Nanoseconds of a duration such as 1m30s, as Docker writes them into a configuration. */
function duration(step: Instruction, text: string): number {
  const units: Record<string, number> = { h: 3600e9, m: 60e9, s: 1e9, ms: 1e6 }
  if (!/^(\d+(\.\d+)?(h|ms|m|s))+$/.test(text))
    throw problem(step.line, `invalid duration: ${text.slice(0, 64)}`)
  return [...text.matchAll(/(\d+(?:\.\d+)?)(h|ms|m|s)/g)].reduce(
    (sum, [, count, unit]) => sum + Number(count) * units[unit!]!,
    0,
  )
}

function healthcheck(step: Instruction, stage: Stage): RawConfig {
  const [, word, rest = ''] = /^(\S+)\s*([\s\S]*)$/.exec(step.rest) ?? []
  if (word?.toUpperCase() === 'NONE') return { Test: ['NONE'] }
  if (word?.toUpperCase() !== 'CMD') throw problem(step.line, 'HEALTHCHECK is followed by CMD or NONE')
  const command = parseInstruction(`CMD ${rest}`, step.line, () => undefined)
  const check: RawConfig = {
    Test: command.list ? ['CMD', ...command.list] : ['CMD-SHELL', rest],
  }
  const names: Record<string, string> = {
    interval: 'Interval',
    timeout: 'Timeout',
    'start-period': 'StartPeriod',
    'start-interval': 'StartInterval',
  }
  for (const [name, value] of step.flags) {
    const text = expand(value, stage.lookup)
    if (name === 'retries') check['Retries'] = Number(text)
    else if (names[name]) check[names[name]] = duration(step, text)
    else throw problem(step.line, `unknown flag: --${name}`)
  }
  return check
}
