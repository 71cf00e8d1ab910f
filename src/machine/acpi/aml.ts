/**
 * A small encoder of AML, the byte code of ACPI's differentiated description table: just the terms that `dsdt.ts`
 * needs, as functions from terms to bytes. Sections: ACPI Specification 6.5, chapter 20 (AML) and 6.4 (resource
 * descriptors). Not a compiler: who calls it with nonsense gets an assertion or nonsense.
 */
import { assert } from '../../base/assert.ts';
import { hi32, lo32, U32 } from '../../base/bits.ts';

/** Encoded AML. */
export type Aml = readonly number[];

/** Bytes of the little-endian value in `size` bytes. */
function little(value: number, size: number): number[] {
  const out: number[] = [];
  for (let i = 0, left = value; i < size; i++, left = Math.floor(left / 256)) out.push(left % 256);
  return out;
}

function ascii(text: string): number[] {
  return Array.from(text, (char) => char.charCodeAt(0));
}

/** A length that counts its own bytes (20.2.4). */
function packageLength(contentBytes: number): number[] {
  if (contentBytes + 1 < 0x40) return [contentBytes + 1];
  for (let extra = 1; extra <= 3; extra++) {
    const total = contentBytes + 1 + extra;
    if (total < 2 ** (4 + 8 * extra)) {
      return [(extra << 6) | (total & 0x0f), ...little(Math.floor(total / 16), extra)];
    }
  }
  assert(false, 'an AML package is below 2^28 bytes');
}

function sized(opcode: readonly number[], content: Aml): Aml {
  // Not spread: tables are built while nothing is compiled yet, and this copies without the interpreter.
  return opcode.concat(packageLength(content.length), content);
}

/** A name or path such as `\_SB.PCI0` (20.2.2); segments shorter than four characters are padded. */
export function path(text: string): Aml {
  const prefix = /^[\\^]*/.exec(text)![0];
  const rest = text.slice(prefix.length);
  const segments = rest === '' ? [] : rest.split('.');
  const bytes = segments.flatMap((segment) => {
    assert(/^[A-Z_][A-Z0-9_]{0,3}$/.test(segment), `${segment} is an ACPI name`);
    return ascii(segment.padEnd(4, '_'));
  });
  const lead =
    segments.length === 0
      ? [0]
      : segments.length === 1
        ? []
        : segments.length === 2
          ? [0x2e]
          : [0x2f, segments.length];
  return [...ascii(prefix), ...lead, ...bytes];
}

/** A constant (20.2.3). */
export function integer(value: number): Aml {
  if (value === 0 || value === 1) return [value];
  if (value < 0x100) return [0x0a, value];
  if (value < 0x1_0000) return [0x0b, ...little(value, 2)];
  if (value < U32) return [0x0c, ...little(value, 4)];
  return [0x0e, ...little(value, 8)];
}

/** A string (20.2.3). */
export function string(text: string): Aml {
  return [0x0d, ...ascii(text), 0];
}

/** A compressed EISA id such as `PNP0A03` (19.6.37). */
export function eisaId(id: string): Aml {
  assert(/^[A-Z]{3}[0-9A-F]{4}$/.test(id), `${id} is an EISA id`);
  const [a, b, c] = ascii(id).map((code) => code - 0x40) as [number, number, number];
  const product = Number.parseInt(id.slice(3), 16);
  const vendor = (a << 10) | (b << 5) | c;
  return [0x0c, vendor >> 8, vendor & 0xff, product >> 8, product & 0xff];
}

/** A buffer with content (20.2.5.4). */
export function buffer(bytes: Aml): Aml {
  return sized([0x11], integer(bytes.length).concat(bytes));
}

/** A package (20.2.5.4). */
export function pack(...elements: readonly Aml[]): Aml {
  assert(elements.length < 256, 'a package has at most 255 elements');
  return sized([0x12], [elements.length].concat(...elements));
}

/** `Name (path, value)` (20.2.5.1). */
export function name(at: string, value: Aml): Aml {
  return [0x08].concat(path(at), value);
}

