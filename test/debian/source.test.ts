import t from 'tap'
import fc from 'fast-check'
import { chooseSource, parseDeb822, parseOneLine } from '../../src/debian/source.js'
import { parsePrintUris } from '../../src/debian/apt.js'

const DEB822 = `# the main archive
Types: deb deb-src
# a comment amid
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/own.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBFit

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
Components: main
`

t.test('deb822 sources', async (t) => {
  t.strictSame(parseDeb822(DEB822), [
    {
      uri: 'http://mirror.example/debian',
      suites: ['bookworm', 'bookworm-updates'],
      components: ['main', 'contrib'],
      signedBy: '/usr/share/keyrings/own.gpg',
    },
    { uri: 'http://mirror.example/security', suites: ['bookworm-security'], components: ['main'] },
  ])
})

t.test('one-line sources', async (t) => {
  const text = `
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://a.example/debian/ trixie main contrib # near
deb-src https://a.example/debian trixie main
deb http://b.example/ubuntu noble main
nonsense
`
  t.strictSame(parseOneLine(text), [
    {
      uri: 'https://a.example/debian',
      suites: ['trixie'],
      components: ['main', 'contrib'],
      signedBy: '/k.gpg',
    },
    { uri: 'http://b.example/ubuntu', suites: ['noble'], components: ['main'] },
  ])
})

t.test('the nearest mirror is chosen, and Debian itself where the machine names none', async (t) => {
  const entries = parseDeb822(DEB822)
  t.strictSame(chooseSource(entries, false), {
    uri: 'http://mirror.example/debian',
    signedBy: '/usr/share/keyrings/own.gpg',
  })
  t.equal(chooseSource(entries, true).uri, 'http://mirror.example/security')
  const ubuntu = parseOneLine('deb http://b.example/ubuntu noble main\ndeb cdrom:[x]/ bookworm main')
  t.equal(chooseSource(ubuntu, false).uri, 'http://deb.debian.org/debian')
  t.equal(chooseSource(ubuntu, true).uri, 'http://deb.debian.org/debian-security')
})

t.test('no text upsets the parsers', async () => {
  const word = fc.constantFrom('deb', ' ', '\n', 'Types:', 'URIs: http://x', '[', ']', 'main', '#', ':')
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.array(word).map((words) => words.join('')),
      ),
      (text) => {
        parseDeb822(text)
        parseOneLine(text)
        parsePrintUris(text)
      },
    ),
  )
})

t.test("apt's list of URIs", async (t) => {
  const text = `Reading package lists...
'http://m/pool/q_1%3a7.2+b3_amd64.deb' qemu-system-x86_1%3a7.2+dfsg-7+b3_amd64.deb 9281168 SHA256:aa
'http://m/pool/i_4_all.deb' iso-codes_4.15.0-1_all.deb 2906084 MD5Sum:00
`
  t.strictSame(parsePrintUris(text), [
    { name: 'qemu-system-x86', version: '1:7.2+dfsg-7+b3', size: 9281168 },
    { name: 'iso-codes', version: '4.15.0-1', size: 2906084 },
  ])
})
