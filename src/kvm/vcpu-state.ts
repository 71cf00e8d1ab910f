/**
 * Reads and writes the whole state of one vCPU. The order of a restore matters and is this:
 * SREGS (APIC base, control registers) before XCRS and XSAVE; REGS before EVENTS (it drops a pending exception); TSC
 * before LAPIC and LAPIC before TSC_DEADLINE (armed only in the timer mode that the LAPIC state brings); MP state and
 * EVENTS last. CPUID has been set when the vCPU was made: MSRs and XSAVE are checked against it.
 */
import { assert } from '../base/assert.ts';
import { VmmError } from '../base/error.ts';
import type { RestoreReport, VcpuState } from './api.ts';
import type { NativeVm, StateKind } from './native.ts';
import { STATE } from './native.ts';

/** MSRs with a place of their own in the order. */
const MSR = { tsc: 0x10, tscDeadline: 0x6e0 } as const;
/** Set behind all others: they refer to what the others set up. */
const LAST_MSRS: readonly number[] = [MSR.tscDeadline];
/** KVM lists them; a guest whose CPUID has no Hyper-V leaves cannot reach them. */
const HYPERV_MSRS = { first: 0x4000_0000, last: 0x4000_01ff } as const;
/** A restored TSC that is off by less than this was taken. */
const TSC_TOLERANCE_MS = 20n;

/** Which MSRs this VM's vCPUs have: those of the kernel's list that read without an error. */
export function readableMsrs(vm: NativeVm, vcpu: number, candidates: Uint32Array): Uint32Array {
  const found: number[] = [];
  const one = new Uint32Array(1);
  const value = new BigUint64Array(1);
  for (const index of candidates) {
    if (index >= HYPERV_MSRS.first && index <= HYPERV_MSRS.last) continue;
    one[0] = index;
    if (vm.getMsrs(vcpu, one, value) === 1) found.push(index);
  }
  return Uint32Array.from(found);
}

function get(vm: NativeVm, vcpu: number, kind: StateKind): Uint8Array {
  const bytes = new Uint8Array(vm.stateBytes(kind));
  vm.getState(vcpu, kind, bytes);
  return bytes;
}

/** @param hostTsc the instant that the state stands for */
export function readVcpuState(
  vm: NativeVm,
  vcpu: number,
  msrs: Uint32Array,
  hostTsc: bigint,
): VcpuState {
  const regs = get(vm, vcpu, STATE.regs);
  const msrValues = new BigUint64Array(msrs.length);
  const count = vm.getMsrs(vcpu, msrs, msrValues);
  if (count !== msrs.length) {
    throw new VmmError('KVM_STATE', `MSR 0x${msrs[count]!.toString(16)} cannot be read any more`);
  }
  const mp = get(vm, vcpu, STATE.mp);
  const offset = vm.getTscOffset(vcpu);
  return {
    regs: new BigUint64Array(regs.buffer),
    sregs: get(vm, vcpu, STATE.sregs),
    xsave: get(vm, vcpu, STATE.xsave),
    xcrs: get(vm, vcpu, STATE.xcrs),
    msrIndices: msrs.slice(),
    msrValues,
    lapic: get(vm, vcpu, STATE.lapic),
    events: get(vm, vcpu, STATE.events),
    mpState: new DataView(mp.buffer).getUint32(0, true),
    debugregs: get(vm, vcpu, STATE.debugregs),
    tscOffset: offset ?? 0n,
    hasTscOffset: offset !== undefined,
    hostTsc,
    tscKhz: vm.tscKhz(vcpu),
  };
}

/** Where a restored TSC starts. */
export interface TscBase {
  /** Host TSC of this restore, the same for all vCPUs of a VM. */
  readonly hostTsc: bigint;
  /** Nanoseconds that the guest's TSC moves on. */
  readonly elapsedNs: bigint;
  /** Reads the host's TSC. */
  now(): bigint;
}

/** @throws VmmError when the state does not fit this host or VM */
export function writeVcpuState(
  vm: NativeVm,
  vcpu: number,
  state: VcpuState,
  tsc: TscBase,
): RestoreReport {
  checkSizes(vm, state);
  const set = (kind: StateKind, bytes: Uint8Array) => vm.setState(vcpu, kind, bytes);
  set(STATE.sregs, state.sregs);
  set(STATE.xcrs, state.xcrs);
  set(STATE.xsave, fitXsave(state.xsave, vm.stateBytes(STATE.xsave)));
  set(STATE.debugregs, state.debugregs);
  const tscTaken = writeTsc(vm, vcpu, state, tsc);
  set(STATE.lapic, state.lapic);
  const skipped = writeMsrs(vm, vcpu, state, tscTaken.written);
  set(STATE.regs, asBytes(state.regs));
  const mp = new Uint8Array(vm.stateBytes(STATE.mp));
  new DataView(mp.buffer).setUint32(0, state.mpState, true);
  set(STATE.mp, mp);
  set(STATE.events, state.events);
  return { tscTaken: tscTaken.taken, msrsSkipped: skipped };
}

