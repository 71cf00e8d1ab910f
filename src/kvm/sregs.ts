/**
 * struct kvm_sregs (Linux, arch/x86/include/uapi/asm/kvm.h), as far as it is read and written here: segments of 24 bytes in
 * the order cs ds es fs gs ss tr ldt, descriptor tables of 16, then the control registers.
 */
import { assert } from '../base/assert.ts';

export const SREGS_BYTES = 312;
export const SEGMENT = { cs: 0, ds: 1, es: 2, fs: 3, gs: 4, ss: 5, tr: 6, ldt: 7 } as const;
export type SegmentName = keyof typeof SEGMENT;

const SEGMENT_BYTES = 24;
const TABLE_BYTES = 16;
const TABLES_AT = 8 * SEGMENT_BYTES;
const TABLE = { gdt: 0, idt: 1 } as const;
const CONTROL_AT = TABLES_AT + 2 * TABLE_BYTES;
const CONTROL = { cr0: 0, cr2: 8, cr3: 16, cr4: 24, cr8: 32, efer: 40, apicBase: 48 } as const;

const CR0_PE = 1n;
const EFER_LMA = 1n << 10n;

/** A segment register and what it hides (struct kvm_segment); bits that are not named are 0. */
export interface SegmentInit {
  readonly selector: number;
  readonly base: bigint;
  readonly limit: number;
  /** Type field of the descriptor (Intel SDM 3, 3.4.5.1 and 3.5). */
  readonly type: number;
  /** Code or data rather than system. */
  readonly s: 0 | 1;
  readonly db: 0 | 1;
  readonly l: 0 | 1;
  readonly g: 0 | 1;
  readonly present: 0 | 1;
}

/** Reader and writer over one state; borrows the bytes. */
export class Sregs {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    assert(bytes.length === SREGS_BYTES, 'struct kvm_sregs has 312 bytes');
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  segmentBase(name: SegmentName): bigint {
    return this.#view.getBigUint64(SEGMENT[name] * SEGMENT_BYTES, true);
  }
  segmentSelector(name: SegmentName): number {
    return this.#view.getUint16(SEGMENT[name] * SEGMENT_BYTES + 12, true);
  }
  setSegmentBase(name: SegmentName, base: bigint): void {
    this.#view.setBigUint64(SEGMENT[name] * SEGMENT_BYTES, base, true);
  }
  setSegmentSelector(name: SegmentName, selector: number): void {
    this.#view.setUint16(SEGMENT[name] * SEGMENT_BYTES + 12, selector, true);
  }
  /** Sets all of a segment register. */
  setSegment(name: SegmentName, init: SegmentInit): void {
    const at = SEGMENT[name] * SEGMENT_BYTES;
    const view = this.#view;
    view.setBigUint64(at, init.base, true);
    view.setUint32(at + 8, init.limit, true);
    view.setUint16(at + 12, init.selector, true);
    view.setUint8(at + 14, init.type);
    view.setUint8(at + 15, init.present);
    view.setUint8(at + 16, 0);
    view.setUint8(at + 17, init.db);
    view.setUint8(at + 18, init.s);
    view.setUint8(at + 19, init.l);
    view.setUint8(at + 20, init.g);
    view.setUint8(at + 21, 0);
    view.setUint8(at + 22, init.present === 1 ? 0 : 1);
  }
  setTable(name: keyof typeof TABLE, base: bigint, limit: number): void {
    const at = TABLES_AT + TABLE[name] * TABLE_BYTES;
    this.#view.setBigUint64(at, base, true);
    this.#view.setUint16(at + 8, limit, true);
  }
  control(name: keyof typeof CONTROL): bigint {
    return this.#view.getBigUint64(CONTROL_AT + CONTROL[name], true);
  }
  setControl(name: keyof typeof CONTROL, value: bigint): void {
    this.#view.setBigUint64(CONTROL_AT + CONTROL[name], value, true);
  }

  /** Paging by IA-32e tables is on: 64-bit code or compatibility mode. */
  get isLongMode(): boolean {
    return (this.control('efer') & EFER_LMA) !== 0n;
  }
  get isReal(): boolean {
    return (this.control('cr0') & CR0_PE) === 0n;
  }
  /** Default operand and address size of the code (Intel SDM 3, 3.4.5: CS.L and CS.D). */
  get codeBits(): 16 | 32 | 64 {
    const cs = SEGMENT.cs * SEGMENT_BYTES;
    if (this.isLongMode && this.#view.getUint8(cs + 19) === 1) return 64;
    if (this.isReal) return 16;
    return this.#view.getUint8(cs + 17) === 1 ? 32 : 16;
  }
}
