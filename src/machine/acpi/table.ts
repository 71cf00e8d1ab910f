/**
 * One ACPI table under construction: bytes, where pointers to other tables go, and where checksums go. The same form
 * serves a placement in guest memory (`place.ts`) and firmware that places the tables itself (`loader.ts`).
 */
import { assert } from '../../base/assert.ts';
import { hi32, lo32 } from '../../base/bits.ts';

const OEM_ID = 'TSVMM ';
const CREATOR_ID = 'TSVM';
const REVISION = 1;
/** Offset of the checksum in every table with the common header (ACPI 6.5, 5.2.6). */
const HEADER_CHECKSUM = 9;

/** A place in a table that holds another table's address. */
export interface TablePointer {
  readonly offset: number;
  readonly size: 4 | 8;
  /** The other table's name. */
  readonly target: string;
}

/** A byte that makes the sum over a range 0. */
export interface TableChecksum {
  readonly offset: number;
  readonly start: number;
  readonly length: number;
}

/** A finished table; pointers and checksums are still 0. */
export interface AcpiTable {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly alignment: number;
  readonly pointers: readonly TablePointer[];
  readonly checksums: readonly TableChecksum[];
}

/** Appends fields, little-endian. */
export class TableBuilder {
  readonly #name: string;
  readonly #bytes: number[] = [];
  readonly #pointers: TablePointer[] = [];

  constructor(name: string) {
    this.#name = name;
  }

  get length(): number {
    return this.#bytes.length;
  }

  u8(value: number): this {
    return this.#append(value, 1);
  }
  u16(value: number): this {
    return this.#append(value, 2);
  }
  u32(value: number): this {
    return this.#append(value, 4);
  }
  /** @param value below 2^53 */
  u64(value: number): this {
    return this.u32(lo32(value)).u32(hi32(value));
  }
  zeros(count: number): this {
    for (let i = 0; i < count; i++) this.#bytes.push(0);
    return this;
  }
  text(value: string): this {
    for (const char of value) this.#bytes.push(char.charCodeAt(0));
    return this;
  }
  raw(bytes: Uint8Array): this {
    for (const byte of bytes) this.#bytes.push(byte);
    return this;
  }
  /** The address of table `target`. */
  pointer(target: string, size: 4 | 8): this {
    this.#pointers.push({ offset: this.length, size, target });
    return this.zeros(size);
  }
  /** A generic address in I/O space (ACPI 6.5, 5.2.3.2); port 0 makes the null address. */
  ioAddress(port: number, bytes: number, accessSize: number): this {
    if (port === 0) return this.zeros(12);
    return this.u8(1)
      .u8(bytes * 8)
      .u8(0)
      .u8(accessSize)
      .u64(port);
  }
  /** The common table header (5.2.6); {@link finish} sets its length. */
  header(signature: string, revision: number): this {
    assert(this.length === 0 && signature.length === 4, 'a table begins with its header');
    return this.text(signature)
      .u32(0)
      .u8(revision)
      .u8(0)
      .text(OEM_ID)
      .text(`TSVMM${signature.slice(0, 3)}`)
      .u32(REVISION)
      .text(CREATOR_ID)
      .u32(REVISION);
  }

  /** The table; with a common header by default, otherwise with the checksums given. */
  finish(options: { alignment?: number; checksums?: readonly TableChecksum[] } = {}): AcpiTable {
    const bytes = Uint8Array.from(this.#bytes);
    let { checksums } = options;
    if (checksums === undefined) {
      new DataView(bytes.buffer).setUint32(4, bytes.length, true);
      checksums = [{ offset: HEADER_CHECKSUM, start: 0, length: bytes.length }];
    }
    return {
      name: this.#name,
      bytes,
      alignment: options.alignment ?? 8,
      pointers: this.#pointers,
      checksums,
    };
  }

  #append(value: number, size: number): this {
    assert(value >= 0 && value < 2 ** (8 * size), `${this.#name}: ${value} fits ${size} bytes`);
    for (let i = 0; i < size; i++) this.#bytes.push((value >>> (8 * i)) & 0xff);
    return this;
  }
}
