/** Message-signalled interrupts straight into KVM's local APICs. */
import type { MsiController } from '../bus/interrupts.ts';
import type { KvmVm } from '../kvm/api.ts';

/**
 * Vectors that inject their message with one system call. It takes effect before the call returns, so a captured state
 * holds every interrupt that a device has sent; no route and no descriptor per vector is needed.
 */
export function kvmMsiController(vm: KvmVm): MsiController {
  return {
    vector() {
      let address = 0;
      let data = 0;
      return {
        configure(addressLow, addressHigh, value) {
          address = addressHigh * 2 ** 32 + addressLow;
          data = value;
        },
        trigger() {
          if (address !== 0) vm.signalMsi(address, data);
        },
        release() {
          address = 0;
        },
      };
    },
  };
}
