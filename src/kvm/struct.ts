/** Widths of a structure's members; u64 is a bigint. */
type Scalar = 'u8' | 'u16' | 'u32' | 'u64'

/** A class made by {@link struct}, for a structure inside a structure. */
interface Inner {
  readonly size: number
  new (view?: DataView): object
}

/** A member: its offset in bytes, and its width or, for a structure inside the structure, its class. */
export type Field = readonly [offset: number, type: Scalar | Inner]

type Scalars<F> = {
  [K in keyof F as F[K] extends readonly [number, Scalar] ? K : never]: F[K] extends readonly [number, 'u64']
    ? bigint
    : number
}
type Inners<F> = {
  [K in keyof F as F[K] extends readonly [number, Inner] ? K : never]: F[K] extends readonly [
    number,
    new (view?: DataView) => infer S,
  ]
    ? S
    : never
}

/** A structure's members by name, and the memory they live in. */
export type Struct<F> = { -readonly [K in keyof Scalars<F>]: Scalars<F>[K] } & Readonly<Inners<F>> & {
    readonly view: DataView
  }

export interface StructClass<F> {
  /** sizeof, in bytes. */
  readonly size: number
  /** @param view where the structure lives; zeroed memory of its own by default */
  new (view?: DataView): Struct<F>
}

const ACCESS = {
  u8: { get: DataView.prototype.getUint8, set: DataView.prototype.setUint8 },
  u16: { get: DataView.prototype.getUint16, set: DataView.prototype.setUint16 },
  u32: { get: DataView.prototype.getUint32, set: DataView.prototype.setUint32 },
  u64: { get: DataView.prototype.getBigUint64, set: DataView.prototype.setBigUint64 },
} as const

/**
 * A class for a C structure: little-endian properties over a DataView that can be handed to an ioctl as it is.
 * @param size sizeof in bytes @param fields offset and width of each member, as in the header
 */
export function struct<const F extends Record<string, Field>>(size: number, fields: F): StructClass<F> {
  class Generated {
    static readonly size = size
    readonly view: DataView
    constructor(view = new DataView(new ArrayBuffer(size))) {
      if (view.byteLength < size) throw new RangeError(`a structure of ${size} bytes in ${view.byteLength}`)
      this.view = view
      for (const [name, [offset, type]] of Object.entries(fields)) {
        if (typeof type === 'string') continue
        const inner = new type(new DataView(view.buffer, view.byteOffset + offset, type.size))
        Object.defineProperty(this, name, { value: inner, enumerable: true })
      }
    }
  }
  for (const [name, [offset, type]] of Object.entries(fields)) {
    if (typeof type !== 'string') continue
    const { get, set } = ACCESS[type] as { get: DataView['getUint32']; set: DataView['setUint32'] }
    Object.defineProperty(Generated.prototype, name, {
      get(this: Generated) {
        return get.call(this.view, offset, true)
      },
      set(this: Generated, value: number) {
        set.call(this.view, offset, value, true)
      },
    })
  }
  return Generated as unknown as StructClass<F>
}