function asBytes(words: BigUint64Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

function checkSizes(vm: NativeVm, state: VcpuState): void {
  const fits =
    state.regs.length === 18 &&
    state.sregs.length === vm.stateBytes(STATE.sregs) &&
    state.xcrs.length === vm.stateBytes(STATE.xcrs) &&
    state.lapic.length === vm.stateBytes(STATE.lapic) &&
    state.events.length === vm.stateBytes(STATE.events) &&
    state.debugregs.length === vm.stateBytes(STATE.debugregs) &&
    state.xsave.length >= 4096 &&
    state.xsave.length % 4 === 0 &&
    state.msrIndices.length === state.msrValues.length;
  if (!fits) throw new VmmError('STATE_INVALID', 'a vCPU state has parts of the wrong size');
}

/** An XSAVE image for a host whose kernel uses another size: what is cut off must be empty. */
function fitXsave(xsave: Uint8Array, bytes: number): Uint8Array {
  if (xsave.length === bytes) return xsave;
  if (xsave.length > bytes && xsave.subarray(bytes).some((byte) => byte !== 0)) {
    throw new VmmError(
      'KVM_STATE',
      `the saved FPU state uses ${xsave.length} bytes, this host keeps ${bytes}`,
      { hint: 'Run the guest with --cpu baseline, or on hosts with the same processor features.' },
    );
  }
  const fitted = new Uint8Array(bytes);
  fitted.set(xsave.subarray(0, bytes));
  return fitted;
}

/**
 * By offset where the kernel has one: exact, and the same distance for all vCPUs. Read back, because some KVMs accept
 * an offset and ignore it. Without an offset the MSR is written like the others.
 */
function writeTsc(
  vm: NativeVm,
  vcpu: number,
  state: VcpuState,
  base: TscBase,
): { taken: boolean; written: boolean } {
  if (!state.hasTscOffset) return { taken: true, written: false };
  const elapsed = (base.elapsedNs * BigInt(state.tscKhz)) / 1_000_000n;
  const offset = BigInt.asUintN(64, state.tscOffset + state.hostTsc - base.hostTsc + elapsed);
  if (!vm.setTscOffset(vcpu, offset)) return { taken: false, written: false };
  const value = new BigUint64Array(1);
  const wanted = BigInt.asUintN(64, base.now() + offset);
  const read = vm.getMsrs(vcpu, Uint32Array.of(MSR.tsc), value);
  assert(read === 1, 'every vCPU has a TSC');
  const off = BigInt.asIntN(64, value[0]! - wanted);
  const tolerance = BigInt(state.tscKhz) * TSC_TOLERANCE_MS;
  return { taken: (off < 0n ? -off : off) <= tolerance, written: true };
}

/** Returns the MSRs that this host does not have and that were 0. */
function writeMsrs(vm: NativeVm, vcpu: number, state: VcpuState, tscWritten: boolean): number[] {
  const order = [...state.msrIndices.keys()]
    .filter((i) => !(tscWritten && state.msrIndices[i] === MSR.tsc))
    .sort((a, b) => rank(state.msrIndices[a]!) - rank(state.msrIndices[b]!));
  const skipped: number[] = [];
  let indices = Uint32Array.from(order, (i) => state.msrIndices[i]!);
  let values = BigUint64Array.from(order, (i) => state.msrValues[i]!);
  while (indices.length > 0) {
    const done = vm.setMsrs(vcpu, indices, values);
    if (done === indices.length) break;
    const index = indices[done]!;
    const value = values[done]!;
    if (!alreadyThere(vm, vcpu, index, value)) {
      if (value !== 0n) {
        throw new VmmError(
          'KVM_STATE',
          `this host does not accept MSR 0x${index.toString(16)} = 0x${value.toString(16)}`,
          {
            hint: 'Run the guest with --cpu baseline, or on hosts with the same processor features.',
          },
        );
      }
      skipped.push(index);
    }
    indices = indices.slice(done + 1);
    values = values.slice(done + 1);
  }
  return skipped;
}

function rank(msr: number): number {
  const last = LAST_MSRS.indexOf(msr);
  return last < 0 ? 0 : last + 1;
}

function alreadyThere(vm: NativeVm, vcpu: number, index: number, value: bigint): boolean {
  const current = new BigUint64Array(1);
  return vm.getMsrs(vcpu, Uint32Array.of(index), current) === 1 && current[0] === value;
}
