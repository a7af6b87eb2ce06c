import { execFile } from 'node:child_process'
import { readFile, stat } from 'node:fs/promises'
import { promisify } from 'node:util'
import { sysroot } from '../debian/index.js'
import { CoracleError } from '../errors.js'
import type { Image } from './image.js'
import { packImage, packTar, type PackEntry } from './pack.js'
import type { ImageStore } from './store.js'

const NAME = 'docker.io/library/busybox:latest'
const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

const PASSWD = [
  'root:x:0:0:root:/root:/bin/sh',
  'daemon:x:1:1:daemon:/usr/sbin:/bin/false',
  'bin:x:2:2:bin:/bin:/bin/false',
  'sys:x:3:3:sys:/dev:/bin/false',
  'mail:x:8:8:mail:/var/spool/mail:/bin/false',
  'www-data:x:33:33:www-data:/var/www:/bin/false',
  'operator:x:37:37:Operator:/var:/bin/false',
  'nobody:x:65534:65534:nobody:/home:/bin/false',
]
const GROUP = [
  ['root', 0],
  ['daemon', 1],
  ['bin', 2],
  ['sys', 3],
  ['adm', 4],
  ['tty', 5],
  ['disk', 6],
  ['mail', 8],
  ['audio', 29],
  ['www-data', 33],
  ['video', 44],
  ['users', 100],
  ['nogroup', 65534],
].map(([name, id]) => `${name}:x:${id}:`)

const folder = (name: string, mode = 0o755): PackEntry => ({ name: `${name}/`, type: 'directory', mode })
const file = (name: string, lines: string[], mode = 0o644): PackEntry => ({
  name,
  mode,
  content: `${lines.join('\n')}\n`,
})

/**
 * The embedded image `busybox:latest`, made of Debian's busybox-static: the first container needs no registry.
 * Where the store has an image of that name, whatever it is, that one is left and returned.
 * @throws CoracleError HOST_TOOL where busybox cannot be fetched
 */
export async function busyboxImage(store: ImageStore): Promise<Image> {
  try {
    return store.get(NAME)
  } catch (error) {
    if (!(error instanceof CoracleError && error.code === 'NO_SUCH_IMAGE')) throw error
  }
  const program = (await sysroot('tools')).file('busybox')
  const archive = await busyboxArchive(program)
  const [image] = await store.load(
    (async function* () {
      yield archive
    })(),
  )
  return image!
}

/**
 * An OCI archive of busybox with all its applets. The same program gives the same bytes.
 * @param program path of a statically linked busybox
 */
export async function busyboxArchive(program: string): Promise<Buffer> {
  const [content, { mtime }, list] = await Promise.all([
    readFile(program),
    stat(program),
    promisify(execFile)(program, ['--list']),
  ])
  const applets = list.stdout.split('\n').filter((name) => name !== '' && name !== 'busybox')
  const layer = await packTar([
    ...['bin', 'dev', 'etc', 'home', 'proc'].map((name) => folder(name)),
    folder('root', 0o700),
    folder('sys'),
    folder('tmp', 0o1777),
    ...['usr', 'usr/bin', 'usr/sbin', 'var', 'var/spool', 'var/spool/mail', 'var/www'].map((name) =>
      folder(name),
    ),
    { name: 'bin/busybox', mode: 0o755, mtime, content },
    ...applets.sort().map((name): PackEntry => ({
      name: `bin/${name}`,
      type: 'link',
      linkname: 'bin/busybox',
      mode: 0o755,
    })),
    // Scripts name their interpreter by this path.
    { name: 'usr/bin/env', type: 'symlink', linkname: '../../bin/env', mode: 0o777 },
    file('etc/passwd', PASSWD),
    file('etc/group', GROUP),
    file('etc/shadow', ['root:*:::::::', 'nobody:*:::::::'], 0o600),
    file('etc/nsswitch.conf', ['hosts: files dns']),
  ])
  return packImage({
    name: NAME,
    layers: [layer],
    created: mtime.toISOString(),
    config: { Env: [PATH], Cmd: ['sh'] },
  })
}
