/** Binary layouts of the vCPU and VM state (src/snapshot), versioned for files and for the wire. */
import { VmmError } from '../base/error.ts';
import { bool, bytes, type Codec, corrupt, fixedBytes, u32, u64 } from '../snapshot/codec.ts';
import { type Schema, schema } from '../snapshot/schema.ts';
import type { VcpuState, VmState } from './api.ts';
import { SREGS_BYTES } from './sregs.ts';

const XSAVE_BYTES_MAX = 1024 * 1024;
const MSRS_MAX = 4096;
const REGS = 18;

/** struct kvm_xcrs, kvm_vcpu_events, kvm_debugregs, kvm_lapic_state, one chip of kvm_irqchip, kvm_pit_state2. */
const BYTES = {
  xcrs: 392,
  events: 64,
  debugregs: 128,
  lapic: 1024,
  irqchip: 512,
  pit2: 112,
} as const;

/** `count` 64-bit words, or up to `max` with a count before them. */
function u64Words(count: number | undefined, max: number): Codec<BigUint64Array> {
  return {
    write(out, value) {
      if (count !== undefined ? value.length !== count : value.length > max) {
        throw new VmmError('STATE_INVALID', `${value.length} 64-bit values do not fit`);
      }
      if (count === undefined) out.u32(value.length);
      for (const word of value) out.u64(word);
    },
    read(input) {
      const length = count ?? input.u32();
      if (length > max) throw corrupt(`${length} 64-bit values`);
      if (length * 8 > input.remaining) throw corrupt(`${length} 64-bit values are not there`);
      const value = new BigUint64Array(length);
      for (let i = 0; i < length; i++) value[i] = input.u64();
      return value;
    },
  };
}

const u32Words: Codec<Uint32Array> = {
  write(out, value) {
    if (value.length > MSRS_MAX) throw new VmmError('STATE_INVALID', `${value.length} MSRs`);
    out.u32(value.length);
    for (const word of value) out.u32(word);
  },
  read(input) {
    const length = input.u32();
    if (length > MSRS_MAX || length * 4 > input.remaining) throw corrupt(`${length} MSRs`);
    const value = new Uint32Array(length);
    for (let i = 0; i < length; i++) value[i] = input.u32();
    return value;
  },
};

/** One vCPU, instance `vcpu<index>`. */
export const vcpuStateSchema: Schema<VcpuState> = schema<VcpuState>('kvm-vcpu', 1, {
  regs: u64Words(REGS, REGS),
  sregs: fixedBytes(SREGS_BYTES),
  xsave: bytes(XSAVE_BYTES_MAX),
  xcrs: fixedBytes(BYTES.xcrs),
  msrIndices: u32Words,
  msrValues: u64Words(undefined, MSRS_MAX),
  lapic: fixedBytes(BYTES.lapic),
  events: fixedBytes(BYTES.events),
  mpState: u32,
  debugregs: fixedBytes(BYTES.debugregs),
  tscOffset: u64,
  hasTscOffset: bool,
  hostTsc: u64,
  tscKhz: u32,
});

/** What KVM keeps for the whole VM. */
export const vmStateSchema: Schema<VmState> = schema<VmState>('kvm-vm', 1, {
  picMaster: fixedBytes(BYTES.irqchip),
  picSlave: fixedBytes(BYTES.irqchip),
  ioapic: fixedBytes(BYTES.irqchip),
  pit2: bytes(BYTES.pit2),
  clockNs: u64,
  clockFlags: u32,
  clockRealtimeNs: u64,
  clockHostTsc: u64,
});
