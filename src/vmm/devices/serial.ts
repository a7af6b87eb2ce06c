import type { Saved } from '../snapshot/saved.js'

/** The first serial port: eight ports, interrupt line 4. */
export const COM1 = 0x3f8
export const COM1_PORTS = 8
export const COM1_GSI = 4

/** Registers of a 16550A by their offset, under their names of linux/serial_reg.h. */
const UART_TX = 0
const UART_IER = 1
const UART_IIR = 2
const UART_LCR = 3
const UART_MCR = 4
const UART_LSR = 5
const UART_MSR = 6
const UART_SCR = 7

const UART_IER_THRI = 0x02
const UART_IIR_NO_INT = 0x01
const UART_IIR_THRI = 0x02
const UART_IIR_FIFO = 0xc0
const UART_FCR_ENABLE_FIFO = 0x01
const UART_LCR_DLAB = 0x80
const UART_MCR_LOOP = 0x10
const UART_LSR_DR = 0x01
const UART_LSR_EMPTY = 0x60
/** Carrier, data set ready, clear to send: somebody listens. */
const UART_MSR_READY = 0xb0

/**
 * A 16550A whose other end takes every byte at once and never sends one: what a kernel needs for its console.
 * Transmitting is always possible, so a driver never waits.
 */
export class Serial {
  readonly #output: (byte: number) => void
  readonly #interrupt: () => void
  #ier = 0
  #lcr = 0
  #mcr = 0
  #scr = 0
  #fifo = false
  #divisor = 1
  #transmitterInterrupt = false
  #loop: number | undefined

  /**
   * @param output takes what the guest sends
   * @param interrupt gives one edge on the port's interrupt line
   */
  constructor(output: (byte: number) => void, interrupt: () => void) {
    this.#output = output
    this.#interrupt = interrupt
  }

  /** @param register 0 to 7 */
  read(register: number): number {
    const divisor = (this.#lcr & UART_LCR_DLAB) !== 0
    switch (register) {
      case UART_TX:
        return divisor ? this.#divisor & 0xff : this.#takeLooped()
      case UART_IER:
        return divisor ? this.#divisor >> 8 : this.#ier
      case UART_IIR: {
        const fifo = this.#fifo ? UART_IIR_FIFO : 0
        if (!this.#transmitterInterrupt) return UART_IIR_NO_INT | fifo
        this.#transmitterInterrupt = false
        return UART_IIR_THRI | fifo
      }
      case UART_LCR:
        return this.#lcr
      case UART_MCR:
        return this.#mcr
      case UART_LSR:
        return UART_LSR_EMPTY | (this.#loop === undefined ? 0 : UART_LSR_DR)
      case UART_MSR:
        return (this.#mcr & UART_MCR_LOOP) !== 0 ? loopedLines(this.#mcr) : UART_MSR_READY
      default:
        return this.#scr
    }
  }

  write(register: number, value: number): void {
    const divisor = (this.#lcr & UART_LCR_DLAB) !== 0
    switch (register) {
      case UART_TX:
        if (divisor) this.#divisor = (this.#divisor & 0xff00) | value
        else this.#transmit(value)
        break
      case UART_IER:
        if (divisor) this.#divisor = (this.#divisor & 0xff) | (value << 8)
        else this.#enableInterrupts(value & 0x0f)
        break
      case UART_IIR:
        this.#fifo = (value & UART_FCR_ENABLE_FIFO) !== 0
        break
      case UART_LCR:
        this.#lcr = value
        break
      case UART_MCR:
        this.#mcr = value & 0x1f
        break
      case UART_SCR:
        this.#scr = value
        break
    }
  }

  /** Its registers, for a snapshot. */
  save(): Record<string, number | boolean | null> {
    return {
      ier: this.#ier,
      lcr: this.#lcr,
      mcr: this.#mcr,
      scr: this.#scr,
      fifo: this.#fifo,
      divisor: this.#divisor,
      transmitterInterrupt: this.#transmitterInterrupt,
      loop: this.#loop ?? null,
    }
  }

  /** @throws CoracleError SNAPSHOT_INVALID */
  restore(state: Saved): void {
    this.#ier = state.get('ier').number(0x0f)
    this.#lcr = state.get('lcr').number(0xff)
    this.#mcr = state.get('mcr').number(0x1f)
    this.#scr = state.get('scr').number(0xff)
    this.#fifo = state.get('fifo').boolean()
    this.#divisor = state.get('divisor').number(0xffff)
    this.#transmitterInterrupt = state.get('transmitterInterrupt').boolean()
    this.#loop = state.get('loop').optional()?.number(0xff)
  }

  #transmit(byte: number): void {
    if ((this.#mcr & UART_MCR_LOOP) !== 0) this.#loop = byte
    else this.#output(byte)
    this.#raiseIfWanted()
  }

  #enableInterrupts(ier: number): void {
    const before = this.#ier
    this.#ier = ier
    if ((ier & UART_IER_THRI) === 0) this.#transmitterInterrupt = false
    else if ((before & UART_IER_THRI) === 0) this.#raiseIfWanted()
  }

  #raiseIfWanted(): void {
    if ((this.#ier & UART_IER_THRI) === 0) return
    this.#transmitterInterrupt = true
    this.#interrupt()
  }

  #takeLooped(): number {
    const byte = this.#loop ?? 0
    this.#loop = undefined
    return byte
  }
}

/** In loop-back the outputs of MCR come back as the inputs of MSR: DTR, RTS, OUT1, OUT2 as DSR, CTS, RI, DCD. */
function loopedLines(mcr: number): number {
  return ((mcr & 1) << 5) | ((mcr & 2) << 3) | ((mcr & 4) << 4) | ((mcr & 8) << 4)
}
