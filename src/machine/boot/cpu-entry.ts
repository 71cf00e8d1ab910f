/**
 * Puts a vCPU at a boot entry: general registers, segments, control registers. Layout of struct kvm_sregs: eight
 * segments of 24 bytes (cs ds es fs gs ss tr ldt), GDT and IDT of 16, then cr0 cr2 cr3 cr4 cr8 efer apic_base.
 */
import { type KvmVm, REG } from '../../kvm/api.ts';
import type { BootEntry } from './entry.ts';

const SEGMENT = { cs: 0, ds: 1, es: 2, fs: 3, gs: 4, ss: 5, tr: 6, ldt: 7 } as const;
const SEGMENT_BYTES = 24;
const GDT_AT = 8 * SEGMENT_BYTES;
const IDT_AT = GDT_AT + 16;
const CR0_AT = IDT_AT + 16;
const CR3_AT = CR0_AT + 16;
const CR4_AT = CR0_AT + 24;
const EFER_AT = CR0_AT + 40;

const CR0_PE = 1n;
const CR0_ET = 0x10n;
const CR0_PG = 0x8000_0000n;
const CR4_PAE = 0x20n;
const EFER_LME = 0x100n;
const EFER_LMA = 0x400n;
const RFLAGS_FIXED = 2n;

/** Type field values (Intel SDM 3, 3.4.5.1 and 3.5). */
const TYPE = { code: 0xb, data: 0x3, tssBusy: 0xb, ldt: 0x2 } as const;

interface SegmentInit {
  readonly selector: number;
  readonly limit: number;
  readonly type: number;
  /** Code or data rather than system. */
  readonly s: 0 | 1;
  readonly db: 0 | 1;
  readonly l: 0 | 1;
  readonly g: 0 | 1;
  readonly present?: 0 | 1;
}

function writeSegment(view: DataView, index: number, init: SegmentInit): void {
  const at = index * SEGMENT_BYTES;
  const present = init.present ?? 1;
  view.setBigUint64(at, 0n, true);
  view.setUint32(at + 8, init.limit, true);
  view.setUint16(at + 12, init.selector, true);
  view.setUint8(at + 14, init.type);
  view.setUint8(at + 15, present);
  view.setUint8(at + 16, 0);
  view.setUint8(at + 17, init.db);
  view.setUint8(at + 18, init.s);
  view.setUint8(at + 19, init.l);
  view.setUint8(at + 20, init.g);
  view.setUint8(at + 21, 0);
  view.setUint8(at + 22, present === 1 ? 0 : 1);
}

function writeFlatSegments(view: DataView, code: number, data: number, long: boolean): void {
  const flat = { limit: 0xffff_ffff, s: 1, g: 1 } as const;
  writeSegment(view, SEGMENT.cs, {
    ...flat,
    selector: code,
    type: TYPE.code,
    db: long ? 0 : 1,
    l: long ? 1 : 0,
  });
  for (const index of [SEGMENT.ds, SEGMENT.es, SEGMENT.fs, SEGMENT.gs, SEGMENT.ss]) {
    writeSegment(view, index, { ...flat, selector: data, type: TYPE.data, db: 1, l: 0 });
  }
  writeSegment(view, SEGMENT.tr, {
    selector: 0,
    limit: 0x67,
    type: TYPE.tssBusy,
    s: 0,
    db: 0,
    l: 0,
    g: 0,
  });
  writeSegment(view, SEGMENT.ldt, {
    selector: 0,
    limit: 0,
    type: TYPE.ldt,
    s: 0,
    db: 0,
    l: 0,
    g: 0,
    present: 0,
  });
}

/** Sets `vcpu` of a stopped VM to the entry. Its state before must be the power-on state. */
export function enterBoot(vm: KvmVm, vcpu: number, entry: BootEntry): void {
  if (entry.mode === 'reset') return;
  const regs = vm.getRegs(vcpu);
  const sregs = vm.getSregs(vcpu);
  const view = new DataView(sregs.buffer, sregs.byteOffset, sregs.byteLength);
  regs.fill(0n);
  regs[REG.rflags] = RFLAGS_FIXED;
  regs[REG.rip] = BigInt(entry.rip);
  view.setBigUint64(IDT_AT, 0n, true);
  view.setUint16(IDT_AT + 8, 0, true);
  if (entry.mode === 'protected32') {
    regs[REG.rbx] = BigInt(entry.rbx);
    writeFlatSegments(view, 0x8, 0x10, false);
    view.setBigUint64(CR0_AT, CR0_PE | CR0_ET, true);
    view.setBigUint64(CR4_AT, 0n, true);
    view.setBigUint64(EFER_AT, 0n, true);
  } else {
    regs[REG.rsi] = BigInt(entry.rsi);
    regs[REG.rsp] = BigInt(entry.rsp);
    writeFlatSegments(view, 0x10, 0x18, true);
    view.setBigUint64(GDT_AT, BigInt(entry.gdt), true);
    view.setUint16(GDT_AT + 8, 0x1f, true);
    view.setBigUint64(CR0_AT, CR0_PE | CR0_ET | CR0_PG, true);
    view.setBigUint64(CR3_AT, BigInt(entry.cr3), true);
    view.setBigUint64(CR4_AT, CR4_PAE, true);
    view.setBigUint64(EFER_AT, EFER_LME | EFER_LMA, true);
  }
  vm.setSregs(vcpu, sregs);
  vm.setRegs(vcpu, regs);
}
