import type { Argv } from 'yargs'
import { familiarName, parseReference } from '../image/reference.js'
import { listOf } from './command.js'

/** The options that `commit` and `import` share. */
export const newImageOptions = <T>(yargs: Argv<T>) =>
  yargs
    .option('message', { alias: 'm', type: 'string', requiresArg: true, describe: 'What it is' })
    .option('change', {
      alias: 'c',
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'An instruction such as \'CMD ["httpd"]\'',
    })

type NewImageOptions = ReturnType<typeof newImageOptions<object>> extends Argv<infer T> ? T : never

/** The query's part about the image that is made. @throws CoracleError INVALID_ARGUMENT for the name */
export function newImageQuery(name: string | undefined, { change }: NewImageOptions) {
  const reference = name === undefined ? undefined : parseReference(name)
  return {
    repo: reference && familiarName(reference.repository),
    tag: reference?.tag,
    changes: listOf(change).join('\n') || undefined,
  }
}
