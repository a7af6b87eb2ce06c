import { CONTINUE, type ExitHandler, PIO, RESET, type Verdict } from '../../src/kvm/index.js'

/** Answers port 0xe4 and MMIO reads with bytes 0x80 + address and up, and keeps what the guest writes. */
export class Recorder implements ExitHandler {
  /** `pio e0 1 = 41`: space, address, size, value, all hexadecimal, for writes alone. */
  readonly writes: string[] = []
  reads = 0
  /** Called after each write with its value, to act while the guest waits. @returns what becomes of it */
  onWrite: (value: number) => Verdict = () => CONTINUE

  access(
    space: number,
    address: number,
    size: number,
    isWrite: boolean,
    data: DataView,
    offset: number,
  ): Verdict {
    const place = `${space === PIO ? 'pio' : 'mmio'} ${address.toString(16)} ${size}`
    if (!isWrite) {
      this.reads++
      for (let i = 0; i < size; i++) data.setUint8(offset + i, (0x80 + i) & 0xff)
      return CONTINUE
    }
    const bytes = Array.from({ length: size }, (_, i) => data.getUint8(offset + size - 1 - i))
    const value = bytes.reduce((sum, byte) => sum * 256 + byte, 0)
    this.writes.push(`${place} = ${value.toString(16)}`)
    if (space === PIO && address === 0xcf9) return RESET
    return this.onWrite(value)
  }
}
