import { posix } from 'node:path'
import { CoracleError } from '../../errors.js'
import type { RawConfig } from '../../image/compose.js'
import { parseInstruction } from '../../image/dockerfile/parse.js'
import { configure } from './configure.js'
import { Stage } from './stage.js'

/** Instructions that say something of an image without anything being run or copied. */
const WORDS = 'CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR'

/**
 * An image's configuration with `--change` of `commit` and `import` carried out.
 * @param changes instructions of a Dockerfile, one or more lines each
 * @throws CoracleError INVALID_ARGUMENT
 */
export function changedConfig(config: RawConfig, changes: readonly string[]): RawConfig {
  const stage = new Stage(undefined, undefined, config)
  for (const line of changes.flatMap((each) => each.split('\n'))) {
    if (line.trim() === '') continue
    const step = parseInstruction(line.trim(), 1, () => undefined)
    if (!WORDS.split(', ').includes(step.word))
      throw new CoracleError('INVALID_ARGUMENT', `${step.word} is no change of an image: there are ${WORDS}`)
    if (step.word === 'WORKDIR') stage.config['WorkingDir'] = posix.resolve(stage.workingDirectory, step.rest)
    else configure(stage, step, '\\')
    stage.note(`${step.word} ${step.rest}`)
  }
  return stage.config
}
