import { chmodSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parseChallenges } from '../../../src/image/registry/challenge.js'
import {
  PLAIN_CONFIG,
  endpointsOf,
  isInsecure,
  parseRegistryConfig,
} from '../../../src/image/registry/config.js'
import { Credentials, authFor } from '../../../src/image/registry/credentials.js'
import { DEFAULT_PATIENCE, retryAfter } from '../../../src/image/registry/failure.js'
import { serverName } from '../../../src/image/registry/registry.js'
import { Transport } from '../../../src/image/registry/transport.js'

t.test('challenges', async (t) => {
  const parse = (header: string): unknown =>
    parseChallenges(header)?.map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)])
  t.strictSame(parse('Bearer realm="https://a/t",service="s, t",scope="repository:a/b:pull,push"'), [
    ['bearer', { realm: 'https://a/t', service: 's, t', scope: 'repository:a/b:pull,push' }],
  ])
  t.strictSame(parse('Negotiate, NTLM abc==, Basic realm="q\\"x" , charset=UTF-8, Bearer a = b'), [
    ['negotiate', {}],
    ['ntlm', {}],
    ['basic', { realm: 'q"x', charset: 'UTF-8' }],
    ['bearer', { a: 'b' }],
  ])
  for (const wrong of [
    '',
    ',',
    'Bearer realm="x',
    'Bearer realm="x" service="y"',
    'Bearer realm="x",realm="y"',
    'Bearer =x',
    'Bearer realm="\x01"',
    '"x"',
    `Bearer realm="${'x'.repeat(9000)}"`,
  ])
    t.equal(parse(wrong), undefined, JSON.stringify(wrong.slice(0, 40)))

  const token = fc.stringMatching(/^[a-z][a-z0-9-]{0,9}$/)
  const value = fc.stringMatching(/^[\x20-\x7e]{0,40}$/)
  const challenge = fc.tuple(
    token,
    fc.dictionary(token, value, { minKeys: 1, maxKeys: 4, noNullPrototype: true }),
  )
  fc.assert(
    fc.property(fc.array(challenge, { minLength: 1, maxLength: 3 }), (challenges) => {
      const header = challenges
        .map(([scheme, parameters]) => {
          const pairs = Object.entries(parameters).map(
            ([name, text]) => `${name}="${text.replace(/["\\]/g, '\\$&')}"`,
          )
          return `${scheme} ${pairs.join(', ')}`
        })
        .join(', ')
      t.strictSame(parse(header), challenges)
    }),
    { numRuns: 200 },
  )
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'aB ="\\,\t=a'), maxLength: 60 }), (header) => {
      parseChallenges(header)
    }),
    { numRuns: 2000 },
  )
})

t.test('configuration', async (t) => {
  const folder = t.testdir({ 'ca.pem': 'PEM' })
  const parse = (value: unknown): unknown => parseRegistryConfig(JSON.stringify(value), 'file')
  t.strictSame(parse({}), PLAIN_CONFIG)
  t.strictSame(
    parse({
      'registry-mirrors': ['https://mirror.example/hub'],
      'insecure-registries': ['build.lan:5000'],
      'registry-authorities': { 'a.lan': join(folder, 'ca.pem') },
    }),
    {
      mirrors: ['https://mirror.example/hub'],
      insecure: ['build.lan:5000'],
      authorities: { 'a.lan': 'PEM' },
    },
  )
  for (const wrong of [
    [],
    null,
    { 'registry-mirror': [] },
    { 'registry-mirrors': ['mirror.example'] },
    { 'registry-mirrors': ['https://a:b@mirror.example'] },
    { 'insecure-registries': ['http://build.lan'] },
    { 'insecure-registries': 'build.lan' },
    { 'registry-authorities': { a: '/nowhere/ca.pem' } },
  ])
    t.throws(() => parse(wrong), { code: 'INVALID_ARGUMENT', message: /configuration file is wrong/ })
  t.throws(() => parseRegistryConfig('{', 'file'), { code: 'INVALID_ARGUMENT' })

  t.strictSame(
    endpointsOf('docker.io/library/app', { ...PLAIN_CONFIG, mirrors: ['https://mirror.example/hub/'] }).map(
      ({ host, prefix, repository }) => `${host}${prefix} ${repository}`,
    ),
    ['mirror.example/hub library/app', 'registry-1.docker.io library/app'],
  )
  const config = {
    ...PLAIN_CONFIG,
    insecure: ['build.lan:5000', 'any.lan'],
    authorities: { 'localhost:6000': 'PEM' },
  }
  for (const [host, insecure] of [
    ['localhost:5000', true],
    ['127.0.0.1', true],
    ['127.9.9.9:5000', true],
    ['[::1]:5000', true],
    ['build.lan:5000', true],
    ['any.lan:7', true],
    ['localhost:6000', false],
    ['build.lan', false],
    ['localhost.example', false],
    ['127.0.0.1.example', false],
    ['registry-1.docker.io', false],
  ] as const)
    t.equal(isInsecure(host, config), insecure, host)
})

