/** Major and minor of a device number as stat(2) gives it: gnu_dev_major and gnu_dev_minor of sys/sysmacros.h. */
export function deviceNumber(device: number): { major: number; minor: number } {
  const high = Math.floor(device / 2 ** 32)
  return {
    major: ((device >>> 8) & 0xfff) | (high & 0xfffff000),
    minor: (device & 0xff) | ((device >>> 12) & 0xfff00),
  }
}
