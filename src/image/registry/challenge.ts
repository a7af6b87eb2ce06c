/** One challenge of a WWW-Authenticate header (RFC 9110 §11.6.1), its scheme and names in lower case. */
export interface Challenge {
  readonly scheme: string
  readonly parameters: ReadonlyMap<string, string>
}

const LONGEST = 8192
const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))/y
const QUOTED = /"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*)"/y
const SPACE = /[ \t]*/y
const COMMAS = /[ \t]*(?:,[ \t]*)*/y

/**
 * Parses the header strictly.
 * @returns undefined where it is not of the header's grammar
 */
export function parseChallenges(header: string): Challenge[] | undefined {
  if (header.length > LONGEST) return undefined
  let at = 0
  const take = (expression: RegExp): RegExpExecArray | undefined => {
    expression.lastIndex = at
    const match = expression.exec(header)
    if (!match) return undefined
    at = expression.lastIndex
    return match
  }
  const challenges: Challenge[] = []
  take(COMMAS)
  while (at < header.length) {
    const scheme = take(TOKEN)?.[0]
    if (scheme === undefined) return undefined
    const parameters = new Map<string, string>()
    challenges.push({ scheme: scheme.toLowerCase(), parameters })
    if (at === header.length) break
    if (/[ \t]/.test(header[at]!)) take(SPACE)
    else if (header[at] !== ',') return undefined
    const alone = take(TOKEN68)
    // Parameters follow, until a token that no "=" comes behind: the next scheme.
    while (alone === undefined && at < header.length && header[at] !== ',') {
      const from = at
      const name = take(TOKEN)?.[0].toLowerCase()
      take(SPACE)
      if (name === undefined || header[at] !== '=') {
        if (parameters.size === 0) return undefined
        at = from
        break
      }
      at++
      take(SPACE)
      const value = header[at] === '"' ? take(QUOTED)?.[1]?.replace(/\\(.)/g, '$1') : take(TOKEN)?.[0]
      if (value === undefined || parameters.has(name)) return undefined
      parameters.set(name, value)
      const end = at
      take(COMMAS)
      if (end === at && at < header.length) return undefined
      if (at < header.length && !header.slice(end, at).includes(',')) return undefined
    }
    take(COMMAS)
  }
  return challenges.length > 0 ? challenges : undefined
}
