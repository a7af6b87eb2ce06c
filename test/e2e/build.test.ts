import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { backend } from '../engine/git-backend.js'
import { sha256, tar } from '../image/tar-builder.js'
import { Host, collect, leftovers } from './host.js'

const TOKEN_SUM = sha256(Buffer.from('tell-nobody')).slice('sha256:'.length, 'sha256:'.length + 8)

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

  await t.test('what configures, and what a parent leaves to do', async (t) => {
    const file = join(folder, 'More')
    writeFileSync(file, 'FROM busybox\nONBUILD COPY src/a.txt /onbuild\nHEALTHCHECK --interval=5s CMD true\n')
    t.equal((await build(...P, '-f', file, '-t', 'parent')).status, 0)
    writeFileSync(
      file,
      `# syntax=docker/dockerfile:1
FROM --platform=$TARGETPLATFORM parent
ARG TARGETOS TARGETARCH
ENV PLATFORM=$TARGETOS/$TARGETARCH
COPY --link src/a.txt /linked
SHELL ["/bin/ash", "-c"]
CMD cat /onbuild /linked
`,
    )
    const { stdout, stderr } = await build(...P, '-f', file, '-t', 'child')
    t.match(stdout.toString(), /^Note: # syntax=docker[^]*Executing 1 build triggers/, stderr)
    const [{ Config }] = JSON.parse((await host.coracle(['inspect', 'child'])).stdout.toString()) as [
      { Config: Record<string, unknown> },
    ]
    t.match(Config, { Healthcheck: { Interval: 5e9 }, Cmd: ['/bin/ash', '-c', 'cat /onbuild /linked'] })
    t.ok((Config['Env'] as string[]).includes('PLATFORM=linux/amd64'))
    t.notOk(Config['OnBuild'], 'it is done, and no further child does it')
    t.equal((await host.coracle(['run', '--rm', ...P, 'child'])).stdout.toString(), 'A\nA\n')
    t.equal((await host.coracle(['rmi', 'child', 'parent'])).status, 0)
  })

  await t.test('what RUN is given by options', async (t) => {
    const [file, id] = [join(folder, 'Given'), join(folder, 'id')]
    writeFileSync(file, 'FROM busybox\nRUN grep made.up /etc/hosts; ulimit -n; df /dev/shm | tail -1\n')
    const given = ['--add-host', 'made.up:10.9.8.7', '--ulimit', 'nofile=77:77', '--shm-size', '1m']
    const { stdout, stderr } = await build(
      ...P,
      ...given,
      ...['--platform', 'linux/amd64', '-f', file, '--iidfile', id],
    )
    t.match(stdout.toString(), /\n10\.9\.8\.7\s+made\.up\n77\nshm\s+1024 /, stderr)
    t.match(readFileSync(id, 'utf8'), /^sha256:[0-9a-f]{64}$/)
    t.match(await build(...P, '--platform', 'linux/arm64', '-f', file), {
      stderr: /linux\/amd64 is built here/,
    })
    t.match(await build(...P, '--pull', '-f', file), { status: 1, stdout: /Pulling busybox/ }, 'anew')
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

  /** A RUN that uses every kind of mount; `expect` is what the cache had before. */
  const mounts = (expect: string): string => `# syntax=docker/dockerfile:1
FROM busybox AS src
RUN mkdir /tree && echo from-stage > /tree/f
FROM busybox
WORKDIR /w
RUN --mount=type=cache,id=c1,target=/root/.cache/x,mode=0700 \\
  --mount=type=bind,from=src,source=/tree,target=/mnt/stage \\
  --mount=type=bind,source=src,target=ctx,rw \\
  --mount=type=tmpfs,target=/scratch,size=1m \\
  --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN,target=/t \\
  --mount=type=secret,id=absent <<EOF
set -e
test "$(cat /root/.cache/x/f 2>/dev/null)" = "${expect}"
echo ${expect}+ > /root/.cache/x/f
cat /mnt/stage/f > /out
! echo x 2>/dev/null > /mnt/stage/f
cat ctx/a.txt >> /out
echo changed > ctx/a.txt
test "$(stat -f -c %T /scratch)" = tmpfs
! dd if=/dev/zero of=/scratch/f bs=1M count=2 2>/dev/null
test "$(cat /run/secrets/token)" = tell-nobody
test "$TOKEN" = tell-nobody
test "$(cat /t)" = tell-nobody
test "$(stat -c %a /run/secrets/token)" = 400
test ! -e /run/secrets/absent
sha256sum /t | cut -c 1-8 >> /out
EOF
RUN <<script
#!/bin/awk -f
BEGIN { print "by awk" > "/awk" }
script
`
  const mounted = async (isolation: readonly string[], expect: string): Promise<string> => {
    writeFileSync(join(folder, 'Mounts'), mounts(expect))
    host.env['BUILD_TEST_TOKEN'] = 'tell-nobody'
    const secret = ['--secret', 'id=token,env=BUILD_TEST_TOKEN']
    const words = ['build', ...isolation, ...secret, '-f', join(folder, 'Mounts'), '-t', 'mounted', folder]
    const { status, stdout, stderr } = await host.coracle(words)
    t.equal(status, 0, `${stdout.toString()}${stderr}`)
    return stdout.toString()
  }
  const see = async (...words: string[]): Promise<string> =>
    (await host.coracle(['run', '--rm', ...P, 'mounted', ...words])).stdout.toString()

  await t.test('mounts of RUN', async (t) => {
    await mounted(P, '')
    t.equal(await see('cat', '/out', '/awk'), `from-stage\nA\n${TOKEN_SUM}\nby awk\n`)
    t.equal(
      await see('sh', '-c', 'ls -a /root /mnt /run /w; ls -d /scratch /t'),
      '/root:\n.\n..\n\n/w:\n.\n..\n',
      'nothing of the mounts, nor the places for them, is in the image',
    )
    t.match(await mounted(P, ''), 'Using cache')
    t.equal(readFileSync(join(folder, 'src/a.txt'), 'utf8'), 'A\n', "the context's own file is as it was")
    await mounted(P, '+')
    const traces = spawnSync('grep', ['-rl', 'tell-nobody', host.state, host.run], { encoding: 'utf8' })
    t.equal(traces.stdout, '', 'the secret is nowhere on the disk')
  })

  await t.test('ADD of archives and addresses', async (t) => {
    const server = createServer((_request, response) => response.end('fetched\n')).listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => server.close())
    const { port } = server.address() as AddressInfo
    const archive = tar(
      { name: 'etc/deep/x', content: 'unpacked\n', uid: 33 },
      { name: 'l', flag: '2', link: 'etc/deep/x' },
    )
    writeFileSync(join(folder, 'a.tgz'), gzipSync(archive))
    const sum = sha256(Buffer.from('fetched\n'))
    const text = (path: string, digest: string): string =>
      `FROM busybox\nADD a.tgz src/a.txt /opt/\nADD --checksum=${digest} http://127.0.0.1:${port}/${path} /got/\nCOPY a.tgz /kept\n`
    const add = (text: string, ...words: string[]): ReturnType<typeof build> => {
      writeFileSync(join(folder, 'Add'), text)
      return build(...P, ...words, '-f', join(folder, 'Add'), '-t', 'mounted')
    }
    const { status, stderr } = await add(text('file', sum), '--network', 'host')
    t.equal(status, 0, stderr)
    t.equal(await see('sh', '-c', 'cat /opt/l /opt/a.txt /got/file'), 'unpacked\nA\nfetched\n')
    t.equal(await see('stat', '-c', '%u %a', '/opt/etc/deep/x', '/got/file'), '33 644\n0 600\n')
    t.equal(
      (await see('sh', '-c', 'gunzip -c < /kept | wc -c')).trim(),
      String(archive.length),
      'COPY unpacks nothing',
    )
    t.match(
      (await add(text('file', sum), '--network', 'host')).stdout.toString(),
      /Using cache\n[^]*Using cache\n/,
    )
    for (const [dockerfile, network, message] of [
      [text('file', sha256(Buffer.from('else'))), 'host', /and --checksum says/],
      [text('file', sum), 'none', /this build has no network/],
      [text('file', sum), 'bridge', /this host's own/],
      ['FROM busybox\nADD https://example.com/x.git /x', 'none', /this build has no network/],
      ['FROM busybox\nADD http://127.0.0.1:9/x.git /x', 'bridge', /this host's own/],
      ['FROM busybox\nADD git@example.com:x.git /x', 'bridge', /by https, http or git, not by ssh/],
    ] as const)
      t.match(await add(dockerfile, '--network', network), { status: 1, stderr: message })
  })

  const noGit = spawnSync('git').error !== undefined && 'there is no git'
  await t.test('ADD of a repository', { skip: noGit }, async (t) => {
    const [work, bare] = [join(folder, 'work'), join(folder, 'r.git')]
    const git = (...words: string[]): void => {
      const { status, stderr } = spawnSync('git', ['-c', 'user.name=a', '-c', 'user.email=a@b', ...words])
      if (status !== 0) throw new Error(stderr.toString())
    }
    const commit = (text: string): void => {
      writeFileSync(join(work, 'f'), text)
      git('-C', work, 'add', '.')
      git('-C', work, 'commit', '-qm', text)
      git('-C', work, 'push', '-q', bare, 'main')
    }
    git('init', '-q', '--bare', bare)
    git('init', '-q', '--initial-branch=main', work)
    commit('one')
    const server = createServer(backend(folder)).listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.teardown(() => server.close())
    const { port } = server.address() as AddressInfo
    const add = async (flags = ''): Promise<string> => {
      const text = `FROM busybox\nADD ${flags}--chown=5:6 http://127.0.0.1:${port}/r.git#main /src/r\n`
      writeFileSync(join(folder, 'Add'), text)
      const words = ['--network', 'host', '-f', join(folder, 'Add'), '-t', 'mounted']
      const { status, stdout, stderr } = await build(...P, ...words)
      t.equal(status, 0, stderr)
      return stdout.toString()
    }
    t.notMatch(await add(), /Using cache/)
    t.equal(
      await see('sh', '-c', 'cat /src/r/f; stat -c " %u:%g %a" /src/r/f; ls -A /src/r'),
      'one 5:6 644\nf\n',
    )
    t.match(await add(), /Using cache/, 'the same commit')
    commit('two')
    t.notMatch(await add(), /Using cache/)
    t.equal(await see('cat', '/src/r/f'), 'two')
    t.notMatch(await add('--keep-git-dir '), /Using cache/)
    t.equal(await see('sh', '-c', 'ls -A /src/r; stat -c %u:%g /src/r/.git/HEAD'), '.git\nf\n5:6\n')
  })

  await t.test('what goes wrong', async (t) => {
    for (const [text, message] of [
      ['FROM busybox\nRUN exit 3', /returned a non-zero code: 3/],
      ['FROM busybox\nCOPY nosuch /', /nosuch: not found in the build's context/],
      ['FROM busybox\nCOPY ../../etc/passwd /', /not found in the build's context/],
      ['FROM busybox\nRUN --mount=type=ssh true', /line 2: RUN --mount=type=ssh: keys of an SSH agent/],
      ['FROM busybox\nRUN --mount=type=secret,id=x,required true', /line 2: the secret x was not given/],
      ['FROM busybox\nADD http://127.0.0.1:9/x /', /127.0.0.1 is this host's own/],
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

  await t.test('the same mounts in a microVM, and the cache that lasted', async (t) => {
    await mounted(['--hypervisor', 'qemu'], '++')
    t.equal(await see('cat', '/out', '/awk'), `from-stage\nA\n${TOKEN_SUM}\nby awk\n`)
    const pruned = await host.coracle(['builder', 'prune', '-f'])
    t.match(pruned.stdout.toString(), /^c1\n[^]*Freed: /)
    await mounted(P, '')
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
