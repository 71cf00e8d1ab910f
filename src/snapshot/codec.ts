/**
 * Little-endian primitives of saved state: a growing writer, a checked reader, and codecs that pair a read
 * with a write. Hostile bytes give a {@link VmmError} `STATE_CORRUPT`, never a huge allocation.
 */
import { VmmError } from '../base/error.ts';
import { shown } from '../base/text.ts';

/** A buffer that grows as it is written. */
export class Writer {
  #bytes: Uint8Array;
  #view: DataView;
  #length = 0;

  constructor(initialBytes = 1024) {
    this.#bytes = new Uint8Array(initialBytes);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get length(): number {
    return this.#length;
  }

  #room(n: number): number {
    const at = this.#length;
    const need = at + n;
    if (need > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(need, this.#bytes.length * 2));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = need;
    return at;
  }

  u8(value: number): void {
    const at = this.#room(1);
    this.#view.setUint8(at, value);
  }
  u16(value: number): void {
    const at = this.#room(2);
    this.#view.setUint16(at, value, true);
  }
  u32(value: number): void {
    const at = this.#room(4);
    this.#view.setUint32(at, value, true);
  }
  f64(value: number): void {
    const at = this.#room(8);
    this.#view.setFloat64(at, value, true);
  }
  u64(value: bigint): void {
    const at = this.#room(8);
    this.#view.setBigUint64(at, value, true);
  }
  raw(bytes: Uint8Array): void {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  /** Forgets what was written and keeps the buffer. */
  clear(): void {
    this.#length = 0;
  }

  /** What was written: a view that is good until the next write. */
  bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }
}

/** Reads what a {@link Writer} wrote. */
export class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get remaining(): number {
    return this.#bytes.length - this.#at;
  }

  #take(n: number): number {
    if (n > this.remaining) {
      throw corrupt(`${n} bytes wanted, ${this.remaining} left`);
    }
    const at = this.#at;
    this.#at += n;
    return at;
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1));
  }
  u16(): number {
    return this.#view.getUint16(this.#take(2), true);
  }
  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }
  f64(): number {
    return this.#view.getFloat64(this.#take(8), true);
  }
  u64(): bigint {
    return this.#view.getBigUint64(this.#take(8), true);
  }
  /** A copy of the next `n` bytes. */
  raw(n: number): Uint8Array {
    const at = this.#take(n);
    return this.#bytes.slice(at, at + n);
  }
  /** A view of the next `n` bytes. */
  view(n: number): Uint8Array {
    const at = this.#take(n);
    return this.#bytes.subarray(at, at + n);
  }

  /** Throws unless everything was read. */
  end(): void {
    if (this.remaining !== 0) throw corrupt(`${this.remaining} bytes left over`);
  }
}

/** The error of bytes that are not what they claim to be; `why` may hold some of them. */
export function corrupt(why: string): VmmError {
  return new VmmError('STATE_CORRUPT', `saved state cannot be read: ${shown(why)}`, {
    hint: 'It was damaged or written by an incompatible version; take a new snapshot.',
  });
}

/** How a `T` becomes bytes and back. */
export interface Codec<T> {
  write(out: Writer, value: T): void;
  read(input: Reader): T;
}

function checked(low: number, high: number, value: number): number {
  if (!(Number.isInteger(value) && value >= low && value <= high)) {
    throw new VmmError('STATE_INVALID', `${value} does not fit a field of ${low}..${high}`);
  }
  return value;
}

