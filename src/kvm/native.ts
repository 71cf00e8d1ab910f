/**
 * Types of what native/kvm exports: checked ioctls and threads, no defaults and no policy. Only this room uses them.
 * Argument errors throw TypeError or RangeError; KVM's own throw Error with `code` (`KVM_IOCTL` with `call` and
 * `errno`, or another `KVM_*`), which errors.ts turns into VmmError.
 */
import { loadAddon } from './addon.ts';

/** Kinds of {@link NativeVm.getState}: one kernel structure each. */
export const STATE = {
  regs: 0,
  sregs: 1,
  xsave: 2,
  xcrs: 3,
  lapic: 4,
  events: 5,
  mp: 6,
  debugregs: 7,
} as const;
export type StateKind = (typeof STATE)[keyof typeof STATE];

/** One u32 per row entry of {@link NativeVm.setGsiRouting}: gsi, type, chip or address, pin or address, data. */
export const ROUTE_ROW_WORDS = 5;

/** native/kvm/memory-map.h */
export interface NativeMemoryMap {
  addRange(guestPhys: number, buffer: ArrayBuffer, offset: number, sizeBytes: number): void;
  removeRange(guestPhys: number): void;
  gather(pages: Uint32Array, count: number, dst: Uint8Array): void;
  beginGather(
    pages: Uint32Array,
    count: number,
    dst: Uint8Array,
    blocks: Uint32Array,
    blockPages: number,
  ): void;
  endGather(): void;
  scatter(pages: Uint32Array, count: number, src: Uint8Array): void;
  allocate(sizeBytes: number): ArrayBuffer;
  read(guestPhys: number, dst: Uint8Array): void;
  write(guestPhys: number, src: Uint8Array): void;
}

/** native/kvm/vm-object.h */
export interface NativeVm {
  slotBuffer(): ArrayBuffer;
  coalescedBuffer(): ArrayBuffer;
  createBuffer(sizeBytes: number): ArrayBuffer;
  mapSlot(
    slot: number,
    guestPhys: number,
    sizeBytes: number,
    readonly: boolean,
    log: boolean,
    firstPage: number,
    buffer: ArrayBuffer,
    offset: number,
  ): void;
  unmapSlot(slot: number): void;
  setDirtyLog(slot: number, on: boolean): void;
  harvestList(list: Uint32Array): number;
  harvestBits(words: Uint32Array): number;
  start(onExit: (vcpu: number) => boolean, onCoalesced?: (count: number) => void): void;
  pause(leaveOutOpen: boolean, timeoutMs: number): void;
  resume(): void;
  paused(): boolean;
  completeExit(vcpu: number): void;
  openExit(vcpu: number): number;
  drainCoalesced(): void;
  drainIoEvents(): void;
  setSpin(vcpuMaxUs: number, loopMaxUs: number): void;
  stats(): {
    exits: number;
    vcpuSpinHits: number;
    vcpuSleeps: number;
    loopWakes: number;
    kicks: number;
    spins: boolean;
  };
  setGuestDebug(vcpu: number, enable: boolean, singleStep: boolean): void;
  /** Bytes of a state structure in this VM. */
  stateBytes(kind: StateKind): number;
  getState(vcpu: number, kind: StateKind, state: Uint8Array): void;
  setState(vcpu: number, kind: StateKind, state: Uint8Array): void;
  /** How many of the MSRs, from the first on, were read. */
  getMsrs(vcpu: number, indices: Uint32Array, values: BigUint64Array): number;
  setMsrs(vcpu: number, indices: Uint32Array, values: BigUint64Array): number;
  setCpuid(vcpu: number, rows: Uint32Array): void;
  getCpuid(vcpu: number): Uint32Array;
  getTscOffset(vcpu: number): bigint | undefined;
  /** False where the kernel has no such attribute. */
  setTscOffset(vcpu: number, offset: bigint): boolean;
  tscKhz(vcpu: number): number;
  /** Host TSC at the end of the last pause; 0n before the first. */
  pauseTsc(): bigint;
  /** Chip 0, 1: PIC master, slave; 2: IOAPIC. 512 bytes. */
  getIrqchip(chip: number, state: Uint8Array): void;
  setIrqchip(chip: number, state: Uint8Array): void;
  getPit(state: Uint8Array): void;
  setPit(state: Uint8Array): void;
  /** Four values: nanoseconds, KVM_CLOCK_* flags, realtime, host TSC. */
  getClock(clock: BigUint64Array): void;
  setClock(clock: BigUint64Array): void;
  translate(vcpu: number, linear: bigint): number | undefined;
  setIrqLine(gsi: number, level: boolean): void;
  setGsiRouting(rows: Uint32Array): void;
  signalMsi(address: number, data: number): boolean;
  /** Events are named by ids, which are never used again. */
  addIrqfd(gsi: number): number;
  addIoEvent(pio: boolean, address: number, size: number, datamatch: bigint | undefined): number;
  eventFd(id: number): number;
  signalEvent(id: number): void;
  removeEvent(id: number): void;
  coalescedZone(pio: boolean, address: number, sizeBytes: number, add: boolean): void;
  destroy(): void;
}

/** Numbers of KVM_CHECK_EXTENSION, 0 where missing. */
export interface NativeCapabilities {
  readonly apiVersion: number;
  readonly vcpusMax: number;
  readonly memorySlotsMax: number;
  readonly readonlyMemory: number;
  readonly immediateExit: number;
  readonly irqchip: number;
  readonly pit2: number;
  readonly ioeventfd: number;
  readonly ioeventfdAnyLength: number;
  readonly irqfd: number;
  readonly signalMsi: number;
  readonly coalescedMmio: number;
  readonly coalescedPio: number;
  readonly tscControl: number;
  readonly tscDeadline: number;
  readonly vcpuAttributes: number;
  readonly adjustClock: number;
  readonly xsave: number;
  readonly xsave2Bytes: number;
  readonly disableQuirks2: number;
}

export interface NativeKvm {
  readonly MemoryMap: new () => NativeMemoryMap;
  readonly KvmVm: new (
    memory: NativeMemoryMap,
    vcpus: number,
    pit: boolean,
    tssAddress: number,
    onIoEvent: (id: number) => void,
  ) => NativeVm;
  kvmProbeCapabilities(): NativeCapabilities;
  kvmMsrIndexList(): Uint32Array;
  kvmSupportedCpuid(): Uint32Array;
  kvmProbeLazySkip(): { long: string; protected32: string; real: string };
  kvmHostTsc(): bigint;
}

/** The addon's KVM part; VmmError NATIVE_MISSING when the addon cannot be loaded. */
export function loadNativeKvm(): NativeKvm {
  return loadAddon() as NativeKvm;
}
