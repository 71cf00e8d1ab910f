/** Host time with the kernel's timer precision, from the native addon. */
import type { NativeIo } from '../kvm/native-io.ts';
import type { TimeSource } from './host-clock.ts';

/** A {@link TimeSource} on CLOCK_MONOTONIC. Its timers do not keep the process alive. */
export function preciseTime(io: NativeIo): TimeSource {
  return {
    monotonicNs: () => io.monotonicNs(),
    wallNs: () => (performance.timeOrigin + performance.now()) * 1e6,
    timer(fire) {
      const timer = new io.PreciseTimer(fire);
      timer.keepAlive(false);
      return {
        arm: (deadlineNs) => timer.arm(deadlineNs),
        cancel: () => timer.cancel(),
        close: () => timer.close(),
      };
    },
  };
}
