/** Puts a vCPU at a boot entry: general registers, segments, control registers. */
import { type KvmVm, REG } from '../../kvm/api.ts';
import { type SegmentInit, Sregs } from '../../kvm/sregs.ts';
import type { BootEntry } from './entry.ts';

const CR0_PE = 1n;
const CR0_ET = 0x10n;
const CR0_PG = 0x8000_0000n;
const CR4_PAE = 0x20n;
const EFER_LME = 0x100n;
const EFER_LMA = 0x400n;
const RFLAGS_FIXED = 2n;

/** Type field values (Intel SDM 3, 3.4.5.1 and 3.5). */
const TYPE = { code: 0xb, data: 0x3, tssBusy: 0xb, ldt: 0x2 } as const;

/** All of the address space, for the code and data of a flat model. */
const FLAT = { base: 0n, limit: 0xffff_ffff, s: 1, g: 1, present: 1 } as const;
const SYSTEM = { base: 0n, selector: 0, s: 0, db: 0, l: 0, g: 0 } as const;
const TASK: SegmentInit = { ...SYSTEM, limit: 0x67, type: TYPE.tssBusy, present: 1 };
const NO_LDT: SegmentInit = { ...SYSTEM, limit: 0, type: TYPE.ldt, present: 0 };

function setFlatSegments(sregs: Sregs, code: number, data: number, long: boolean): void {
  const bits = long ? ({ db: 0, l: 1 } as const) : ({ db: 1, l: 0 } as const);
  sregs.setSegment('cs', { ...FLAT, ...bits, selector: code, type: TYPE.code });
  for (const name of ['ds', 'es', 'fs', 'gs', 'ss'] as const) {
    sregs.setSegment(name, { ...FLAT, db: 1, l: 0, selector: data, type: TYPE.data });
  }
  sregs.setSegment('tr', TASK);
  sregs.setSegment('ldt', NO_LDT);
}

/** Sets `vcpu` of a stopped VM to the entry. Its state before must be the power-on state. */
export function enterBoot(vm: KvmVm, vcpu: number, entry: BootEntry): void {
  if (entry.mode === 'reset') return;
  const regs = vm.getRegs(vcpu);
  const sregs = new Sregs(vm.getSregs(vcpu));
  regs.fill(0n);
  regs[REG.rflags] = RFLAGS_FIXED;
  regs[REG.rip] = BigInt(entry.rip);
  sregs.setTable('idt', 0n, 0);
  if (entry.mode === 'protected32') {
    regs[REG.rbx] = BigInt(entry.rbx);
    setFlatSegments(sregs, 0x8, 0x10, false);
    sregs.setControl('cr0', CR0_PE | CR0_ET);
    sregs.setControl('cr4', 0n);
    sregs.setControl('efer', 0n);
  } else {
    regs[REG.rsi] = BigInt(entry.rsi);
    regs[REG.rsp] = BigInt(entry.rsp);
    setFlatSegments(sregs, 0x10, 0x18, true);
    sregs.setTable('gdt', BigInt(entry.gdt), 0x1f);
    sregs.setControl('cr0', CR0_PE | CR0_ET | CR0_PG);
    sregs.setControl('cr3', BigInt(entry.cr3));
    sregs.setControl('cr4', CR4_PAE);
    sregs.setControl('efer', EFER_LME | EFER_LMA);
  }
  vm.setSregs(vcpu, sregs.bytes);
  vm.setRegs(vcpu, regs);
}
