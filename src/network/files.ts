import { readFileSync } from 'node:fs'
import { CoracleError } from '../errors.js'
import type { SandboxFile } from '../isolation/sandbox.js'
import { parseAddress } from './address.js'
import { hostResolvConf, hostResolvers } from './wiring.js'

/** What a container's files of names are made of. */
export interface NameFiles {
  readonly hostname: string
  readonly domainname: string
  /** The container's own addresses, without prefixes. */
  readonly addresses: readonly string[]
  /** Where it asks for names: its gateways. Empty: the resolvers that are its own, else the host's. */
  readonly servers: readonly string[]
  readonly resolvers: readonly string[]
  /** `undefined`: the host's. One `.` is none. */
  readonly search: readonly string[] | undefined
  readonly options: readonly string[] | undefined
  /** `NAME:ADDRESS`; the address may be `host-gateway`. */
  readonly extraHosts: readonly string[]
  /** What `host-gateway` stands for. */
  readonly gateway: string | undefined
}

/** /etc/hosts, /etc/hostname and /etc/resolv.conf as Docker writes them. @throws CoracleError INVALID_ARGUMENT */
export function nameFiles(init: NameFiles): SandboxFile[] {
  return [
    { path: '/etc/hostname', content: `${init.hostname}\n` },
    { path: '/etc/hosts', content: hosts(init) },
    { path: '/etc/resolv.conf', content: resolvConf(init) },
  ]
}

/** The host's own, for a container on the host's network. */
export function hostFiles(hostname: string): SandboxFile[] {
  let hosts = ''
  try {
    hosts = readFileSync('/etc/hosts', 'utf8')
  } catch {
    // It has none.
  }
  return [
    { path: '/etc/hostname', content: `${hostname}\n` },
    { path: '/etc/hosts', content: hosts },
    { path: '/etc/resolv.conf', content: hostResolvConf() },
  ]
}

function hosts({ hostname, domainname, addresses, extraHosts, gateway }: NameFiles): string {
  const names = domainname === '' ? hostname : `${hostname}.${domainname}\t${hostname}`
  return [
    '127.0.0.1\tlocalhost',
    '::1\tlocalhost ip6-localhost ip6-loopback',
    'fe00::\tip6-localnet',
    'ff00::\tip6-mcastprefix',
    'ff02::1\tip6-allnodes',
    'ff02::2\tip6-allrouters',
    ...extraHosts.map((each) => extraHost(each, gateway)),
    ...addresses.map((address) => `${address}\t${names}`),
    '',
  ].join('\n')
}

function extraHost(text: string, gateway: string | undefined): string {
  const { name, address } = parseExtraHost(text)
  if (address !== 'host-gateway') return `${address}\t${name}`
  if (gateway === undefined)
    throw new CoracleError('INVALID_ARGUMENT', `'${text}' needs a network that has a gateway`)
  return `${gateway}\t${name}`
}

/** @throws CoracleError INVALID_ARGUMENT */
export function parseExtraHost(text: string): { name: string; address: string } {
  const match = /^([^:=\s]+)[:=](.+)$/.exec(text)
  const address = match?.[2]?.replace(/^\[(.*)\]$/, '$1')
  if (match && address !== undefined && (address === 'host-gateway' || parseAddress(address)))
    return { name: match[1]!, address }
  throw new CoracleError(
    'INVALID_ARGUMENT',
    `bad format for add-host: '${text.slice(0, 128)}': it is NAME:ADDRESS`,
  )
}

function resolvConf({ servers, resolvers, search, options }: NameFiles): string {
  const host = hostResolvConf()
  const line = (name: string): string[] =>
    [...host.matchAll(new RegExp(`^${name}\\s+(.*)$`, 'gm'))].at(-1)?.[1]?.trim().split(/\s+/) ?? []
  const domains = (search ?? line('search')).filter((each) => each !== '.')
  const settings = options ?? line('options')
  // A resolver on the host's loopback is nobody's in another namespace.
  const own = resolvers.length > 0 ? resolvers : hostResolvers().filter((each) => !/^(127\.|::1$)/.test(each))
  return [
    ...(servers.length > 0 ? servers : own).map((server) => `nameserver ${server}`),
    ...(domains.length > 0 ? [`search ${domains.join(' ')}`] : []),
    ...(settings.length > 0 ? [`options ${settings.join(' ')}`] : []),
    '',
  ].join('\n')
}
