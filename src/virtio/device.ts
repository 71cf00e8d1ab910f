/**
 * The seam between a virtio device (what requests mean) and its transport (registers, negotiation, interrupts).
 * Devices in `devices/virtio-*` implement {@link VirtioDevice}; `VirtioPciFunction` drives them.
 */
import type { AccessSize } from '../bus/io-bus.ts';
import type { Codec } from '../snapshot/codec.ts';
import type { VirtQueue } from './queue.ts';
import type { FeatureSet } from './spec.ts';

/** What a device sees of its transport. */
export interface VirtioTransport {
  /** The device's queues, by number. */
  readonly queues: readonly VirtQueue[];
  /** Features agreed on; empty before. */
  readonly features: FeatureSet;
  /** Whether the device may look at queues: driver ready, ring not broken, not paused, bus mastering on. */
  readonly running: boolean;
  /** Shows the driver what was pushed to queue `index`, and interrupts it if it wants that. */
  publish(index: number): void;
  /** Tells the driver that the device's configuration has changed (VIRTIO 1.2, 2.5). */
  configChanged(): void;
  /** A fault of the guest from which only a reset helps: sets NEEDS_RESET (VIRTIO 1.2, 2.1.2). */
  fail(why: string): void;
  /** A fault of the guest that the device can answer; logged at a limited rate. */
  complain(why: string): void;
  /** After {@link VirtioDevice.stop} returned false: nothing is under way any more. */
  stopped(): void;
}

/** One type of device. `S` is the device's own part of the saved state, plain data. */
export interface VirtioDevice<S> {
  /** Unique on the board: `disk0`. */
  readonly id: string;
  /** Kind, version and layout of the saved state (the transport adds its own part). */
  readonly kind: string;
  readonly version: number;
  readonly codec: Codec<S>;
  /** Device type (VIRTIO 1.2, 5), and the PCI class that goes with it. */
  readonly type: number;
  readonly classCode: number;
  /** Most entries of each queue. */
  readonly queueSizes: readonly number[];
  /** Features of the type; the transport adds ring features and VERSION_1. */
  readonly features: FeatureSet;
  /** Device configuration as the driver reads it; kept current by the device. */
  readonly config: Uint8Array;
  /** Called once, before anything else. */
  attach(transport: VirtioTransport): void;
  /** Whether the driver's choice makes sense (dependencies between features). */
  accepts?(features: FeatureSet): boolean;
  /** The driver writes device configuration. */
  configWrite?(offset: number, size: AccessSize, value: number): void;
  /** The driver is ready (DRIVER_OK). `transport.features` holds what was agreed. */
  start(): void;
  /** Look at queue `index`; only while `transport.running`. */
  notify(index: number): void;
  /**
   * The driver resets the device; queues are off already. Nothing may touch guest memory afterwards.
   * @returns false when requests are still under way at the backend: then `transport.stopped()` follows
   */
  stop(): boolean;
  /** Power-on state, at once. What is under way at the backend is forgotten. */
  reset(): void;
  pause(): void;
  /** Goes on; the transport looks at all queues afterwards. */
  resume(): void;
  save(): S;
  /** Throws unless `state` is possible. @throws VmmError `STATE_INVALID` */
  check(state: S): void;
  /** Takes over a checked state; queues and features hold the restored values already. */
  load(state: S): void;
}
