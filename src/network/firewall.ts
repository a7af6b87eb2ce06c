import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { NetlinkSocket, SysError } from '@coracle/sys'
import { toolCommand } from '../debian/index.js'
import { CoracleError } from '../errors.js'
import { replaceFile } from '../durable.js'
import { Subnet, parseAddress } from './address.js'
import type { Attachment, NetworkRecord, PublishedPort } from './record.js'
import { optionsOf } from './store.js'

/* linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h */
const NETLINK_NETFILTER = 12
const NFNL_SUBSYS_NFTABLES = 10
const NFT_MSG_GETTABLE = 1
const NFTA_TABLE_NAME = 1
const NFPROTO_INET = 1

/**
 * The rules of all networks, in one nftables table of our own: no other is touched. The table is replaced as a whole
 * in one transaction, from what is attached then, so that there is never half of a change.
 */
export class Firewall {
  readonly #table: string
  /** A digest of the rules that were set last. */
  readonly #stamp: string

  /** @param table its name, unique on the host @param stamp a file in the run folder */
  constructor(table: string, stamp: string) {
    this.#table = table
    this.#stamp = stamp
  }

  /** Makes the rules those of what is attached. @throws CoracleError NETWORK_FAILED */
  async apply(
    networks: ReadonlyMap<string, NetworkRecord>,
    attachments: readonly Attachment[],
  ): Promise<void> {
    const body = rulesOf(networks, attachments)
    const digest = createHash('sha256').update(body).digest('hex')
    const there = this.#there()
    if (body === '') {
      if (there) await nft(`delete table inet ${this.#table}\n`)
      rmSync(this.#stamp, { force: true })
      return
    }
    if (there && this.#last() === digest) return
    const head = `table inet ${this.#table}\ndelete table inet ${this.#table}\n`
    await nft(`${head}table inet ${this.#table} {\n${body}}\n`)
    mkdirSync(dirname(this.#stamp), { recursive: true, mode: 0o700 })
    replaceFile(this.#stamp, digest)
  }

  #last(): string | undefined {
    try {
      return readFileSync(this.#stamp, 'utf8')
    } catch {
      return undefined
    }
  }

  /** Somebody may have flushed all tables since. */
  #there(): boolean {
    const name = Buffer.from(`${this.#table}\0`)
    const body = Buffer.alloc(4 + ((4 + name.length + 3) & ~3))
    body[0] = NFPROTO_INET
    body.writeUInt16LE(4 + name.length, 4)
    body.writeUInt16LE(NFTA_TABLE_NAME, 6)
    body.set(name, 8)
    try {
      using socket = new NetlinkSocket(NETLINK_NETFILTER)
      socket.request((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETTABLE, 0, body, 'get table')
      return true
    } catch (error) {
      if (error instanceof SysError) return false
      throw error
    }
  }
}

/** The chains of the table; empty where nothing is attached to a bridge. */
export function rulesOf(
  networks: ReadonlyMap<string, NetworkRecord>,
  attachments: readonly Attachment[],
): string {
  const used = new Set(attachments.flatMap(({ interfaces }) => interfaces.map(({ network }) => network)))
  const bridges = [...networks.values()].filter(({ id, driver }) => driver === 'bridge' && used.has(id))
  if (bridges.length === 0) return ''
  const published = attachments.flatMap((each) => publishedOf(each, networks))
  const devices = bridges.map(({ device }) => `"${device}"`).join(', ')
  return `
  set bridges {
    type ifname
    elements = { ${devices} }
  }
  chain raw {
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
  }
  chain published {
${lines(published)}  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump published
  }
  chain output {
    type nat hook output priority -100; policy accept;
    fib daddr type local jump published
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 127.0.0.0/8 oifname @bridges masquerade
${lines(bridges.flatMap(sourceRules))}  }
  chain forward {
    type filter hook forward priority filter; policy accept;
${lines(bridges.flatMap(neighbourRules))}    oifname @bridges ct state established,related accept
${lines(bridges.filter(({ internal }) => internal).map(({ device }) => `oifname "${device}" drop\n    iifname "${device}" drop`))}    oifname @bridges ct status dnat accept
    oifname @bridges drop
  }
`
}

const lines = (all: readonly string[]): string => all.map((line) => `    ${line}\n`).join('')

/** Whose packets leave under the host's address: those for elsewhere, and those that come back to the same network. */
function sourceRules(record: NetworkRecord): string[] {
  const { device } = record
  return record.subnets.flatMap(({ subnet }) => {
    const from = `${Subnet.parse(subnet)!.family === 4 ? 'ip' : 'ip6'} saddr ${subnet}`
    return [
      ...(optionsOf(record).masquerade ? [`${from} oifname != "${device}" masquerade`] : []),
      `${from} oifname "${device}" ct status dnat masquerade`,
    ]
  })
}

/** Within a bridge: seen here where the host has its packets filtered too (br_netfilter). */
function neighbourRules(record: NetworkRecord): string[] {
  const within = `iifname "${record.device}" oifname "${record.device}"`
  if (optionsOf(record).together) return [`${within} accept`]
  return [
    `${within} ct state established,related accept`,
    `${within} ct status dnat accept`,
    `${within} drop`,
  ]
}

/** The rules that lead to an attachment's published ports. */
function publishedOf(attachment: Attachment, networks: ReadonlyMap<string, NetworkRecord>): string[] {
  return attachment.ports.flatMap((port) => {
    const host = parseAddress(port.hostAddress)!
    const target = targetOf(attachment, networks, host.family)
    if (target === undefined) return []
    const any = host.value === 0n
    const ip = host.family === 4 ? 'ip' : 'ip6'
    const match = any ? `meta nfproto ipv${host.family}` : `${ip} daddr ${port.hostAddress}`
    // From the host itself to ::1 no packet can be led elsewhere: the relay serves that.
    const not = host.family === 6 && any ? 'ip6 daddr != ::1 ' : ''
    const to = host.family === 4 ? target : `[${target}]`
    return [
      `${match} ${not}${port.protocol} dport ${port.hostPort} dnat ${ip} to ${to}:${port.containerPort}`,
    ]
  })
}

/** The container's address of this family behind its published ports: of its first network that leads outside. */
export function targetOf(
  { interfaces }: Pick<Attachment, 'interfaces'>,
  networks: ReadonlyMap<string, NetworkRecord>,
  family: 4 | 6,
): string | undefined {
  for (const { network, addresses } of interfaces) {
    const record = networks.get(network)
    if (record?.driver !== 'bridge' || record.internal) continue
    const found = addresses.find((cidr) => Subnet.parse(cidr)?.family === family)
    if (found !== undefined) return found.split('/')[0]!
  }
  return undefined
}

/** Whether a port needs the networks' bridges to pass on what the host sends from its loopback addresses. */
export const isReachedFromLoopback = ({ hostAddress }: PublishedPort): boolean =>
  hostAddress === '0.0.0.0' || hostAddress.startsWith('127.')

/** Runs nft(8) on `script`: all of it or none. @throws CoracleError NETWORK_FAILED */
async function nft(script: string): Promise<void> {
  const { argv, env } = await toolCommand('nft')
  const child = spawn(argv[0]!, [...argv.slice(1), '-f', '-'], {
    env: { ...process.env, ...env },
    stdio: ['pipe', 'ignore', 'pipe'],
  })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  child.stdin.on('error', () => undefined)
  child.stdin.end(script)
  const status = await new Promise<number | null>((resolve, reject) => {
    child.on('close', resolve)
    child.on('error', (error) => reject(new CoracleError('HOST_TOOL', `cannot run nft: ${error.message}`)))
  })
  if (status === 0) return
  const reason = said.split('\n').find((line) => line !== '') ?? `status ${status}`
  throw new CoracleError('NETWORK_FAILED', `the rules of the networks cannot be set: nft: ${reason}`)
}
