/** Rows in columns as wide as their widest cell, the first row being the head. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column]! + 3))
          .join('')
          .trimEnd()}\n`,
    )
    .join('')
}
