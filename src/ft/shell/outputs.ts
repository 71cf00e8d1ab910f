/**
 * The outputs of one guest behind one event-tap: every console, network and shared disk has a number, the same on both hosts
 * because both list them in the same order (consoles, networks, disks). The tap's sink and a takeover's replay find them
 * here. Made before the devices, which get the decorated backends.
 */
import type { BlockBackend } from '../../block/backend.ts';
import type { ConsoleBackend } from '../../console/backend.ts';
import { MAX_ENTRY_BYTES, type NetBackend } from '../../net/backend.ts';
import { EventTap, type TapConfig, type TapSink } from '../core/event-tap.ts';
import type { ReplaySink } from '../core/tap-replay.ts';
import type { Lease } from './lease.ts';
import { TappedBlock } from './tapped-block.ts';
import { TappedConsole } from './tapped-console.ts';
import { TappedNet } from './tapped-net.ts';

/** What outputs tell the primary. Set once it exists; before, nothing is held and nothing happens. */
export interface OutputEvents {
  held(): void;
  tapFull(): void;
  blockDone(device: number, tag: number): void;
}

/** The backends of a guest, in the order that both hosts agree on. */
export interface OutputBackends {
  readonly consoles: readonly ConsoleBackend[];
  readonly nets: readonly NetBackend[];
  /** Disks that both hosts share: a write is an output. */
  readonly disks: readonly BlockBackend[];
}

/** Bytes of frames and console output that may be held: a burst of 64 full-size offloaded frames. */
export const TAP_BYTES_MAX = 4 * 2 ** 20;
/** Frames and console pieces that may be held besides block requests. */
const TAP_ENTRIES = 4096;

/** See the module's head. */
export class Outputs implements TapSink {
  readonly tap: EventTap;
  readonly consoles: readonly TappedConsole[];
  readonly nets: readonly TappedNet[];
  readonly disks: readonly TappedBlock[];
  /** Bytes released to networks, for the status line. */
  releasedBytes = 0;
  #events: OutputEvents | undefined;
  #lease: Lease | undefined;

  constructor(backends: OutputBackends, vcpus: number) {
    const blockMax = backends.disks.reduce((sum, disk) => sum + disk.info.maxRequests, 0);
    const config: TapConfig = {
      bytesMax: TAP_BYTES_MAX,
      entriesMax: TAP_ENTRIES + blockMax,
      blockMax: Math.max(blockMax, 1),
      triggersMax: vcpus,
    };
    this.tap = new EventTap(config, this, () => this.#events?.held());
    const events = {
      tapFull: () => this.#events?.tapFull(),
      blockDone: (device: number, tag: number) => this.#events?.blockDone(device, tag),
    };
    let device = 0;
    const queueBytes = TAP_BYTES_MAX + MAX_ENTRY_BYTES;
    this.consoles = backends.consoles.map(
      (inner) => new TappedConsole(inner, this.tap, device++, events, queueBytes),
    );
    this.nets = backends.nets.map(
      (inner) => new TappedNet(inner, this.tap, device++, events, queueBytes),
    );
    this.disks = backends.disks.map((inner) => new TappedBlock(inner, this.tap, device++, events));
  }

  /** Device number of the network card with this index, in the tap and its log. */
  netDevice(index: number): number {
    return this.consoles.length + index;
  }

  /** Connects the primary that decides about the tap. */
  setEvents(events: OutputEvents): void {
    this.#events = events;
  }

  /** Outputs leave only while this runs. Before the first one does. */
  setLease(lease: Lease): void {
    this.#lease = lease;
    for (const part of [...this.consoles, ...this.nets, ...this.disks]) part.setLease(lease);
    this.leaseChanged();
  }

  /** The lease was extended, or is over: what waited only for it leaves. */
  leaseChanged(): void {
    const lease = this.#lease;
    if (lease === undefined) return;
    for (const disk of this.disks) this.#setDeadline(disk, lease);
    if (lease.valid) this.released();
  }

  /** Whether writes to the disk with this index can be seen from outside, from now on. */
  setShared(index: number, shared: boolean): void {
    const disk = this.disks[index]!;
    disk.isOutput = shared;
    // At once: a request to a disk of this host's own that were refused for the lease's end would reach the guest as an error.
    if (this.#lease !== undefined) this.#setDeadline(disk, this.#lease);
  }

  #setDeadline(disk: TappedBlock, lease: Lease): void {
    // A copy of this host's own is seen by nobody.
    disk.setLeaseDeadlineNs(disk.isOutput ? Math.max(0, lease.untilNs) : Number.POSITIVE_INFINITY);
  }

  #net(device: number): TappedNet | undefined {
    return this.nets[device - this.consoles.length];
  }

  #disk(device: number): TappedBlock | undefined {
    return this.disks[device - this.consoles.length - this.nets.length];
  }

  frame(device: number, bytes: Uint8Array, start: number, end: number): void {
    this.releasedBytes += end - start;
    this.#net(device)?.released(bytes, start, end);
  }

  console(device: number, bytes: Uint8Array, start: number, end: number): void {
    this.consoles[device]?.released(bytes, start, end);
  }

  block(device: number, tag: number): void {
    this.#disk(device)?.released(tag);
  }

  released(): void {
    for (const net of this.nets) {
      net.flush();
      net.wake();
    }
    for (const console of this.consoles) console.flush();
    for (const disk of this.disks) disk.unpark();
  }

  /** Where a takeover sends the log: the same backends, without the tap. */
  replaySink(write: ReplaySink['trigger']): ReplaySink {
    return {
      frame: (device, bytes, start, end) => this.frame(device, bytes, start, end),
      console: (device, bytes, start, end) => this.console(device, bytes, start, end),
      trigger: write,
    };
  }
}
