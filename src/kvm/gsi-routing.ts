import {
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQ_ROUTING_MSI,
} from './ioctl.js'

/** sizeof(struct kvm_irq_routing_entry), and the header before the entries (linux/kvm.h). */
const ENTRY = 48
const HEADER = 8
/** KVM_MAX_IRQ_ROUTES of the kernel. */
const MAX_ROUTES = 4096

/** A message signalled interrupt: a 64-bit address, as a number, and a 32-bit datum. */
export interface MsiMessage {
  readonly address: number
  readonly data: number
}

/** A pin of an interrupt controller in the kernel. @see KVM_IRQCHIP_PIC_MASTER */
export interface IrqchipPin {
  readonly irqchip: number
  readonly pin: number
}

type Route = MsiMessage | IrqchipPin

/**
 * The VM's table from GSI to interrupt (struct kvm_irq_routing). KVM takes the table only as a whole, so this holds
 * it, and {@link Vm.commitRouting} hands it over.
 */
export class GsiRouting {
  readonly #routes = new Map<number, readonly Route[]>()
  readonly #committed = new Set<number>()

  /** Gives `gsi` the message, in place of what it had. */
  setMsi(gsi: number, message: MsiMessage): this {
    return this.#set(gsi, [message])
  }

  setPins(gsi: number, pins: readonly IrqchipPin[]): this {
    return this.#set(gsi, pins)
  }

  remove(gsi: number): this {
    this.#routes.delete(gsi)
    return this
  }

  /** Whether the kernel has a route for `gsi`: only then may an irqfd use it. */
  isCommitted(gsi: number): boolean {
    return this.#committed.has(gsi)
  }

  /** What KVM itself installs with the full in-kernel irqchip: PIC and IOAPIC for 0-15, IOAPIC for 16-23. */
  setDefaultPins(): this {
    for (let gsi = 0; gsi < 24; gsi++) {
      const pins = [{ irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi }]
      if (gsi < 8) pins.unshift({ irqchip: KVM_IRQCHIP_PIC_MASTER, pin: gsi })
      else if (gsi < 16) pins.unshift({ irqchip: KVM_IRQCHIP_PIC_SLAVE, pin: gsi - 8 })
      this.setPins(gsi, pins)
    }
    return this
  }

  /** struct kvm_irq_routing, for KVM_SET_GSI_ROUTING. */
  encode(): DataView {
    const count = [...this.#routes.values()].reduce((sum, routes) => sum + routes.length, 0)
    if (count > MAX_ROUTES) throw new RangeError(`${count} interrupt routes: KVM takes ${MAX_ROUTES}`)
    const table = new DataView(new ArrayBuffer(HEADER + count * ENTRY))
    table.setUint32(0, count, true)
    let at = HEADER
    for (const [gsi, routes] of this.#routes)
      for (const route of routes) {
        table.setUint32(at, gsi, true)
        if ('irqchip' in route) {
          table.setUint32(at + 4, KVM_IRQ_ROUTING_IRQCHIP, true)
          table.setUint32(at + 16, route.irqchip, true)
          table.setUint32(at + 20, route.pin, true)
        } else {
          table.setUint32(at + 4, KVM_IRQ_ROUTING_MSI, true)
          encodeMsi(table, at + 16, route)
        }
        at += ENTRY
      }
    return table
  }

  /** Notes that the kernel has this table now. */
  markCommitted(): void {
    this.#committed.clear()
    for (const gsi of this.#routes.keys()) this.#committed.add(gsi)
  }

  #set(gsi: number, routes: readonly Route[]): this {
    if (!Number.isInteger(gsi) || gsi < 0 || gsi >= MAX_ROUTES) throw new RangeError(`GSI ${gsi}`)
    this.#routes.set(gsi, routes)
    return this
  }
}

/** The first 12 bytes of struct kvm_msi and of struct kvm_irq_routing_msi: address_lo, address_hi, data. */
export function encodeMsi(view: DataView, at: number, { address, data }: MsiMessage): void {
  view.setUint32(at, address % 2 ** 32, true)
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true)
  view.setUint32(at + 8, data, true)
}
