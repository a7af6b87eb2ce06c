/**
 * A pattern of Go's filepath.Match as an expression: `*` and `?` do not match a slash.
 * @param deep `**` matches any number of folders, as in .dockerignore
 */
export function patternOf(pattern: string, deep = false): RegExp {
  let source = ''
  for (let at = 0; at < pattern.length; at++) {
    const char = pattern[at]!
    if (deep && pattern.startsWith('**', at)) {
      at++
      if (pattern[at + 1] === '/') {
        at++
        source += '(?:.*/)?'
      } else source += '.*'
    } else if (char === '*') source += '[^/]*'
    else if (char === '?') source += '[^/]'
    else if (char === '[') {
      const end = pattern.indexOf(']', at + 1)
      if (end < 0) source += '\\['
      else {
        source += `[${pattern.slice(at + 1, end).replace(/\\/g, '\\\\')}]`
        at = end
      }
    } else if (char === '\\' && at + 1 < pattern.length) source += escape(pattern[++at]!)
    else source += escape(char)
  }
  try {
    return new RegExp(`^${source}$`)
  } catch {
    return /(?!)/
  }
}

const escape = (char: string): string => char.replace(/[.+^${}()|[\]\\*?/]/, '\\$&')
