/**
 * Doorbells: guest writes that only say "look", which the host delivers without stopping the vCPU
 * (KVM ioeventfd). The value written is lost; several rings before the callback runs merge into one.
 */

/** A registered doorbell. */
export interface Doorbell {
  /** Takes it back; a second call does nothing. */
  remove(): void;
}

/** Registers doorbells; without one, the same write arrives as an ordinary MMIO write. */
export interface DoorbellRegistrar {
  /**
   * Watches writes of any size at MMIO `address`.
   * @param ring called on the thread that owns the devices
   */
  add(address: number, ring: () => void): Doorbell;
}
