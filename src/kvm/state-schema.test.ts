import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { VcpuState, VmState } from './api.ts';
import { vcpuStateSchema, vmStateSchema } from './state-schema.ts';

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const u32 = fc.nat(0xffff_ffff);
const exact = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const words = (length: number) =>
  fc.array(u64, { minLength: length, maxLength: length }).map((a) => BigUint64Array.from(a));

const vcpuState: fc.Arbitrary<VcpuState> = fc.nat(40).chain((msrs) =>
  fc.record({
    regs: words(18),
    sregs: exact(312),
    xsave: fc
      .constantFrom(4096, 11008)
      .chain((n) => fc.nat(255).map((b) => new Uint8Array(n).fill(b))),
    xcrs: exact(392),
    msrIndices: fc.array(u32, { minLength: msrs, maxLength: msrs }).map((a) => Uint32Array.from(a)),
    msrValues: words(msrs),
    lapic: exact(1024),
    events: exact(64),
    mpState: u32,
    debugregs: exact(128),
    tscOffset: u64,
    hasTscOffset: fc.boolean(),
    hostTsc: u64,
    tscKhz: u32,
  }),
);

const vmState: fc.Arbitrary<VmState> = fc.record({
  picMaster: exact(512),
  picSlave: exact(512),
  ioapic: exact(512),
  pit2: fc.constantFrom(0, 112).chain((n) => exact(n)),
  clockNs: u64,
  clockFlags: u32,
  clockRealtimeNs: u64,
  clockHostTsc: u64,
});

describe('state schemas', () => {
  it('vCPU state survives the round trip', () => {
    fc.assert(
      fc.property(vcpuState, (state) => {
        expect(vcpuStateSchema.decode(vcpuStateSchema.encode(state))).toEqual(state);
      }),
      { numRuns: 30 },
    );
  });

  it('VM state survives the round trip', () => {
    fc.assert(
      fc.property(vmState, (state) => {
        expect(vmStateSchema.decode(vmStateSchema.encode(state))).toEqual(state);
      }),
      { numRuns: 30 },
    );
  });

  it('refuses every cut and never allocates for a forged length', () => {
    fc.assert(
      fc.property(vcpuState, fc.nat(), (state, cut) => {
        const whole = vcpuStateSchema.encode(state);
        expect(() => vcpuStateSchema.decode(whole.subarray(0, cut % whole.length))).toThrow(
          /saved state cannot be read/,
        );
      }),
      { numRuns: 30 },
    );
    const [state] = fc.sample(vcpuState, 1) as [VcpuState];
    const bytes = vcpuStateSchema.encode(state);
    // The length of the XSAVE image stands behind regs and sregs.
    new DataView(bytes.buffer).setUint32(18 * 8 + 312, 0xffff_ffff, true);
    expect(() => vcpuStateSchema.decode(bytes)).toThrow(/exceeds/);
  });

  it('refuses to write parts of the wrong size', () => {
    const [state] = fc.sample(vcpuState, 1) as [VcpuState];
    expect(() => vcpuStateSchema.encode({ ...state, sregs: new Uint8Array(311) })).toThrow(
      /belong/,
    );
    expect(() => vcpuStateSchema.encode({ ...state, regs: new BigUint64Array(17) })).toThrow(
      /do not fit/,
    );
  });
});
