import { afterEach, describe, expect, it } from 'vitest';
import { EXIT, type KvmState, type KvmVm, REG, SLOT_WORD } from '../../src/kvm/api.ts';
import { cpuidRows, hasFlag } from '../../src/kvm/cpuid.ts';
import { Sregs } from '../../src/kvm/sregs.ts';
import { vcpuStateSchema, vmStateSchema } from '../../src/kvm/state-schema.ts';
import {
  CODE,
  DATA,
  DONE,
  hex,
  host,
  MMIO,
  makeGuest,
  RAM_BYTES,
  type TestGuest,
} from './kvm-guest.ts';

const vms: KvmVm[] = [];
function guest(...args: Parameters<typeof makeGuest>): TestGuest {
  const made = makeGuest(...args);
  vms.push(made.vm);
  return made;
}
afterEach(() => {
  for (const vm of vms.splice(0)) vm.destroy();
});

const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));
/** Loop turns that take about a second where guests run natively; fewer where they do not. */
const TURNS_MAX = 400_000_000;
const TURNS_MIN = 2_000_000;
const RESULT = DATA + 0x1000;
const u32 = (value: number) => [
  value & 0xff,
  (value >> 8) & 0xff,
  (value >> 16) & 0xff,
  (value >>> 24) & 0xff,
];

/** Ring 3: AVX2, x87 and general registers live across the whole loop; results at RESULT, then a write to MMIO. */
const crunch = (loopTurns: number) => [
  ...hex('c5 fe 6f 04 25'),
  ...u32(DATA), // vmovdqu ymm0, [DATA]
  ...hex('c5 fe 6f 2c 25'),
  ...u32(DATA + 32), // vmovdqu ymm5, [DATA+32]
  ...hex('c5 7e 6f 2c 25'),
  ...u32(DATA + 64), // vmovdqu ymm13, [DATA+64]
  ...hex('d9 e8 d9 eb'), // fld1; fldpi
  ...hex('c5 fd fe c5'), // loop: vpaddd ymm0, ymm0, ymm5
  ...hex('c5 15 fe e8'), // vpaddd ymm13, ymm13, ymm0
  ...hex('d8 c1'), // fadd st, st(1)
  ...hex('49 ff c7'), // inc r15
  ...hex('41 81 ff'),
  ...u32(loopTurns), // cmp r15d, loopTurns
  ...hex('75 ea'), // jne loop
  ...hex('c5 fe 7f 04 25'),
  ...u32(RESULT), // vmovdqu [RESULT], ymm0
  ...hex('c5 7e 7f 2c 25'),
  ...u32(RESULT + 32), // vmovdqu [RESULT+32], ymm13
  ...hex('dd 1c 25'),
  ...u32(RESULT + 64), // fstp qword [RESULT+64]
  ...hex('dd 1c 25'),
  ...u32(RESULT + 72), // fstp qword [RESULT+72]
  ...hex('4c 89 3c 25'),
  ...u32(RESULT + 80), // mov [RESULT+80], r15
  ...hex('89 04 25'),
  ...u32(MMIO), // mov [MMIO], eax
  ...hex('eb fe'), // jmp $
];

/** AVX needs XCR0 where CPUID shows it; a KVM that emulates ring 0 runs it without showing it. */
function allowAvx(vm: KvmVm): void {
  if (!hasFlag(cpuidRows(vm.getCpuid(0)), 'xsave')) return;
  const state = vm.getVcpuState(0);
  const sregs = new Sregs(state.sregs);
  sregs.setControl('cr4', sregs.control('cr4') | (1n << 18n));
  const xcrs = new DataView(state.xcrs.buffer);
  xcrs.setUint32(0, 1, true);
  xcrs.setBigUint64(16, 7n, true);
  vm.setVcpuState(0, state);
}

function untilMmio(vm: KvmVm): Promise<void> {
  return new Promise((resolve, reject) => {
    vm.start({
      onExit(vcpu) {
        const { words } = vm.slots[vcpu]!;
        const kind = words[SLOT_WORD.kind]!;
        if (kind === EXIT.mmioWrite && words[SLOT_WORD.addressLo] === MMIO) resolve();
        else reject(new Error(`exit ${kind}`));
        return false;
      },
    });
  });
}

function viaBytes(state: KvmState): KvmState {
  return {
    vm: vmStateSchema.decode(vmStateSchema.encode(state.vm)),
    vcpus: state.vcpus.map((vcpu) => vcpuStateSchema.decode(vcpuStateSchema.encode(vcpu))),
  };
}

