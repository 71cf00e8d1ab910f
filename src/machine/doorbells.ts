/** Doorbells as KVM ioeventfds. */
import type { DoorbellRegistrar } from '../bus/doorbell.ts';
import type { KvmVm } from '../kvm/api.ts';

/** Width of a virtio notification (VIRTIO 1.2, 4.1.4.4): what is watched where KVM cannot watch all widths. */
const NOTIFY_BYTES = 2;

/**
 * Registers doorbells with KVM.
 * @param anyLength whether KVM can watch writes of any size (`hasIoeventfdAnyLength`)
 */
export function kvmDoorbells(vm: KvmVm, anyLength: boolean): DoorbellRegistrar {
  return {
    add(address, ring) {
      const size = anyLength ? 0 : NOTIFY_BYTES;
      const event = vm.addIoEvent({ space: 'mmio', address, size }, ring);
      return { remove: () => event.close() };
    },
  };
}
