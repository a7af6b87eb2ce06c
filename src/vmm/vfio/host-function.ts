import type { EventFd, Mapping } from '@coracle/sys'

/** A part of a BAR, in bytes from its start. */
export interface Area {
  readonly offset: number
  readonly size: number
}

/** One of a device's BARs. */
export interface HostBar {
  /** Bytes. */
  readonly size: number
  /** What may be mapped; none where every access must be a system call. */
  readonly mappable: readonly Area[]
}

/** A PCI function of the host that is the guest's for a while: VFIO's, or a test's. */
export interface HostFunction {
  /** Its address on the host, `0000:01:10.0`. */
  readonly name: string
  /** By BAR; undefined where there is none. */
  readonly bars: readonly (HostBar | undefined)[]
  /** MSI-X vectors that the host can hand out for it. */
  readonly vectors: number

  /** Its configuration space, 256 or 4096 bytes. */
  readConfig(): Uint8Array
  /** Writes the command register (PCI Local Bus 3.0 §6.2.2). */
  writeCommand(value: number): void
  /** 1, 2, 4 or 8 bytes of a BAR. */
  readBar(index: number, offset: number, into: Uint8Array): void
  writeBar(index: number, offset: number, from: Uint8Array): void
  /** Maps a part of a BAR that is {@link HostBar.mappable}; the caller unmaps it. */
  mapBar(index: number, area: Area): Mapping
  /** Has each vector signal its eventfd; an empty list takes all back. */
  setVectors(events: readonly EventFd[]): void
  /** Signalled when the device had an error that it cannot get over, and when the host wants it back. */
  watch(failed: EventFd, wanted: EventFd): void
  /** As after power-on, where the device has a way to it. */
  reset(): void
  close(): void
}
