/**
 * The shape of one component's saved state: a kind, a version and a codec. A restored payload must have
 * exactly that kind and version and be consumed to its last byte.
 */
import { VmmError } from '../base/error.ts';
import { type Fields, Reader, struct, Writer } from './codec.ts';

/** Names and lays out a saved state `T`. */
export interface Schema<T> {
  /** Kebab-case name of the component type: `uart16550`. */
  readonly kind: string;
  /** Raised whenever the layout changes. */
  readonly version: number;
  encode(value: T): Uint8Array;
  /** @throws VmmError `STATE_CORRUPT` */
  decode(payload: Uint8Array): T;
}

/** The state type of a schema. */
export type StateOf<S> = S extends Schema<infer T> ? T : never;

/** Makes a schema of named fields. */
export function schema<T extends object>(
  kind: string,
  version: number,
  fields: Fields<T>,
): Schema<T> {
  const codec = struct<T>(fields);
  return {
    kind,
    version,
    encode(value) {
      const out = new Writer();
      codec.write(out, value);
      return out.bytes().slice();
    },
    decode(payload) {
      const input = new Reader(payload);
      const value = codec.read(input);
      input.end();
      return value;
    },
  };
}

/** Throws `STATE_INVALID` unless `condition` holds; for the checks in a device's `load`. */
export function requireState(condition: boolean, what: string): asserts condition {
  if (!condition) {
    throw new VmmError('STATE_INVALID', `saved state is not possible: ${what}`, {
      hint: 'It was damaged or written by a different machine; take a new snapshot.',
    });
  }
}
