import type { CreateRequest } from '../engine/record.js'
import type { DeviceRate, DeviceRateKind } from '../engine/rates.js'
import { CoracleError } from '../errors.js'
import type { HostConfig } from './schemas.js'

/** The annotations (`HostConfig.Annotations`) that limit each network interface, in bytes a second. */
export const RECEIVE_ANNOTATION = 'coracle.network-receive-bps'
export const SEND_ANNOTATION = 'coracle.network-send-bps'

type Rates = Pick<CreateRequest, 'deviceRates' | 'networkRates'>

const FIELDS = [
  ['BlkioDeviceReadBps', 'readBps'],
  ['BlkioDeviceWriteBps', 'writeBps'],
  ['BlkioDeviceReadIOps', 'readIops'],
  ['BlkioDeviceWriteIOps', 'writeIops'],
] as const satisfies readonly (readonly [keyof HostConfig, DeviceRateKind])[]

/** The part of HostConfig that is about rates of devices, as it was asked for. */
export const ratesShape = ({ deviceRates = [] }: CreateRequest): object =>
  Object.fromEntries(
    FIELDS.map(([field, kind]) => {
      const rates = deviceRates.filter((each) => each.kind === kind)
      return [field, rates.length > 0 ? rates.map(({ path, rate }) => ({ Path: path, Rate: rate })) : null]
    }),
  )

/** @throws CoracleError INVALID_ARGUMENT */
export function ratesOf(host: HostConfig): { [K in keyof Rates]-?: Rates[K] | undefined } {
  const deviceRates = FIELDS.flatMap(([field, kind]): DeviceRate[] =>
    (host[field] ?? []).map(({ Path: path, Rate: rate }) => ({ kind, path, rate })),
  )
  const receiveBps = bytesOf(host, RECEIVE_ANNOTATION)
  const sendBps = bytesOf(host, SEND_ANNOTATION)
  const networkRates = {
    ...(receiveBps !== undefined && { receiveBps }),
    ...(sendBps !== undefined && { sendBps }),
  }
  return {
    deviceRates: deviceRates.length > 0 ? deviceRates : undefined,
    networkRates: Object.keys(networkRates).length > 0 ? networkRates : undefined,
  }
}

function bytesOf({ Annotations }: HostConfig, name: string): number | undefined {
  const text = Annotations?.[name]
  if (text === undefined) return undefined
  const value = /^\d{1,15}$/.test(text) ? Number(text) : 0
  if (value > 0) return value
  throw new CoracleError('INVALID_ARGUMENT', `${name} is a number of bytes a second`)
}