/**
 * Runs a loop of `loopTurns` turns, copies it three times on its way, and checks that all of them come to the same end.
 * False when the run was too short for that.
 */
async function copiesAgree(loopTurns: number, input: Uint8Array): Promise<boolean> {
  const code = crunch(loopTurns);
  const whole = guest('user', code);
  whole.memory.set(input, DATA);
  allowAvx(whole.vm);
  await untilMmio(whole.vm);
  const expected = whole.memory.slice(RESULT, RESULT + 88);
  expect(new DataView(expected.buffer).getBigUint64(80, true)).toBe(BigInt(loopTurns));
  expect(expected.subarray(16, 32)).not.toEqual(new Uint8Array(16));

  const source = guest('user', code);
  source.memory.set(input, DATA);
  allowAvx(source.vm);
  const sourceDone = untilMmio(source.vm);
  const copies: { turns: bigint; memory: Uint8Array; done: Promise<void> }[] = [];
  for (let i = 0; i < 3; i++) {
    // Somewhere further on than the last one; a busy host may not have run the vCPU at all.
    for (const from = copies.at(-1)?.turns ?? 0n; ; source.vm.resumeAll()) {
      const wait = performance.now() + 5;
      while (performance.now() < wait) await nextTurn();
      try {
        source.vm.pauseAll();
      } catch (error) {
        if ((error as { code?: string }).code !== 'KVM_EXIT_OPEN') throw error;
        await sourceDone;
        return false;
      }
      if (source.vm.getRegs(0)[REG.r15]! > from) break;
    }
    const state = source.vm.captureState();
    const memory = source.memory.slice();
    source.vm.resumeAll();
    const vm = host.createVm({ vcpus: 1 });
    vms.push(vm);
    const copy = new Uint8Array(vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: RAM_BYTES }));
    copy.set(memory);
    vm.restoreState(viaBytes(state));
    copies.push({ turns: state.vcpus[0]!.regs[REG.r15]!, memory: copy, done: untilMmio(vm) });
  }
  await sourceDone;
  expect(source.memory.slice(RESULT, RESULT + 88)).toEqual(expected);
  for (const { turns, memory, done } of copies) {
    expect(turns).toBeGreaterThan(0n);
    expect(turns).toBeLessThan(BigInt(loopTurns));
    await done;
    expect(memory.slice(RESULT, RESULT + 88)).toEqual(expected);
  }
  return true;
}

