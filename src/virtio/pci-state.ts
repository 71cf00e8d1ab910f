/** The saved state of a virtio device on PCI: function, transport, queues and device in one. */
import type { PciFunctionState } from '../pci/function.ts';
import { array, bool, type Codec, struct, u8, u16, u32 } from '../snapshot/codec.ts';
import type { VirtQueueState } from './queue.ts';

/** Saved registers of the transport. */
export interface VirtioTransportState {
  status: number;
  /** The driver asked for a reset that has not finished. */
  resetting: boolean;
  deviceFeatureSelect: number;
  driverFeatureSelect: number;
  driverFeaturesLow: number;
  driverFeaturesHigh: number;
  configVector: number;
  configGeneration: number;
  queueSelect: number;
  isr: number;
  queueVectors: number[];
}

/** Saved state of a virtio device on PCI. */
export interface VirtioPciState<S> {
  pci: PciFunctionState;
  transport: VirtioTransportState;
  queues: VirtQueueState[];
  device: S;
}

/** Most queues of one device. */
export const MAX_QUEUES = 64;

/** Stores a {@link VirtioTransportState}. */
export const transportCodec: Codec<VirtioTransportState> = struct<VirtioTransportState>({
  status: u8,
  resetting: bool,
  deviceFeatureSelect: u32,
  driverFeatureSelect: u32,
  driverFeaturesLow: u32,
  driverFeaturesHigh: u32,
  configVector: u16,
  configGeneration: u8,
  queueSelect: u16,
  isr: u8,
  queueVectors: array(u16, MAX_QUEUES),
});
