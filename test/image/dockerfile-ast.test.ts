import { readFileSync } from 'node:fs'
import { DockerfileParser, ModifiableInstruction } from 'dockerfile-ast'
import t from 'tap'
import { parseDockerfile } from '../../src/image/dockerfile/parse.js'

/** What both parsers say of an instruction; texts by their words, whatever lies between them. */
interface Seen {
  readonly word: string
  readonly line: number
  readonly flags: readonly string[]
  readonly heredocs: readonly string[]
  readonly words: readonly string[]
}

const corpus = readFileSync(new URL('../../../test/image/dockerfiles.txt', import.meta.url), 'utf8')
  .split(/^=== /m)
  .slice(1)
  .map((part) => [part.split('\n', 1)[0]!.trim(), part.slice(part.indexOf('\n') + 1)] as const)

/** Dockerfile-ast takes escape characters out of arguments, of which some are the shell's to see. */
const plain = (text: string): string => text.replaceAll('\\', '')

function ours(text: string): Seen[] {
  return parseDockerfile(text).instructions.map(({ word, line, flags, heredocs, rest }) => ({
    word,
    line,
    flags: flags.map(([name, value]) => (value === 'true' ? name : `${name}=${value}`)),
    heredocs: heredocs.map(({ name }) => name),
    words: plain(rest).split(/\s+/),
  }))
}

function theirs(text: string): Seen[] {
  return DockerfileParser.parse(text)
    .getInstructions()
    .map((each) => {
      const { getHeredocs } = each as unknown as { getHeredocs(): { getName(): string }[] }
      const heredocs = getHeredocs.call(each)
      const flags = each instanceof ModifiableInstruction ? each.getFlags() : []
      const values = each.getArguments().map((argument) => plain(argument.getValue()))
      return {
        word: each.getKeyword(),
        line: each.getRange().start.line + 1,
        flags: flags.map((flag) =>
          flag.getValue() === null ? flag.getName() : `${flag.getName()}=${flag.getValue()}`,
        ),
        heredocs: heredocs.map((heredoc) => heredoc.getName()),
        words: values,
      }
    })
}

t.test('our parser and dockerfile-ast see the same', async (t) => {
  t.ok(corpus.length >= 40)
  for (const [name, text] of corpus) {
    const [a, b] = [ours(text), theirs(text)]
    t.same(
      a.map(({ words: _, ...rest }) => rest),
      b.map(({ words: _, ...rest }) => rest),
      `${name}: instructions, lines, flags and here-documents`,
    )
    const words = (seen: Seen[]): unknown =>
      seen.filter(({ heredocs }) => heredocs.length === 0).map(({ words }) => words)
    t.same(words(a), words(b), `${name}: arguments`)
  }
})
