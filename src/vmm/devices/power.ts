/**
 * The ports by which a guest ends: one for ACPI's sleep control and status registers (ACPI 6.5 §4.8.3.7), one for its
 * reset register (§4.8.3.6). The 8042's pulse on the reset line, which a kernel tries where ACPI failed it, counts too.
 */
export const POWER_PORT = 0x600
export const RESET_PORT = 0x601
export const RESET_VALUE = 1
/** SLP_TYPx of \_S5, soft off. */
export const SLEEP_TYPE_OFF = 5
const SLP_EN = 1 << 5
const SLP_TYP_SHIFT = 2
export const I8042_COMMAND = 0x64
const I8042_PULSE_RESET = 0xfe

/** What a write of `value` to `port` asks for, if anything. */
export function powerRequest(port: number, value: number): 'poweroff' | 'reset' | undefined {
  if (port === POWER_PORT && value === (SLP_EN | (SLEEP_TYPE_OFF << SLP_TYP_SHIFT))) return 'poweroff'
  if (port === RESET_PORT && value === RESET_VALUE) return 'reset'
  if (port === I8042_COMMAND && value === I8042_PULSE_RESET) return 'reset'
  return undefined
}
