import { CoracleError } from '../errors.js'
import { table } from './table.js'
import { parseTemplate } from './template.js'

/** What `--format` says, for the help of commands that list. */
export const FORMAT = {
  type: 'string',
  requiresArg: true,
  describe: "json, a Go template such as '{{.Names}}', or 'table TEMPLATE'",
} as const

/**
 * A list as Docker's commands print it.
 * @param columns names of the rows' fields and the heads above them; what has no head is only for templates
 * @param format undefined for a table of all columns
 * @throws CoracleError USAGE
 */
export function listing<Field extends string>(
  columns: Readonly<Record<Field, string | undefined>>,
  rows: readonly Readonly<Record<Field, string>>[],
  format: string | undefined,
): string {
  if (format === 'json') return rows.map((row) => `${JSON.stringify(row)}\n`).join('')
  const names = Object.keys(columns) as Field[]
  if (format === undefined || format === 'table') {
    const shown = names.filter((name) => columns[name] !== undefined)
    return table([shown.map((name) => columns[name]!), ...rows.map((row) => shown.map((name) => row[name]))])
  }
  for (const [, name] of format.matchAll(/\.([A-Za-z_]\w*)/g))
    if (format.includes('{{') && !names.includes(name as Field))
      throw new CoracleError('USAGE', `there is no field .${name}: there are ${names.join(', ')}`)
  const [, columnsOnly] = /^table\s+(.*)$/s.exec(format) ?? []
  if (columnsOnly === undefined) {
    const template = parseTemplate(format)
    return rows.map((row) => `${template(row)}\n`).join('')
  }
  const template = parseTemplate(columnsOnly)
  const heads = Object.fromEntries(names.map((name) => [name, columns[name] ?? name.toUpperCase()]))
  return table([heads, ...rows].map((row) => template(row).split('\t')))
}
