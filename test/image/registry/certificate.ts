import { generateKeyPairSync, sign, type KeyObject } from 'node:crypto'

/*
 * An authority and a certificate of it, made anew for each test: X.509 (RFC 5280) in DER by hand, since Node reads
 * certificates and makes none.
 */

const der = (tag: number, ...parts: Buffer[]): Buffer => {
  const content = Buffer.concat(parts)
  const { length } = content
  const head = length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255]
  return Buffer.concat([Buffer.from([tag, ...head]), content])
}
const sequence = (...parts: Buffer[]): Buffer => der(0x30, ...parts)
const oid = (hex: string): Buffer => der(0x06, Buffer.from(hex, 'hex'))
const yes = Buffer.from([0x01, 0x01, 0xff])

const ECDSA_SHA256 = sequence(oid('2a8648ce3d040302'))
const name = (common: string): Buffer =>
  sequence(der(0x31, sequence(oid('550403'), der(0x0c, Buffer.from(common)))))
const time = (year: number): Buffer => der(0x17, Buffer.from(`${year % 100}0101000000Z`))
const extension = (id: string, critical: boolean, value: Buffer): Buffer =>
  sequence(oid(id), ...(critical ? [yes] : []), der(0x04, value))

function certificate(
  subject: { common: string; key: KeyObject; extensions: Buffer[] },
  issuer: { common: string; key: KeyObject },
  serial: number,
): string {
  const year = new Date().getUTCFullYear()
  const body = sequence(
    der(0xa0, der(0x02, Buffer.from([2]))),
    der(0x02, Buffer.from([serial])),
    ECDSA_SHA256,
    name(issuer.common),
    sequence(time(year - 1), time(year + 2)),
    name(subject.common),
    subject.key.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(...subject.extensions)),
  )
  const signature = der(0x03, Buffer.from([0]), sign('sha256', body, issuer.key))
  const text = sequence(body, ECDSA_SHA256, signature).toString('base64')
  return `-----BEGIN CERTIFICATE-----\n${text.match(/.{1,64}/g)!.join('\n')}\n-----END CERTIFICATE-----\n`
}

/** PEM of an authority, and of a certificate for `localhost` and 127.0.0.1 with its key. */
export interface Certificates {
  authority: string
  certificate: string
  key: string
}

export function makeCertificates(): Certificates {
  const pair = (): { publicKey: KeyObject; privateKey: KeyObject } =>
    generateKeyPairSync('ec', { namedCurve: 'prime256v1' })
  const root = pair()
  const leaf = pair()
  const issuer = { common: 'Coracle test authority', key: root.privateKey }
  const names = sequence(der(0x82, Buffer.from('localhost')), der(0x87, Buffer.from([127, 0, 0, 1])))
  return {
    authority: certificate(
      { ...issuer, key: root.publicKey, extensions: [extension('551d13', true, sequence(yes))] },
      issuer,
      1,
    ),
    certificate: certificate(
      { common: 'localhost', key: leaf.publicKey, extensions: [extension('551d11', false, names)] },
      issuer,
      2,
    ),
    key: leaf.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  }
}
