import fc from 'fast-check'
import t from 'tap'
import { DockerIgnore } from '../../src/cli/dockerignore.js'
import { patternOf } from '../../src/engine/build/match.js'
import { parseDockerfile } from '../../src/image/dockerfile/parse.js'
import { expand, expandHeredoc, pairs, rawWords, splitWords } from '../../src/image/dockerfile/words.js'

const parse = (text: string): [string, string][] =>
  parseDockerfile(text).instructions.map(({ word, rest }) => [word, rest])

t.test('instructions, continuations and comments', async (t) => {
  t.same(parse('# comment\nfrom a\n\nRUN one \\\n# between\n\n  two \\  \n three\nCMD x\r\n'), [
    ['FROM', 'a'],
    ['RUN', 'one   two  three'],
    ['CMD', 'x'],
  ])
  t.same(parse('# escape=`\nFROM a\nRUN dir C:\\`\n more'), [
    ['FROM', 'a'],
    ['RUN', 'dir C:\\ more'],
  ])
  t.same(
    parse('FROM a\nRUN echo \\\\\nRUN b'),
    [
      ['FROM', 'a'],
      ['RUN', 'echo \\\\'],
      ['RUN', 'b'],
    ],
    'an escaped one continues nothing',
  )
  t.match(parseDockerfile('# syntax=docker/dockerfile:1\n# escape=`\nFROM a'), {
    syntax: 'docker/dockerfile:1',
    escape: '`',
  })
  const [, copy, run] = parseDockerfile(
    'FROM a\nCOPY --from=b --chown="x:y" ["a b", "c"]\nRUN --network=none echo --not-a-flag',
  ).instructions
  t.same(copy!.flags, [
    ['from', 'b'],
    ['chown', 'x:y'],
  ])
  t.same(copy!.list, ['a b', 'c'])
  t.equal(run!.rest, 'echo --not-a-flag')
  t.equal(
    parseDockerfile('FROM a\nRUN [ -f /x ] && true').instructions[1]!.list,
    undefined,
    'no JSON: a shell line',
  )
})

t.test('here-documents', async (t) => {
  const [, run, copy, last] = parseDockerfile(
    'FROM a\nRUN <<EOF cat\none $A\n# no comment\nEOF\nCOPY <<"A" <<-B /to/\n$raw\nA\n\tb\n\tB\nRUN echo 1<<2',
  ).instructions
  t.same(run!.heredocs, [{ name: 'EOF', content: 'one $A\n# no comment\n', expand: true }])
  t.same(copy!.heredocs, [
    { name: 'A', content: '$raw\n', expand: false },
    { name: 'B', content: 'b\n', expand: true },
  ])
  t.same(last!.heredocs, [])
  t.throws(() => parse('FROM a\nRUN <<EOF\nx'), { message: /line 2: the here-document EOF has no end/ })
})

t.test('what is no Dockerfile', async (t) => {
  for (const [text, message] of [
    ['', /no instruction/],
    ['FROM a\nFRUM b', /line 2: unknown instruction: FRUM/],
    ['FROM', /line 1: FROM requires at least one argument/],
    ['# escape=x\nFROM a', /line 1: invalid escape/],
  ] as const)
    t.throws(() => parse(text), { code: 'DOCKERFILE', message })
})

t.test('words and variables', async (t) => {
  const lookup = (name: string): string | undefined => ({ A: 'a', E: '', S: 'x y' })[name]
  for (const [text, value] of [
    ['$A ${A} "$A" \'$A\' \\$A', 'a a a $A $A'],
    ['${N:-d} ${E:-d} ${E-d} ${N-d}', 'd d  d'],
    ['${A:+s} ${E:+s} ${E+s} ${N+s}', 's  s '],
    ['${N:-${A}b} $', 'ab $'],
    ['"a\\"b" \'a\\b\'', 'a"b a\\b'],
  ] as const)
    t.equal(expand(text, lookup), value, text)
  t.same(splitWords('a "b c" $S d\\ e', lookup), ['a', 'b c', 'x y', 'd e'])
  t.same(rawWords('a="b c" d=\'e f\' g\\ h'), ['a="b c"', "d='e f'", 'g\\ h'])
  t.same(pairs('a=1 b="2 3" c=$A', lookup), [
    ['a', '1'],
    ['b', '2 3'],
    ['c', 'a'],
  ])
  t.same(pairs('name all the $A', lookup), [['name', 'all the a']])
  t.equal(pairs('a=1 b', lookup), undefined)
  t.equal(expandHeredoc('$A ${A} "\\$A" `$N`', lookup), 'a a "$A" ``')
})

t.test('no text makes the parser fail in another way than by its error', async () => {
  const piece = fc.constantFrom(
    'FROM a',
    'RUN',
    'COPY',
    '<<EOF',
    'EOF',
    '\\',
    '\n',
    '# escape=`',
    '["',
    '"',
    '$',
    '{',
    '}',
    '--x=',
    ' ',
    'ENV a=',
  )
  fc.assert(
    fc.property(fc.array(fc.oneof(piece, fc.string({ maxLength: 5 })), { maxLength: 30 }), (pieces) => {
      const text = pieces.join('')
      try {
        for (const { rest } of parseDockerfile(text).instructions) {
          splitWords(rest, () => 'v')
          pairs(rest, () => 'v')
        }
      } catch (error) {
        if ((error as { code?: string }).code !== 'DOCKERFILE') throw error
      }
    }),
    { numRuns: 2000 },
  )
})

t.test('patterns and .dockerignore', async (t) => {
  t.ok(patternOf('a*.txt').test('abc.txt'))
  t.notOk(patternOf('a*').test('a/b'))
  t.ok(patternOf('[a-c]?').test('bx'))
  t.ok(patternOf('a.b').test('a.b'))
  t.notOk(patternOf('a.b').test('axb'))
  t.ok(patternOf('[').test('['))
  const ignore = new DockerIgnore('# no\n*.log\n!keep.log\n/build/\n**/tmp\nsub/*.o')
  for (const [path, out] of [
    ['x.log', true],
    ['keep.log', false],
    ['build', true],
    ['build/deep/file', true],
    ['a/b/tmp/c', true],
    ['tmp', true],
    ['sub/x.o', true],
    ['sub/deep/x.o', false],
    ['deep/x.log', false],
  ] as const)
    t.equal(ignore.excludes(path), out, path)
  t.notOk(ignore.isFinal)
})
