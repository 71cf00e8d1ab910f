/**
 * The body of a `tapLog` section: the outputs that were held when the transaction's state was captured and
 * that no earlier transaction carries, and the guest writes that were taken from a vCPU but not yet
 * dispatched to a device.
 *
 * Layout: releasedThrough u64, firstSeq u64, outputs u32, triggers u32; then the outputs {kind u8, zero u8,
 * device u16, bytes u32, data}; then the triggers {space u8, size u8, zero u16, address u64, value lo u32,
 * value hi u32}. Outputs are numbered without gaps from `firstSeq`.
 */
import { assert } from '../../base/assert.ts';
import { hi32, lo32, u64 } from '../../base/bits.ts';
import { readU32, writeU32 } from './cursor.ts';

/** What a logged output is. Block requests are never logged: they are re-popped from the device's state. */
export const LOGGED = { frame: 1, console: 2 } as const;
/** Where a trigger writes. */
export const TRIGGER_SPACE = { pio: 1, mmio: 2 } as const;

/** Bytes of the body's fixed part. */
export const TAP_LOG_HEADER_BYTES = 24;
/** Bytes in front of every output's data. */
export const LOGGED_HEADER_BYTES = 8;
/** Bytes of one trigger. */
export const TRIGGER_BYTES = 20;

/** Writes the fixed part; @returns the offset behind it. */
export function writeTapLogHeader(
  out: Uint8Array,
  at: number,
  releasedThrough: number,
  firstSeq: number,
  outputs: number,
  triggers: number,
): number {
  assert(at + TAP_LOG_HEADER_BYTES <= out.length, 'room for a tap log header');
  writeU32(out, at, lo32(releasedThrough));
  writeU32(out, at + 4, hi32(releasedThrough));
  writeU32(out, at + 8, lo32(firstSeq));
  writeU32(out, at + 12, hi32(firstSeq));
  writeU32(out, at + 16, outputs);
  writeU32(out, at + 20, triggers);
  return at + TAP_LOG_HEADER_BYTES;
}

/** Writes the header of one output; its data follows. @returns the offset of the data. */
export function writeLoggedHeader(
  out: Uint8Array,
  at: number,
  kind: number,
  device: number,
  bytes: number,
): number {
  out[at] = kind;
  out[at + 1] = 0;
  out[at + 2] = device;
  out[at + 3] = device >>> 8;
  writeU32(out, at + 4, bytes);
  return at + LOGGED_HEADER_BYTES;
}

/** Writes one trigger; the value is two 32-bit halves, so that 8-byte MMIO writes keep all their bits. */
export function writeTrigger(
  out: Uint8Array,
  at: number,
  space: number,
  size: number,
  address: number,
  valueLo: number,
  valueHi: number,
): number {
  out[at] = space;
  out[at + 1] = size;
  out[at + 2] = 0;
  out[at + 3] = 0;
  writeU32(out, at + 4, lo32(address));
  writeU32(out, at + 8, hi32(address));
  writeU32(out, at + 12, valueLo);
  writeU32(out, at + 16, valueHi);
  return at + TRIGGER_BYTES;
}

/** Walks a `tapLog` body: first all outputs, then all triggers. Reusable. */
export class TapLogReader {
  #bytes: Uint8Array = new Uint8Array(0);
  #at = 0;
  #end = 0;
  #outputsLeft = 0;
  #triggersLeft = 0;
  releasedThrough = 0;
  firstSeq = 0;
  outputs = 0;
  triggers = 0;
  malformed = false;
  /** The current output. */
  kind = 0;
  device = 0;
  dataStart = 0;
  dataEnd = 0;
  /** The current trigger. */
  space = 0;
  size = 0;
  address = 0;
  valueLo = 0;
  valueHi = 0;

  reset(bytes: Uint8Array, start: number, end: number): this {
    this.#bytes = bytes;
    this.#end = end;
    this.#at = start + TAP_LOG_HEADER_BYTES;
    this.#outputsLeft = 0;
    this.#triggersLeft = 0;
    this.malformed = this.#at > end;
    if (this.malformed) return this;
    const highest = Math.max(readU32(bytes, start + 4), readU32(bytes, start + 12));
    this.malformed = highest >= 0x20_0000;
    if (this.malformed) return this;
    this.releasedThrough = u64(readU32(bytes, start), readU32(bytes, start + 4));
    this.firstSeq = u64(readU32(bytes, start + 8), readU32(bytes, start + 12));
    this.outputs = readU32(bytes, start + 16);
    this.triggers = readU32(bytes, start + 20);
    this.#outputsLeft = this.outputs;
    this.#triggersLeft = this.triggers;
    return this;
  }

  /** Moves to the next output; false after the last one or when malformed. */
  nextOutput(): boolean {
    if (this.malformed || this.#outputsLeft === 0) return false;
    const at = this.#at;
    if (this.#end - at < LOGGED_HEADER_BYTES) return this.#bad();
    const b = this.#bytes;
    this.kind = b[at]!;
    this.device = b[at + 2]! | (b[at + 3]! << 8);
    this.dataStart = at + LOGGED_HEADER_BYTES;
    this.dataEnd = this.dataStart + readU32(b, at + 4);
    if (this.dataEnd > this.#end) return this.#bad();
    if (this.kind !== LOGGED.frame && this.kind !== LOGGED.console) return this.#bad();
    this.#at = this.dataEnd;
    this.#outputsLeft--;
    return true;
  }

  /** Moves to the next trigger, once the outputs are walked; false after the last one or when malformed. */
  nextTrigger(): boolean {
    if (this.malformed) return false;
    assert(this.#outputsLeft === 0, 'outputs are walked before triggers');
    if (this.#triggersLeft === 0) {
      if (this.#at !== this.#end) this.malformed = true;
      return false;
    }
    const at = this.#at;
    if (this.#end - at < TRIGGER_BYTES) return this.#bad();
    const b = this.#bytes;
    this.space = b[at]!;
    this.size = b[at + 1]!;
    const addressHi = readU32(b, at + 8);
    const spaceKnown = this.space === TRIGGER_SPACE.pio || this.space === TRIGGER_SPACE.mmio;
    if (!spaceKnown || this.size < 1 || this.size > 8 || addressHi >= 0x20_0000) return this.#bad();
    this.address = u64(readU32(b, at + 4), addressHi);
    this.valueLo = readU32(b, at + 12);
    this.valueHi = readU32(b, at + 16);
    this.#at = at + TRIGGER_BYTES;
    this.#triggersLeft--;
    return true;
  }

  /** Walks to the end without looking at anything; whether the body is sound. */
  check(): boolean {
    while (this.nextOutput());
    if (this.#outputsLeft === 0) while (this.nextTrigger());
    return !this.malformed;
  }

  #bad(): false {
    this.malformed = true;
    return false;
  }
}