/** `Scope (path) { … }` (20.2.5.1). */
export function scope(at: string, ...terms: readonly Aml[]): Aml {
  return sized([0x10], path(at).concat(...terms));
}

/** `Device (path) { … }` (20.2.5.2). */
export function device(at: string, ...terms: readonly Aml[]): Aml {
  return sized([0x5b, 0x82], path(at).concat(...terms));
}

/** `Method (path, arguments, Serialized) { … }` (20.2.5.2). */
export function method(at: string, parameters: number, ...terms: readonly Aml[]): Aml {
  return sized([0x14], [...path(at), parameters | 0x08, ...terms.flat()]);
}

/** Argument `n` of the method (20.2.6.1). */
export const argument = (n: number): Aml => [0x68 + n];

/** `Return (value)` (20.2.5.3). */
export const giveBack = (value: Aml): Aml => [0xa4, ...value];

/** `If (condition) { … }` (20.2.5.3). */
export function when(condition: Aml, ...terms: readonly Aml[]): Aml {
  return sized([0xa0], [...condition, ...terms.flat()]);
}

/** `LEqual (a, b)` (20.2.5.4). */
export const equal = (a: Aml, b: Aml): Aml => [0x93, ...a, ...b];

/** `Or (a, b, target)` (20.2.5.4). */
export const or = (a: Aml, b: Aml, target: Aml): Aml => [0x7d, ...a, ...b, ...target];

/** `CreateDWordField (source, byte index, name)` (20.2.5.2). */
export const dwordField = (source: Aml, index: number, at: string): Aml => [
  0x8a,
  ...source,
  ...integer(index),
  ...path(at),
];

/** A UUID in the mixed byte order of `ToUUID` (19.6.142). */
export function uuid(text: string): Aml {
  const hex = text.replaceAll('-', '');
  assert(/^[0-9a-f]{32}$/.test(hex), `${text} is a UUID`);
  const order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
  return buffer(order.map((at) => Number.parseInt(hex.slice(2 * at, 2 * at + 2), 16)));
}

/** `ResourceTemplate () { … }`: descriptors and the end tag, whose sum 0 means "not checked" (6.4.2.9). */
export function resources(...descriptors: readonly Aml[]): Aml {
  return buffer([...descriptors.flat(), 0x79, 0]);
}

/** Fixed I/O ports, 16-bit decoded (6.4.2.5). */
export function ioPorts(base: number, length: number): Aml {
  return [0x47, 1, ...little(base, 2), ...little(base, 2), 1, length];
}

/** An edge-triggered, active-high ISA interrupt (6.4.2.1). */
export function isaIrq(irq: number): Aml {
  return [0x22, ...little(1 << irq, 2)];
}

/** Fixed 32-bit memory, read and write (6.4.3.4). */
export function fixedMemory(base: number, length: number): Aml {
  return [0x86, ...little(9, 2), 1, ...little(base, 4), ...little(length, 4)];
}

const WINDOW = { memory: 0, ports: 1, buses: 2 } as const;
/** Producer, positively decoded, both ends fixed (6.4.3.5.1, table 6.48). */
const WINDOW_FLAGS = 0x0c;

/** What a bridge passes on: [first, last] of memory, ports or bus numbers (6.4.3.5). */
export function window(kind: keyof typeof WINDOW, first: number, last: number): Aml {
  assert(first <= last, 'a window is not empty');
  const bytes = last < 0x1_0000 ? 2 : last < U32 ? 4 : 8;
  const tag = bytes === 2 ? 0x88 : bytes === 4 ? 0x87 : 0x8a;
  // Memory: read and write, not cacheable; ports: the whole range, not only ISA aliases.
  const specific = kind === 'memory' ? 1 : kind === 'ports' ? 3 : 0;
  const fields = [0, first, last, 0, last - first + 1];
  return [
    tag,
    ...little(3 + fields.length * bytes, 2),
    WINDOW[kind],
    WINDOW_FLAGS,
    specific,
    ...fields.flatMap((field) =>
      bytes === 8 ? [...little(lo32(field), 4), ...little(hi32(field), 4)] : little(field, bytes),
    ),
  ];
}
