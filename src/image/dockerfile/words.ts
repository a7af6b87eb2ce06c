/** The value of a variable; undefined where it is not set. */
export type Lookup = (name: string) => string | undefined

/**
 * Words of an instruction as a shell would see them: quotes taken off, escapes resolved, variables expanded
 * (Dockerfile reference, "Environment replacement").
 */
class Lexer {
  readonly #text: string
  readonly #lookup: Lookup
  readonly #escape: string
  #at = 0

  constructor(text: string, lookup: Lookup, escape: string) {
    this.#text = text
    this.#lookup = lookup
    this.#escape = escape
  }

  /** @param whole spaces are no end of a word */
  word(whole: boolean): string | undefined {
    if (!whole) while (this.#at < this.#text.length && /\s/.test(this.#text[this.#at]!)) this.#at++
    if (this.#at >= this.#text.length) return undefined
    let out = ''
    while (this.#at < this.#text.length) {
      const char = this.#text[this.#at]!
      if (!whole && /\s/.test(char)) break
      if (char === "'") out += this.#single()
      else if (char === '"') out += this.#double()
      else if (char === '$') out += this.#variable()
      else if (char === this.#escape && this.#at + 1 < this.#text.length) {
        out += this.#text[this.#at + 1]!
        this.#at += 2
      } else {
        out += char
        this.#at++
      }
    }
    return out
  }

  #single(): string {
    const end = this.#text.indexOf("'", this.#at + 1)
    const text = end < 0 ? this.#text.slice(this.#at) : this.#text.slice(this.#at + 1, end)
    this.#at = end < 0 ? this.#text.length : end + 1
    return text
  }

  #double(): string {
    let out = ''
    for (this.#at++; this.#at < this.#text.length && this.#text[this.#at] !== '"';) {
      const char = this.#text[this.#at]!
      const next = this.#text[this.#at + 1]
      if (char === '$') out += this.#variable()
      else if (char === this.#escape && next !== undefined && ('"$' + this.#escape).includes(next)) {
        out += next
        this.#at += 2
      } else {
        out += char
        this.#at++
      }
    }
    this.#at++
    return out
  }

  #variable(): string {
    const rest = this.#text.slice(this.#at + 1)
    const plain = /^(?:[a-zA-Z_]\w*|\d|[@*#?!$-])/.exec(rest)
    if (plain) {
      this.#at += 1 + plain[0].length
      return this.#lookup(plain[0]) ?? ''
    }
    const braced = /^\{([a-zA-Z_]\w*)/.exec(rest)
    if (!braced) {
      this.#at++
      return '$'
    }
    const name = braced[1]!
    const end = closing(rest, braced[0].length)
    const modifier = rest.slice(braced[0].length, end)
    this.#at += 1 + end + 1
    const value = this.#lookup(name)
    const [, operator, argument = ''] = /^(:?[-+?])([\s\S]*)$/.exec(modifier) ?? []
    const other = (): string => expand(argument, this.#lookup, this.#escape)
    const isSet = operator?.startsWith(':') ? !!value : value !== undefined
    if (operator?.endsWith('-')) return isSet ? value! : other()
    if (operator?.endsWith('+')) return isSet ? other() : ''
    return value ?? ''
  }
}

/** Where the brace that is open at `from` closes. */
function closing(text: string, from: number): number {
  let depth = 1
  for (let at = from; at < text.length; at++) {
    if (text[at] === '{' && text[at - 1] === '$') depth++
    else if (text[at] === '}' && --depth === 0) return at
  }
  return text.length
}

/** A text as one word. */
export function expand(text: string, lookup: Lookup, escape = '\\'): string {
  return new Lexer(text, lookup, escape).word(true) ?? ''
}

/** A text's words. */
export function splitWords(text: string, lookup: Lookup, escape = '\\'): string[] {
  const lexer = new Lexer(text, lookup, escape)
  const words = []
  for (let word; (word = lexer.word(false)) !== undefined;) words.push(word)
  return words
}

/** A here-document's variables, and nothing else of it: quotes are its own. */
export function expandHeredoc(text: string, lookup: Lookup): string {
  return text.replace(
    /\\\$|\$(?:\{([a-zA-Z_]\w*)\}|([a-zA-Z_]\w*))/g,
    (match, braced?: string, plain?: string) => (match === '\\$' ? '$' : (lookup((braced ?? plain)!) ?? '')),
  )
}

/** Cuts a text at spaces outside of quotes, and changes nothing in the pieces. */
export function rawWords(text: string, escape = '\\'): string[] {
  const words: string[] = []
  let word = ''
  let quote = ''
  for (let at = 0; at < text.length; at++) {
    const char = text[at]!
    if (char === escape && quote !== "'" && at + 1 < text.length) {
      word += char + text[++at]!
      continue
    }
    if (quote === '' && /\s/.test(char)) {
      if (word !== '') words.push(word)
      word = ''
      continue
    }
    if (quote === char) quote = ''
    else if (quote === '' && (char === '"' || char === "'")) quote = char
    word += char
  }
  if (word !== '') words.push(word)
  return words
}

/**
 * `NAME=value…` of ENV, LABEL and ARG, or `NAME all the rest`.
 * @returns undefined for a word without a name
 */
export function pairs(text: string, lookup: Lookup, escape = '\\'): [string, string][] | undefined {
  const words = rawWords(text, escape)
  if (!words[0]?.includes('=')) {
    const [, name, value] = /^(\S+)\s+([\s\S]+)$/.exec(text) ?? []
    return name === undefined ? undefined : [[expand(name, lookup, escape), expand(value!, lookup, escape)]]
  }
  const found: [string, string][] = []
  for (const word of words) {
    const at = word.indexOf('=')
    if (at < 1) return undefined
    found.push([expand(word.slice(0, at), lookup, escape), expand(word.slice(at + 1), lookup, escape)])
  }
  return found
}
