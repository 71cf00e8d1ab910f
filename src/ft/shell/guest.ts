/**
 * What replication needs of a guest. The machine room implements it; nothing here knows devices. All calls happen on the
 * one JavaScript thread, none from inside a vCPU's exit.
 */
import type { KvmMemoryMap } from '../../kvm/api.ts';
import type { GuestMemory } from '../../memory/guest-memory.ts';

/** A guest that can be stopped, copied and continued elsewhere. */
export interface ReplicatedGuest {
  readonly memory: GuestMemory;
  /** The same memory for native gather, scatter and decode; pages are guest frame numbers. */
  readonly map: KvmMemoryMap;
  /** Whether it runs now. */
  readonly running: boolean;
  /** Stops it at a completed boundary: vCPUs, doorbells and devices stand still. Idempotent. */
  pause(): void;
  /** Lets it go on. */
  resume(): void;
  /** Everything but memory; only while it stands still. */
  saveContainer(): Uint8Array;
  /** Decodes a container without touching anything. @throws VmmError when it could not be loaded */
  checkContainer(container: Uint8Array): void;
  /**
   * Takes a container over; memory is in place already.
   * @param elapsedNs time that passed for the outside since the capture
   */
  loadContainer(container: Uint8Array, elapsedNs: number): void;
  /** Starts logging which pages the vCPUs write, or stops. */
  setDirtyLog(on: boolean): void;
  /**
   * Takes frame numbers of pages written since the last call, by the guest or by devices, each once, into `list`.
   * @returns how many; when `list` is full there may be more for the next call
   */
  harvest(list: Uint32Array): number;
  /** A guest write that nobody has seen, from a tap log: through the bus, `size` bytes. */
  replayWrite(space: number, size: number, address: number, low: number, high: number): void;
}

/** All frame numbers of a guest's memory, ascending. */
export function allFrames(memory: GuestMemory): Uint32Array {
  const frames = new Uint32Array(memory.totalBytes / 4096);
  let at = 0;
  for (const { base, end } of memory.ranges) {
    for (let frame = base / 4096; frame < end / 4096; frame++) frames[at++] = frame;
  }
  return frames;
}
