import { CoracleError } from '../errors.js'
import { table } from './table.js'
import { parseTemplate } from './template.js'

/** What `--format` says, for the help of commands that list. */
export const FORMAT = {
  type: 'string',
  requiresArg: true,
  describe: "json, a Go template such as '{{.Names}}', or 'table TEMPLATE'",
} as const

/** A line of a list: its fields, and methods of templates such as `.Label "key"`. */
export type Row<Field extends string> = Readonly<Record<Field, string>> & {
  readonly Label?: (key: string) => string
}

/** `.Labels` and `.Label "key"` of what has labels. */
export const labelFields = (
  labels: Readonly<Record<string, string>> | null,
): { readonly Labels: string; readonly Label: (key: string) => string } => ({
  Labels: Object.entries(labels ?? {})
    .map(([name, value]) => `${name}=${value}`)
    .join(','),
  Label: (key) => (labels && Object.hasOwn(labels, key) ? labels[key]! : ''),
})

/**
 * A list as Docker's commands print it.
 * @param columns names of the rows' fields and the heads above them; what has no head is only for templates
 * @param format undefined for a table of all columns
 * @throws CoracleError USAGE
 */
export function listing<Field extends string>(
  columns: Readonly<Record<Field, string | undefined>>,
  rows: readonly Row<NoInfer<Field>>[],
  format: string | undefined,
): string {
  if (format === 'json') return rows.map((row) => `${JSON.stringify(row)}\n`).join('')
  const names = Object.keys(columns) as Field[]
  if (format === undefined || format === 'table') {
    const shown = names.filter((name) => columns[name] !== undefined)
    return table([shown.map((name) => columns[name]!), ...rows.map((row) => shown.map((name) => row[name]))])
  }
  const checkField = (name: string): void => {
    if (!names.includes(name as Field) && !(name === 'Label' && names.includes('Labels' as Field)))
      throw new CoracleError('USAGE', `there is no field .${name}: there are ${names.join(', ')}`)
  }
  const [, columnsOnly] = /^table\s+(.*)$/s.exec(format) ?? []
  const template = parseTemplate(columnsOnly ?? format, checkField)
  if (columnsOnly === undefined) return rows.map((row) => `${template(row)}\n`).join('')
  const heads = {
    ...Object.fromEntries(names.map((name) => [name, columns[name] ?? name.toUpperCase()])),
    Label: (key: string) => key,
  }
  return table([heads, ...rows].map((row) => template(row).split('\t')))
}