/** Unsigned 8 bits. */
export const u8: Codec<number> = {
  write: (out, value) => out.u8(checked(0, 0xff, value)),
  read: (input) => input.u8(),
};
/** Unsigned 16 bits. */
export const u16: Codec<number> = {
  write: (out, value) => out.u16(checked(0, 0xffff, value)),
  read: (input) => input.u16(),
};
/** Unsigned 32 bits. */
export const u32: Codec<number> = {
  write: (out, value) => out.u32(checked(0, 0xffffffff, value)),
  read: (input) => input.u32(),
};
/** A non-negative integer below 2^53 (addresses, nanoseconds), stored in 64 bits. */
export const u53: Codec<number> = {
  write: (out, value) => out.u64(BigInt(checked(0, Number.MAX_SAFE_INTEGER, value))),
  read: (input) => {
    const value = input.u64();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw corrupt(`${value} exceeds 2^53`);
    return Number(value);
  },
};
/** 64 bits as a BigInt (vCPU registers, MSRs). */
export const u64: Codec<bigint> = {
  write: (out, value) => out.u64(value),
  read: (input) => input.u64(),
};
/** Any Number. */
export const f64: Codec<number> = {
  write: (out, value) => out.f64(value),
  read: (input) => input.f64(),
};
/** One byte, 0 or 1. */
export const bool: Codec<boolean> = {
  write: (out, value) => out.u8(value ? 1 : 0),
  read: (input) => {
    const value = input.u8();
    if (value > 1) throw corrupt(`${value} is no boolean`);
    return value === 1;
  },
};
/** Exactly `length` bytes. */
export function fixedBytes(length: number): Codec<Uint8Array> {
  return {
    write(out, value) {
      if (value.length !== length) {
        throw new VmmError('STATE_INVALID', `${value.length} bytes where ${length} belong`);
      }
      out.raw(value);
    },
    read: (input) => input.raw(length),
  };
}
/** Up to `max` bytes with a 32-bit length. */
export function bytes(max: number): Codec<Uint8Array> {
  return {
    write(out, value) {
      out.u32(checked(0, max, value.length));
      out.raw(value);
    },
    read(input) {
      const length = input.u32();
      if (length > max) throw corrupt(`length ${length} exceeds ${max}`);
      return input.raw(length);
    },
  };
}
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });
/** UTF-8 text of up to `max` bytes. */
export function text(max = 4096): Codec<string> {
  const raw = bytes(max);
  return {
    write: (out, value) => raw.write(out, encoder.encode(value)),
    read(input) {
      try {
        return decoder.decode(raw.read(input));
      } catch (error) {
        if (error instanceof VmmError) throw error;
        throw corrupt('text is not UTF-8');
      }
    },
  };
}
/** Up to `max` items with a 32-bit count. */
export function array<T>(item: Codec<T>, max: number): Codec<T[]> {
  return {
    write(out, value) {
      out.u32(checked(0, max, value.length));
      for (const element of value) item.write(out, element);
    },
    read(input) {
      const count = input.u32();
      if (count > max) throw corrupt(`count ${count} exceeds ${max}`);
      const value: T[] = [];
      for (let i = 0; i < count; i++) value.push(item.read(input));
      return value;
    },
  };
}
/** A value that may be absent: one byte, then the value. */
export function optional<T>(item: Codec<T>): Codec<T | undefined> {
  return {
    write(out, value) {
      bool.write(out, value !== undefined);
      if (value !== undefined) item.write(out, value);
    },
    read: (input) => (bool.read(input) ? item.read(input) : undefined),
  };
}
/** One of a fixed list of strings, stored as its index. */
export function oneOf<const T extends string>(...values: readonly T[]): Codec<T> {
  return {
    write: (out, value) => out.u8(checked(0, values.length - 1, values.indexOf(value))),
    read(input) {
      const value = values[input.u8()];
      if (value === undefined) throw corrupt('unknown choice');
      return value;
    },
  };
}
/** The codecs of every field of `T`, in the order they are stored. */
export type Fields<T> = { readonly [K in keyof T]-?: Codec<T[K]> };
/** An object whose fields are stored in the order given. A field of `T` without a codec does not compile. */
export function struct<T extends object>(fields: Fields<T>): Codec<T> {
  const names = Object.keys(fields) as (keyof T & string)[];
  return {
    write(out, value) {
      for (const name of names) fields[name].write(out, value[name]);
    },
    read(input) {
      const value: Partial<T> = {};
      for (const name of names) value[name] = fields[name].read(input);
      return value as T;
    },
  };
}