t.test('addresses that a registry names', async (t) => {
  const transport = new Transport({ ...PLAIN_CONFIG, insecure: ['build.lan'] }, DEFAULT_PATIENCE)
  const check = (next: string): void =>
    transport.check(new URL(next), new URL('https://registry.example/v2/'))
  for (const fine of ['https://cdn.example/x', 'http://build.lan/x', 'http://127.0.0.1:5000/x']) check(fine)
  for (const wrong of ['http://cdn.example/x', 'ftp://cdn.example', 'https://a:b@cdn.example/', 'data:,x'])
    t.throws(() => check(wrong), { code: 'REGISTRY_FAILED' }, wrong)
})

t.test('names of servers', async (t) => {
  for (const hub of ['', 'docker.io', 'https://index.docker.io/v1/', 'registry-1.docker.io'])
    t.equal(serverName(hub), 'docker.io')
  t.equal(serverName('https://Registry.example:5000/v2/'), 'registry.example:5000')
  t.equal(serverName('[::1]:5000'), '[::1]:5000')
  for (const wrong of ['a b', '../x', 'a@b', '-\n'])
    t.throws(() => serverName(wrong), { code: 'INVALID_ARGUMENT' })
})

t.test('when to come back', async (t) => {
  t.equal(retryAfter('7'), 7000)
  t.equal(retryAfter('Thu, 01 Jan 1970 00:00:10 GMT', 4000), 6000)
  t.equal(retryAfter('Thu, 01 Jan 1970 00:00:10 GMT', 20_000), 0)
  for (const nothing of [undefined, '', '-1', 'soon', '99999999999999'])
    t.equal(retryAfter(nothing), undefined)
})

