import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Host, collect, leftovers } from './host.js'

const DOCKERFILE = `
ARG BASE=busybox
FROM \${BASE} AS first
ARG V=1
ENV A=one B="two words" \\
    C=$V
RUN echo "$A $B $C" > /out && rm /bin/vi
WORKDIR /app
COPY src/ ./
COPY --chown=www-data --chmod=0640 src/a.txt /etc/
COPY <<EOF /etc/motd
hello $A
EOF
RUN <<EOF
set -e
ls /app > /listing
test ! -e /bin/vi
EOF

FROM busybox
COPY --from=first /out /listing /app/sub /from/
COPY --from=first /etc/motd /etc/a.txt /
LABEL x=y
EXPOSE 80 90-91/udp
USER www-data
ENTRYPOINT ["cat"]
CMD ["/from/out"]
`

t.test('builds', { timeout: 1_100_000 }, async (t) => {
  const host = await Host.create()
  t.teardown(() => host.remove())
  const folder = t.testdir({
    Dockerfile: DOCKERFILE,
    '.dockerignore': 'src/ignored',
    src: { 'a.txt': 'A\n', ignored: 'no', sub: { b: 'b\n' } },
  })
  const P = ['--isolation', 'process']
  const build = (...words: string[]): ReturnType<Host['coracle']> => host.coracle(['build', ...words, folder])
  const show = async (...words: string[]): Promise<string> =>
    (await host.coracle(['run', '--rm', ...P, 'built', ...words])).stdout.toString()

  await t.test('stages, arguments, copies, here-documents', async (t) => {
    const { status, stdout, stderr } = await build(...P, '-t', 'built', '--build-arg', 'V=7')
    t.equal(status, 0, stderr)
    t.match(stdout.toString(), /Step 1\/\d+ : ARG BASE=busybox\n[\s\S]*Successfully tagged built:latest\n$/)
    t.equal(await show(), 'one two words 7\n')
    t.equal(await show('/from/listing', '/from/b', '/motd'), 'a.txt\nsub\nb\nhello one\n')
    t.equal(await show('/a.txt'), 'A\n', 'its owner and mode came along: www-data may read it')
    const [image] = JSON.parse((await host.coracle(['inspect', 'built'])).stdout.toString())
    t.match(image.Config, {
      User: 'www-data',
      Labels: { x: 'y' },
      ExposedPorts: { '80/tcp': {}, '90/udp': {}, '91/udp': {} },
    })
    const lines = (await host.coracle(['history', 'built'])).stdout.toString().trim().split('\n')
    t.match(lines[1], /CMD \["\/from\/out"\]\s+0B$/, 'the last step first')
    t.match(lines.at(-1), /^<missing>.*MB$/, 'the base at the bottom')
    const archive = (await host.coracle(['save', 'built'])).stdout
    t.equal((await host.coracle(['rmi', 'built'])).status, 0)
    t.match((await host.coracle(['load'], archive)).stdout.toString(), /Loaded image: built:latest/)
    t.equal(await show(), 'one two words 7\n', 'saved, removed, loaded')
    t.notMatch((await host.coracle(['images'])).stdout.toString(), /<none>/, 'steps are no images to a user')
  })

  await t.test('only what changed is done again', async (t) => {
    const again = await build(...P, '-t', 'built', '--build-arg', 'V=7')
    t.notMatch(again.stdout.toString(), 'Running in')
    writeFileSync(join(folder, 'src/sub/b'), 'changed\n')
    const changed = (await build(...P, '-t', 'built', '--build-arg', 'V=7')).stdout.toString()
    t.equal(changed.match(/Running in/g)?.length, 1, 'the RUN before the COPY is not')
    t.equal(await show('/from/b'), 'changed\n')
    t.equal((await build(...P, '--no-cache', '-q', '--target', 'first')).stdout.toString().trim().length, 71)
  })

  await t.test('what goes wrong', async (t) => {
    for (const [text, message] of [
      ['FROM busybox\nRUN exit 3', /returned a non-zero code: 3/],
      ['FROM busybox\nCOPY nosuch /', /nosuch: not found in the build's context/],
      ['FROM busybox\nCOPY ../../etc/passwd /', /not found in the build's context/],
      ['FROM busybox\nRUN --mount=type=secret,id=x true', /line 2: RUN --mount=.* is not built yet/],
      ['FROM busybox\nFOO', /line 2: unknown instruction/],
      ['RUN true', /begins with FROM/],
    ] as const) {
      writeFileSync(join(folder, 'Bad'), text)
      t.match(await build(...P, '-f', join(folder, 'Bad')), { status: 1, stderr: message }, text)
    }
    t.match(await host.coracle(['build', join(folder, 'nosuch')]), { status: 125, stderr: /no folder/ })
    t.same((await host.coracle(['ps', '-aq'])).stdout.toString(), '', 'no container stays')
  })

  await t.test('each RUN in a microVM, without a network', async (t) => {
    writeFileSync(join(folder, 'Vm'), 'FROM busybox\nRUN uname -r > /kernel; ip -o link > /links\n')
    const { status, stderr, stdout } = await build(
      ...['-f', join(folder, 'Vm'), '-t', 'built', '--network', 'none', '--hypervisor', 'qemu'],
    )
    t.equal(status, 0, `${stderr}${stdout.toString()}`)
    const here = spawnSync('uname', ['-r'], { encoding: 'utf8' }).stdout
    const kernel = await show('cat', '/kernel')
    t.match(kernel, /amd64\n$/)
    t.not(kernel, here)
    t.equal((await show('cat', '/links')).trim().split('\n').length, 1, 'lo alone')
  })

  await t.test('Ctrl-C', async (t) => {
    writeFileSync(join(folder, 'Slow'), 'FROM busybox\nRUN echo ready; sleep 1000\n')
    const child = host.spawn('build', ...P, '-f', join(folder, 'Slow'), folder)
    const result = collect(child)
    for await (const chunk of child.stdout!) if (String(chunk).includes('ready')) break
    child.kill('SIGINT')
    await Promise.race([result, once(child, 'exit')])
    t.same((await host.coracle(['ps', '-aq'])).stdout.toString(), '')
    t.same(leftovers(host.run), [])
  })
})