describe('state', () => {
  it('is equal after a restore into a fresh VM', () => {
    const { vm } = guest('long', [...DONE], { vcpus: 2 });
    const state = vm.captureState();
    for (const vcpu of state.vcpus) {
      for (let i = 0; i < 16; i++) vcpu.regs[i] = 0x0101_0101_0101_0101n * BigInt(i + 1);
    }
    vm.restoreState(state);
    const before = vm.captureState();
    const fresh = guest('real', [0xf4], { vcpus: 2 });
    const report = fresh.vm.restoreState(viaBytes(before));
    expect(report.msrsSkipped).toEqual([]);
    const after = fresh.vm.captureState();
    for (const [i, vcpu] of after.vcpus.entries()) {
      const was = before.vcpus[i]!;
      expect(vcpu.regs).toEqual(was.regs);
      expect(vcpu.sregs).toEqual(was.sregs);
      expect(vcpu.xsave).toEqual(was.xsave);
      expect(vcpu.xcrs).toEqual(was.xcrs);
      expect(vcpu.lapic).toEqual(was.lapic);
      expect(vcpu.events).toEqual(was.events);
      expect(vcpu.mpState).toBe(was.mpState);
      expect(vcpu.debugregs).toEqual(was.debugregs);
      expect(vcpu.msrIndices).toEqual(was.msrIndices);
      for (const [m, index] of was.msrIndices.entries()) {
        if (index !== 0x10) expect([index, vcpu.msrValues[m]]).toEqual([index, was.msrValues[m]]);
      }
    }
    expect(after.vm.ioapic).toEqual(before.vm.ioapic);
    expect(after.vm.picMaster).toEqual(before.vm.picMaster);
    expect(after.vm.picSlave).toEqual(before.vm.picSlave);
  });

  it('captured anywhere, continues to the same end, AVX and x87 live', async () => {
    const input = Uint8Array.from({ length: 96 }, (_, i) => (i * 73 + 5) & 0xff);
    const trial = guest('user', crunch(TURNS_MIN));
    allowAvx(trial.vm);
    const start = performance.now();
    await untilMmio(trial.vm);
    const speed = TURNS_MIN / (performance.now() - start);
    // On a busy host the trial may have been slow and the run is over before three copies were taken: then a longer one.
    let turns = Math.round(Math.min(TURNS_MAX, Math.max(TURNS_MIN, speed * 1000)));
    while (!(await copiesAgree(turns, input))) turns *= 3;
  });

  it('the clock continues where it stopped, plus what is said to have passed', () => {
    const { vm } = guest('real', [0xf4]);
    const state = vm.getVmState();
    const second = 1_000_000_000n;
    vm.setVmState({ ...state, clockNs: 100n * second }, { useRealtime: false });
    const at = vm.getVmState().clockNs;
    expect(at).toBeGreaterThanOrEqual(100n * second);
    expect(at).toBeLessThan(102n * second);
    vm.setVmState(
      { ...state, clockNs: 100n * second },
      { useRealtime: false, elapsedNs: 50n * second },
    );
    expect(vm.getVmState().clockNs).toBeGreaterThanOrEqual(150n * second);
    // A realtime flag that the capture did not report is never passed: the clock would jump by decades.
    vm.setVmState({ ...state, clockNs: 100n * second, clockFlags: 0, clockRealtimeNs: 1n });
    expect(vm.getVmState().clockNs).toBeLessThan(102n * second);
  });

  it('says whether the TSC was taken, and is right about it', () => {
    const { vm } = guest('real', [0xf4]);
    const state = vm.captureState();
    const vcpu = state.vcpus[0]!;
    // A guest whose TSC is a minute behind this host's.
    const minute = BigInt(vcpu.tscKhz) * 60_000n;
    vcpu.tscOffset = BigInt.asUintN(64, vcpu.tscOffset - minute);
    const wanted = vcpu.hostTsc + vcpu.tscOffset;
    const { tscTaken } = vm.restoreState(state);
    const after = vm.getVcpuState(0);
    const tsc = after.msrValues[after.msrIndices.indexOf(0x10)]!;
    const off = BigInt.asIntN(64, tsc - wanted);
    if (tscTaken) expect(off < BigInt(vcpu.tscKhz) * 1000n && off >= 0n).toBe(true);
    else expect(off).toBeGreaterThan(minute / 2n);
  });

  it('refuses states that do not fit', () => {
    const { vm } = guest('real', [0xf4]);
    const state = vm.captureState();
    const vcpu = state.vcpus[0]!;
    const invalid = expect.objectContaining({ code: 'STATE_INVALID' });
    expect(() => vm.restoreState({ ...state, vcpus: [] })).toThrow(invalid);
    expect(() => vm.setVcpuState(0, { ...vcpu, lapic: new Uint8Array(3) })).toThrow(invalid);
    expect(() => vm.setVcpuState(0, { ...vcpu, msrValues: new BigUint64Array(1) })).toThrow(
      invalid,
    );
    expect(() => vm.setVmState({ ...state.vm, pit2: new Uint8Array(0) })).toThrow(invalid);
    const bigger = new Uint8Array(vcpu.xsave.length + 4096);
    bigger.set(vcpu.xsave);
    vm.setVcpuState(0, { ...vcpu, xsave: bigger });
    bigger[bigger.length - 1] = 1;
    expect(() => vm.setVcpuState(0, { ...vcpu, xsave: bigger })).toThrow(
      expect.objectContaining({ code: 'KVM_STATE' }),
    );
    expect(() =>
      vm.setVcpuState(0, {
        ...vcpu,
        msrIndices: Uint32Array.of(0xdead),
        msrValues: BigUint64Array.of(1n),
      }),
    ).toThrow(/0xdead/);
    const absent = vm.setVcpuState(0, {
      ...vcpu,
      msrIndices: Uint32Array.of(0xdead),
      msrValues: BigUint64Array.of(0n),
    });
    expect(absent.msrsSkipped).toEqual([0xdead]);
    vm.restoreState(state);
    expect(vm.captureState().vcpus[0]!.regs[REG.rip]).toBe(BigInt(CODE));
  });

  it('translates through the guest tables', () => {
    const { vm } = guest('long', [0xf4]);
    expect(vm.translate(0, BigInt(CODE + 5))).toBe(CODE + 5);
    expect(vm.translate(0, 1n << 40n)).toBeNull();
    const real = guest('real', [0xf4]);
    expect(real.vm.translate(0, 0x1234n)).toBe(0x1234);
  });
});
