/** `KEY=VALUE` by its parts; without a `=` the value is empty. */
export function pairOf(text: string): [key: string, value: string] {
  const at = text.indexOf('=')
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)]
}
