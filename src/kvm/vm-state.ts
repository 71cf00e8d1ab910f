/** Reads and writes what KVM keeps for the whole VM: PICs, IOAPIC, PIT, kvmclock. */
import { VmmError } from '../base/error.ts';
import type { RestoreOptions, VmState } from './api.ts';
import type { NativeVm } from './native.ts';

const IRQCHIP_BYTES = 512;
const PIT2_BYTES = 112;
const CHIP = { picMaster: 0, picSlave: 1, ioapic: 2 } as const;
/** KVM_CLOCK_REALTIME. */
export const CLOCK_REALTIME = 4;

export function readVmState(vm: NativeVm, hasPit: boolean): VmState {
  const chip = (id: number): Uint8Array => {
    const bytes = new Uint8Array(IRQCHIP_BYTES);
    vm.getIrqchip(id, bytes);
    return bytes;
  };
  const pit2 = new Uint8Array(hasPit ? PIT2_BYTES : 0);
  if (hasPit) vm.getPit(pit2);
  const clock = new BigUint64Array(4);
  vm.getClock(clock);
  return {
    picMaster: chip(CHIP.picMaster),
    picSlave: chip(CHIP.picSlave),
    ioapic: chip(CHIP.ioapic),
    pit2,
    clockNs: clock[0]!,
    clockFlags: Number(clock[1]!),
    clockRealtimeNs: clock[2]!,
    clockHostTsc: clock[3]!,
  };
}

export function writeVmState(
  vm: NativeVm,
  hasPit: boolean,
  state: VmState,
  options: RestoreOptions,
): void {
  const fits =
    state.picMaster.length === IRQCHIP_BYTES &&
    state.picSlave.length === IRQCHIP_BYTES &&
    state.ioapic.length === IRQCHIP_BYTES &&
    state.pit2.length === (hasPit ? PIT2_BYTES : 0);
  if (!fits) throw new VmmError('STATE_INVALID', 'a VM state has parts of the wrong size');
  vm.setIrqchip(CHIP.picMaster, state.picMaster);
  vm.setIrqchip(CHIP.picSlave, state.picSlave);
  vm.setIrqchip(CHIP.ioapic, state.ioapic);
  if (hasPit) vm.setPit(state.pit2);
  // With a realtime KVM adds the time that passed since; a flag that the capture did not report must not be set.
  const realtime = (state.clockFlags & CLOCK_REALTIME) !== 0 && (options.useRealtime ?? true);
  const elapsed = realtime ? 0n : (options.elapsedNs ?? 0n);
  vm.setClock(
    BigUint64Array.of(
      BigInt.asUintN(64, state.clockNs + elapsed),
      BigInt(realtime ? CLOCK_REALTIME : 0),
      realtime ? state.clockRealtimeNs : 0n,
      0n,
    ),
  );
}
