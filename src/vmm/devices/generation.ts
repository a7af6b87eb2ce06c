import { randomFillSync } from 'node:crypto'
import type { Vm } from '../../kvm/index.js'
import { GENERATION_ID } from '../memory/layout.js'
import type { Ram } from '../memory/ram.js'

/** Bytes of the identifier. */
const SIZE = 16
/**
 * The line of the generic event device (ACPI 6.5 §5.6.9), by which a guest hears of another identifier. The IOAPIC alone
 * has it: a guest that uses the old interrupt controllers need not know of it.
 */
export const GENERATION_GSI = 16

/**
 * Gives the machine another generation identifier (Microsoft, "Virtual Machine Generation ID"): what a guest compares
 * to know that it goes on as one of several copies, and must not use again what only one may, such as its random
 * numbers. Linux (drivers/virt/vmgenid.c, from 5.18 on) then reseeds its generator.
 */
export function newGeneration(ram: Ram): void {
  randomFillSync(ram.bytes(GENERATION_ID, SIZE))
}

/** Has the guest look at its identifier, once it runs: one edge. Its interrupt controllers are in place by now. */
export function announceGeneration(vm: Vm): void {
  vm.irqLine(GENERATION_GSI, true)
  vm.irqLine(GENERATION_GSI, false)
}
