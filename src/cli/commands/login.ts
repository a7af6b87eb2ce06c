import { createInterface } from 'node:readline'
import { Writable } from 'node:stream'
import { CoracleError } from '../../errors.js'
import { Credentials } from '../../image/registry/credentials.js'
import { serverName } from '../../image/registry/registry.js'
import { parseOptions, withClient, type CommandHelp, type Invocation } from '../command.js'

const help = {
  usage: 'login [OPTIONS] [SERVER]',
  summary:
    'Logs in to a registry, Docker Hub when none is named, and keeps the credentials for pulls and pushes.',
  options: (yargs) =>
    yargs
      .option('username', { alias: 'u', type: 'string', requiresArg: true, describe: 'User name' })
      .option('password', {
        alias: 'p',
        type: 'string',
        requiresArg: true,
        describe: 'Password; others on this host can see it in the list of processes',
      })
      .option('password-stdin', { type: 'boolean', describe: 'Read the password from stdin' }),
  examples: [['login -u carol --password-stdin registry.example:5000 <file', 'without a question']],
  words: [0, 1],
} satisfies CommandHelp<unknown>

/** Bytes of a password at most. */
const LONGEST = 64 * 1024

export async function run(invocation: Invocation): Promise<number> {
  const options = await parseOptions(invocation.words, help)
  if (!options) return 0
  const server = serverName(options._[0] ?? '')
  const username = options.username ?? (await ask('Username: ', false))
  if (options['password-stdin'] && (options.password !== undefined || options.username === undefined))
    throw new CoracleError(
      'USAGE',
      "--password-stdin goes with --username and without --password. See 'coracle login --help'.",
    )
  const password = options['password-stdin']
    ? await readPassword()
    : (options.password ?? (await ask('Password: ', true)))
  if (username === '' || password === '')
    throw new CoracleError('USAGE', "user name and password must not be empty. See 'coracle login --help'.")
  return withClient(invocation, async (client) => {
    const { IdentityToken } = await client.json<{ IdentityToken?: string }>('POST', '/auth', {
      body: { username, password, serveraddress: server },
    })
    await new Credentials().set(server, {
      username,
      ...(IdentityToken ? { identityToken: IdentityToken } : { password }),
    })
    process.stdout.write('Login Succeeded\n')
    return 0
  })
}

async function readPassword(): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    if ((length += chunk.length) > LONGEST)
      throw new CoracleError('USAGE', `the password on stdin is longer than ${LONGEST} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '')
}

/** Asks on the terminal. @param hidden what is typed does not show */
function ask(question: string, hidden: boolean): Promise<string> {
  if (!process.stdin.isTTY)
    throw new CoracleError('USAGE', 'there is no terminal to ask on: use --username and --password-stdin')
  process.stderr.write(question)
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() })
  const lines = createInterface({
    input: process.stdin,
    output: hidden ? silent : process.stderr,
    terminal: true,
  })
  return new Promise((resolve, reject) => {
    let answered = false
    lines.once('line', (line) => {
      answered = true
      lines.close()
      if (hidden) process.stderr.write('\n')
      resolve(line)
    })
    lines.once('close', () => {
      if (!answered) reject(new CoracleError('USAGE', 'nothing was typed'))
    })
    lines.once('SIGINT', () => lines.close())
  })
}
