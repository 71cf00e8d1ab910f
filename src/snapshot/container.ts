/**
 * The container of a machine's saved state: magic, format version, then sections (kind, instance, version,
 * payload, CRC-32C each), then a CRC-32C of the whole. What the sections mean is their owners' business.
 * Layout, all little-endian:
 *
 *   "TSVMMST\0" | u32 format | u32 section count | sections | u32 crc of all before
 *   section: text kind | text instance | u16 version | u32 length | u32 crc | payload
 */
import { crc32c } from '../base/crc32c.ts';
import { corrupt, Reader, text, Writer } from './codec.ts';
import type { Schema } from './schema.ts';

const MAGIC = [0x54, 0x53, 0x56, 0x4d, 0x4d, 0x53, 0x54, 0x00];
const FORMAT = 1;
const MAX_SECTIONS = 4096;
const MAX_SECTION_BYTES = 64 * 1024 * 1024;
const nameCodec = text(256);

/** One component's saved state. */
export interface Section {
  /** The schema's kind. */
  readonly kind: string;
  /** Which component of that kind: a device id, `vcpu0`. */
  readonly instance: string;
  readonly version: number;
  readonly payload: Uint8Array;
}

/** Encodes `value` by `schema` as the section of `instance`. */
export function sectionOf<T>(schema: Schema<T>, instance: string, value: T): Section {
  return { kind: schema.kind, instance, version: schema.version, payload: schema.encode(value) };
}

/** Joins sections into one container. */
export function encodeContainer(sections: readonly Section[]): Uint8Array {
  const out = new Writer(64 * 1024);
  for (const byte of MAGIC) out.u8(byte);
  out.u32(FORMAT);
  out.u32(sections.length);
  for (const { kind, instance, version, payload } of sections) {
    nameCodec.write(out, kind);
    nameCodec.write(out, instance);
    out.u16(version);
    out.u32(payload.length);
    out.u32(crc32c(payload));
    out.raw(payload);
  }
  out.u32(crc32c(out.bytes()));
  return out.bytes().slice();
}

/**
 * Takes a container apart.
 * @throws VmmError `STATE_CORRUPT`
 */
export function decodeContainer(bytes: Uint8Array): Section[] {
  const input = new Reader(bytes);
  for (const byte of MAGIC)
    if (input.u8() !== byte) throw corrupt('it does not start with the magic number');
  const format = input.u32();
  if (format !== FORMAT) throw corrupt(`format ${format}, this version reads ${FORMAT}`);
  const count = input.u32();
  if (count > MAX_SECTIONS) throw corrupt(`${count} sections`);
  const sections: Section[] = [];
  for (let i = 0; i < count; i++) {
    const kind = nameCodec.read(input);
    const instance = nameCodec.read(input);
    const version = input.u16();
    const length = input.u32();
    if (length > MAX_SECTION_BYTES) throw corrupt(`section ${kind}:${instance} of ${length} bytes`);
    const sum = input.u32();
    const payload = input.raw(length);
    if (crc32c(payload) !== sum) throw corrupt(`section ${kind}:${instance} fails its checksum`);
    sections.push({ kind, instance, version, payload });
  }
  const sum = input.u32();
  input.end();
  if (crc32c(bytes, 0, bytes.length - 4) !== sum) throw corrupt('the whole fails its checksum');
  return sections;
}

/** Looks sections up by schema and instance, and remembers which were taken. */
export class SectionSet {
  readonly #left = new Map<string, Section>();

  /** @throws VmmError `STATE_CORRUPT` when two sections have one name */
  constructor(sections: readonly Section[]) {
    for (const section of sections) {
      const key = `${section.kind}:${section.instance}`;
      if (this.#left.has(key)) throw corrupt(`two sections ${key}`);
      this.#left.set(key, section);
    }
  }

  /** Decodes and consumes one section. */
  take<T>(schema: Schema<T>, instance: string): T {
    const key = `${schema.kind}:${instance}`;
    const section = this.#left.get(key);
    if (section === undefined) throw corrupt(`no section ${key}`);
    if (section.version !== schema.version) {
      throw corrupt(
        `section ${key} has version ${section.version}, this program reads ${schema.version}`,
      );
    }
    this.#left.delete(key);
    return schema.decode(section.payload);
  }

  /** Throws unless every section was taken. */
  end(): void {
    const [first] = this.#left.keys();
    if (first !== undefined) throw corrupt(`section ${first} belongs to nothing on this machine`);
  }
}
