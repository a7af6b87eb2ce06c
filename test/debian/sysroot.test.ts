import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { CoracleError } from '../../src/errors.js'
import { cached, run, sysroot, toolCommand, withFileLock } from '../../src/debian/index.js'

/** Set-up has fetched it: the tests run after it and use the real cache. */
t.test('programs of a sysroot run', async (t) => {
  for (const [program, ...args] of [
    ['mkfs.erofs', '--version'],
    ['crun', '--version'],
    ['mkfs.ext4', '-V'],
    ['qemu-system-x86_64', '--version'],
    ['busybox', 'true'],
  ] as const) {
    const { argv, env } = await toolCommand(program)
    const { status, stderr } = await run([...argv, ...args], { env: { ...process.env, ...env } })
    t.equal(status, 0, `${program}: ${stderr}`)
  }
  const tools = (await sysroot('tools')).root
  t.ok(
    existsSync(join(tools, 'lib64/ld-linux-x86-64.so.2')),
    'the tree is merged-/usr and has its own linker',
  )
  t.equal(
    spawnSync('find', [tools, '-perm', '/6000'], { encoding: 'utf8' }).stdout,
    '',
    'no set-user-id files',
  )
})

t.test("a program that is an absolute link is the sysroot's, not the host's", async (t) => {
  const { argv } = await toolCommand('depmod')
  const { root } = await sysroot('tools')
  t.equal(argv.at(-1), join(root, 'bin/kmod'))
  const { status, stdout } = await run([...argv, '--version'])
  t.equal(status, 0)
  t.match(stdout, /kmod version/)
})

t.test('what is there is neither resolved nor locked again', async (t) => {
  const first = await sysroot('erofs')
  const path = process.env['PATH']
  process.env['PATH'] = '/nowhere'
  t.teardown(() => (process.env['PATH'] = path))
  t.equal((await sysroot('erofs')).folder, first.folder)
  t.match(first.packages, [{ name: String, version: String, size: Number }])
})

t.test('unknown programs are named', async (t) => {
  await t.rejects(toolCommand('frobnicate'), { code: 'INTERNAL', message: /frobnicate/ })
  const tools = await sysroot('tools')
  t.throws(() => tools.command('frobnicate'), { code: 'HOST_TOOL', message: /frobnicate/ })
})

t.test('with a cache of its own', async (t) => {
  const cache = t.testdir({})
  const before = { ...process.env }
  process.env['CORACLE_CACHE'] = cache
  t.teardown(() => {
    process.env = before
  })

  await t.test('without apt the error says what is missing', async (t) => {
    process.env['PATH'] = '/nowhere'
    t.teardown(() => (process.env['PATH'] = before['PATH']))
    await t.rejects(sysroot('erofs', { report: () => undefined }), { code: 'HOST_TOOL', message: /apt/ })
    t.equal(cached('erofs'), undefined)
  })

  await t.test("apt's own complaint is passed on, and nothing is left half made", async (t) => {
    const bin = t.testdir({
      'apt-config': '#!/bin/sh\nexit 0\n',
      'apt-get': '#!/bin/sh\necho "E: Failed to fetch http://mirror/x  Could not resolve" >&2; exit 100\n',
    })
    for (const name of readdirSync(bin)) chmodSync(join(bin, name), 0o755)
    process.env['PATH'] = `${bin}:${before['PATH']}`
    t.teardown(() => (process.env['PATH'] = before['PATH']))
    const error: unknown = await sysroot('erofs', { report: () => undefined }).catch((e: unknown) => e)
    t.ok(error instanceof CoracleError)
    t.match((error as Error).message, /trixie.*Could not resolve.*check the network/)
    t.notOk((error as Error).message.includes('\n'), 'one line')
    t.strictSame(
      readdirSync(join(cache, 'debian')).filter((name) => name.startsWith('erofs')),
      [],
    )
  })

  await t.test('a folder that was deleted, or a stamp that is no JSON, means: not there', async (t) => {
    mkdirSync(join(cache, 'debian'), { recursive: true })
    writeFileSync(join(cache, 'debian/erofs.json'), '{"key": ')
    t.equal(cached('erofs'), undefined)
  })
})

t.test('a lock is one at a time, in a process and between processes', async (t) => {
  const folder = t.testdir({})
  const log = join(folder, 'log')
  const script = `
    import { withFileLock } from ${JSON.stringify(new URL('../../src/debian/lock.js', import.meta.url).href)}
    import { appendFileSync } from 'node:fs'
    await withFileLock(process.argv[1], async () => {
      appendFileSync(process.argv[2], 'in\\n')
      await new Promise((resolve) => setTimeout(resolve, 20))
      appendFileSync(process.argv[2], 'out\\n')
    })`
  const ends = [1, 2, 3].map(
    () =>
      new Promise((resolve) =>
        spawn(process.execPath, ['--input-type=module', '-e', script, join(folder, 'lock'), log], {
          stdio: 'inherit',
        }).on('close', resolve),
      ),
  )
  t.strictSame(await Promise.all(ends), [0, 0, 0])
  t.equal(readFileSync(log, 'utf8'), 'in\nout\n'.repeat(3))
  const order: string[] = []
  await Promise.all(
    ['a', 'b'].map((name) =>
      withFileLock(join(folder, 'lock'), async () => {
        order.push(name)
        await new Promise((resolve) => setImmediate(resolve))
        order.push(name)
      }),
    ),
  )
  t.equal(order[0], order[1])
  await t.rejects(
    withFileLock(join(folder, 'lock'), () => Promise.reject(new Error('mine'))),
    /mine/,
  )
  await withFileLock(join(folder, 'lock'), async () => undefined)
})