t.test('credentials', async (t) => {
  const folder = t.testdir({})
  const own = join(folder, 'own/credentials.json')
  const docker = join(folder, 'config.json')
  const credentials = new Credentials(own, [docker])
  t.strictSame(await credentials.get('docker.io'), {})
  await credentials.set('docker.io', { username: 'carol', password: 'a:b' })
  await credentials.set('localhost:5000', { username: '<token>', identityToken: 'refresh' })
  t.equal(statSync(own).mode & 0o777, 0o600)
  t.match(await credentials.get('docker.io'), { username: 'carol', password: 'a:b' })
  t.match(await credentials.get('localhost:5000'), { identityToken: 'refresh' })
  const { auths } = JSON.parse(readFileSync(own, 'utf8')) as { auths: object }
  t.strictSame(Object.keys(auths), ['https://index.docker.io/v1/', 'localhost:5000'], "Docker's keys")

  writeFileSync(`${own}.${process.pid}.new`, 'left by a crash')
  chmodSync(`${own}.${process.pid}.new`, 0o666)
  writeFileSync(own, JSON.stringify({ auths, other: { kept: true } }), { mode: 0o644 })
  t.equal(await credentials.erase('docker.io'), true)
  t.equal(await credentials.erase('docker.io'), false)
  t.equal(statSync(own).mode & 0o777, 0o600, 'what a crash left has no say')
  t.match(JSON.parse(readFileSync(own, 'utf8')), { other: { kept: true } }, 'settings of others stay')

  const auth = Buffer.from('dave:x').toString('base64')
  writeFileSync(docker, JSON.stringify({ auths: { 'https://index.docker.io/v1/': { auth }, 'a.lan': {} } }))
  t.match(await credentials.get('docker.io'), { username: 'dave', password: 'x' })
  t.strictSame(await credentials.get('a.lan'), {}, 'an empty entry is none')
  const all = await credentials.all()
  t.match(all, {
    'https://index.docker.io/v1/': { username: 'dave' },
    'localhost:5000': { identityToken: 'refresh' },
  })
  t.equal(Object.keys(all).length, 2)
  t.match(authFor(all, 'docker.io'), { username: 'dave' })
  t.strictSame(authFor(all, 'a.lan'), {})

  for (const damaged of ['{', '[]', 'null', '"x"']) {
    writeFileSync(docker, damaged)
    await t.rejects(credentials.get('a.lan'), { code: 'INVALID_ARGUMENT', message: /config\.json/ })
  }
  for (const helper of ['../../bin/sh', 'a b', 7]) {
    writeFileSync(docker, JSON.stringify({ credsStore: helper }))
    await t.rejects(credentials.get('a.lan'), { code: 'INVALID_ARGUMENT', message: /no plain name/ })
  }
  writeFileSync(docker, JSON.stringify({ credsStore: 'coracle-not-there' }))
  await t.rejects(credentials.get('a.lan'), { code: 'HOST_TOOL', message: /no such program/ })
})

t.test('a credential helper', async (t) => {
  const folder = t.testdir({})
  const own = join(folder, 'credentials.json')
  const helper = join(folder, 'docker-credential-test')
  const kept = join(folder, 'kept')
  writeFileSync(
    helper,
    `#!/bin/sh\ncase $1 in store) cat >${kept};; erase) rm ${kept};;\n` +
      `get) cat ${kept} 2>/dev/null || { echo credentials not found in native keychain; exit 1; };; esac\n`,
    { mode: 0o755 },
  )
  const path = process.env['PATH']
  process.env['PATH'] = `${folder}:${path}`
  t.teardown(() => (process.env['PATH'] = path))
  const text = JSON.stringify({ credHelpers: { 'a.lan': 'test' } })
  writeFileSync(own, text)
  const credentials = new Credentials(own, [])
  t.strictSame(await credentials.get('a.lan'), {})
  t.equal(await credentials.erase('a.lan'), false)
  await credentials.set('a.lan', { username: 'carol', password: 'secret' })
  t.strictSame(JSON.parse(readFileSync(kept, 'utf8')), {
    ServerURL: 'a.lan',
    Username: 'carol',
    Secret: 'secret',
  })
  t.equal(readFileSync(own, 'utf8'), text, 'no secret in the file')
  t.strictSame(await credentials.get('a.lan'), { username: 'carol', password: 'secret' })
  t.strictSame(await credentials.get('b.lan'), {})
  await credentials.set('a.lan', { identityToken: 'refresh' })
  t.strictSame(await credentials.get('a.lan'), { identityToken: 'refresh' })
  t.equal(await credentials.erase('a.lan'), true)
  for (const [script, message] of [
    ['yes', /said too much/],
    ['echo {}', /no credentials that can be read/],
    ['exit 3', /it failed \(3\)/],
  ] as const) {
    writeFileSync(helper, `#!/bin/sh\n${script}\n`)
    await t.rejects(credentials.get('a.lan'), { code: 'HOST_TOOL', message })
    t.strictSame(await credentials.all(), {}, 'whoever needs it is told by the registry')
  }
})
