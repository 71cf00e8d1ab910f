/**
 * Numbers of the VIRTIO 1.2 specification (OASIS, 2022) that every device and the PCI transport share.
 */

/** Device types (VIRTIO 1.2, 5). */
export const VIRTIO_TYPE = { net: 1, block: 2, entropy: 4 } as const;

/** PCI vendor of virtio devices; the device id is 0x1040 plus the type (VIRTIO 1.2, 4.1.2). */
export const VIRTIO_PCI_VENDOR = 0x1af4;
export const VIRTIO_PCI_DEVICE_BASE = 0x1040;

/** Device status bits (VIRTIO 1.2, 2.1). */
export const STATUS = {
  acknowledge: 1,
  driver: 2,
  driverOk: 4,
  featuresOk: 8,
  needsReset: 64,
  failed: 128,
} as const;

/** Feature bits that belong to no device type (VIRTIO 1.2, 6). */
export const FEATURE = { indirect: 28, eventIdx: 29, version1: 32 } as const;

/** Descriptor flags (VIRTIO 1.2, 2.7.5). */
export const DESC = { next: 1, write: 2, indirect: 4 } as const;
/** Bytes of one descriptor. */
export const DESC_BYTES = 16;

/** Available ring flag: the driver wants no interrupt (VIRTIO 1.2, 2.7.6). */
export const AVAIL_NO_INTERRUPT = 1;
/** Used ring flag: the device wants no notification (VIRTIO 1.2, 2.7.8). */
export const USED_NO_NOTIFY = 1;

/** Largest split virtqueue (VIRTIO 1.2, 2.7). */
export const QUEUE_SIZE_MAX = 32768;

/** "No vector" in the MSI-X vector registers (VIRTIO 1.2, 4.1.5.1.2). */
export const NO_VECTOR = 0xffff;

/** ISR bits (VIRTIO 1.2, 4.1.4.5). */
export const ISR = { queue: 1, config: 2 } as const;

/** `cfg_type` of the vendor capabilities (VIRTIO 1.2, 4.1.4). */
export const CAP_TYPE = { common: 1, notify: 2, isr: 3, device: 4, pciAccess: 5 } as const;

/** Offsets in the common configuration structure (VIRTIO 1.2, 4.1.4.3). */
export const COMMON = {
  deviceFeatureSelect: 0x00,
  deviceFeature: 0x04,
  driverFeatureSelect: 0x08,
  driverFeature: 0x0c,
  configVector: 0x10,
  numQueues: 0x12,
  status: 0x14,
  configGeneration: 0x15,
  queueSelect: 0x16,
  queueSize: 0x18,
  queueVector: 0x1a,
  queueEnable: 0x1c,
  queueNotifyOff: 0x1e,
  queueDesc: 0x20,
  queueDriver: 0x28,
  queueDevice: 0x30,
  /** Bytes of the structure as offered here (without notification data and queue reset). */
  bytes: 0x38,
} as const;

/** A set of feature bits: bits 0-31 and 32-63, unsigned. */
export interface FeatureSet {
  readonly low: number;
  readonly high: number;
}

/** Makes a {@link FeatureSet} of bit numbers. */
export function featureSet(...bits: readonly number[]): FeatureSet {
  let low = 0;
  let high = 0;
  for (const bit of bits) {
    if (bit < 32) low |= 1 << bit;
    else high |= 1 << (bit - 32);
  }
  return { low: low >>> 0, high: high >>> 0 };
}

/** Whether `bit` is in `set`. */
export function hasFeature(set: FeatureSet, bit: number): boolean {
  return bit < 32 ? ((set.low >>> bit) & 1) === 1 : ((set.high >>> (bit - 32)) & 1) === 1;
}
