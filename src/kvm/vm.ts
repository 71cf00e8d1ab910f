/**
 * KvmVm over the native VM: defaults, error texts, views of the shared slots, doorbell handlers, and the state calls
 * that take more than one ioctl. Made by host.ts.
 */
import { assert } from '../base/assert.ts';
import { VmmError } from '../base/error.ts';
import {
  EXIT,
  type ExitSlot,
  type GsiRoute,
  type GuestDebugOptions,
  type IoEvent,
  type IoEventOptions,
  type Irqfd,
  isTerminalExit,
  type KvmState,
  type KvmVm,
  type LazySkip,
  MEMORY_BUFFER_MAX_BYTES,
  type MemorySlotOptions,
  PAGE_SIZE_BYTES,
  type RestoreOptions,
  type RestoreReport,
  SLOT_DATA_BYTES,
  SLOT_DATA_OFFSET,
  SLOT_STRIDE_BYTES,
  type SpinOptions,
  type VcpuState,
  type VmHandlers,
  type VmState,
  type VmStats,
} from './api.ts';
import { guarded, toVmmError } from './errors.ts';
import { defaultGsiRoutes, encodeGsiRoutes } from './gsi-routes.ts';
import type { MemoryMapHandle } from './memory-map.ts';
import { type NativeVm, STATE } from './native.ts';
import { regsBeforeOpenOut } from './open-out.ts';
import { readVcpuState, type TscBase, writeVcpuState } from './vcpu-state.ts';
import { readVmState, writeVmState } from './vm-state.ts';

const PAUSE_TIMEOUT_MS = 5000;
const SLOT_WORDS = SLOT_DATA_OFFSET / 4;

/** What host.ts hands over. */
export interface VmParts {
  readonly native: NativeVm;
  readonly memory: MemoryMapHandle;
  readonly vcpus: number;
  readonly pit: boolean;
  readonly msrs: Uint32Array;
  readonly lazySkip: () => LazySkip;
  /** Doorbell handlers by event id; the native side calls through it. */
  readonly doorbells: Map<number, () => void>;
  hostTsc(): bigint;
}

export class KvmVmHandle implements KvmVm {
  readonly vcpuCount: number;
  readonly slots: readonly ExitSlot[];
  readonly coalesced: { readonly words: Uint32Array; readonly bytes: Uint8Array };
  readonly memory: MemoryMapHandle;
  readonly #native: NativeVm;
  readonly #pit: boolean;
  readonly #msrs: Uint32Array;
  readonly #lazySkip: () => LazySkip;
  readonly #doorbells: Map<number, () => void>;
  readonly #hostTsc: () => bigint;
  #spin = { vcpuMaxUs: 0, loopMaxUs: 0 };
  #started = false;
  #destroyed = false;
  /** Host TSC that restores since the last start or resume count from: one for all vCPUs. */
  #restoreTsc: bigint | undefined;

  constructor(parts: VmParts) {
    this.#native = parts.native;
    this.memory = parts.memory;
    this.vcpuCount = parts.vcpus;
    this.#pit = parts.pit;
    this.#msrs = parts.msrs;
    this.#lazySkip = parts.lazySkip;
    this.#doorbells = parts.doorbells;
    this.#hostTsc = parts.hostTsc;
    const shared = parts.native.slotBuffer();
    this.slots = Array.from({ length: parts.vcpus }, (_, i) => {
      const at = i * SLOT_STRIDE_BYTES;
      return {
        words: new Uint32Array(shared, at, SLOT_WORDS),
        data: new Uint8Array(shared, at + SLOT_DATA_OFFSET, SLOT_DATA_BYTES),
        view: new DataView(shared, at + SLOT_DATA_OFFSET, SLOT_DATA_BYTES),
      };
    });
    const ring = parts.native.coalescedBuffer();
    this.coalesced = { words: new Uint32Array(ring), bytes: new Uint8Array(ring) };
  }

  // Memory.

  addMemory(options: MemorySlotOptions): ArrayBuffer {
    const buffer = this.createBuffer(options.sizeBytes);
    this.mapAlias({ ...options, buffer, offset: 0 });
    return buffer;
  }

  createBuffer(sizeBytes: number): ArrayBuffer {
    assert(
      sizeBytes > 0 && sizeBytes <= MEMORY_BUFFER_MAX_BYTES && sizeBytes % PAGE_SIZE_BYTES === 0,
      'a memory buffer has whole pages and at most 2 GiB',
    );
    return guarded(() => this.#native.createBuffer(sizeBytes));
  }

  mapAlias(options: MemorySlotOptions & { buffer: ArrayBuffer; offset: number }): void {
    const { slot, guestPhys, sizeBytes, buffer, offset } = options;
    guarded(() =>
      this.#native.mapSlot(
        slot,
        guestPhys,
        sizeBytes,
        options.readonly ?? false,
        options.log ?? false,
        options.firstPage ?? guestPhys / PAGE_SIZE_BYTES,
        buffer,
        offset,
      ),
    );
  }

  unmapSlot(slot: number): void {
    guarded(() => this.#native.unmapSlot(slot));
  }

  setDirtyLog(slot: number, on: boolean): void {
    guarded(() => this.#native.setDirtyLog(slot, on));
  }

  harvestDirty(list: Uint32Array): number {
    return guarded(() => this.#native.harvestList(list));
  }

  harvestDirtyBits(words: Uint32Array): number {
    return guarded(() => this.#native.harvestBits(words));
  }

  // Running.

  start(handlers: VmHandlers): void {
    const { onCoalesced } = handlers;
    guarded(() =>
      this.#native.start(
        (vcpu) => handlers.onExit(vcpu),
        onCoalesced === undefined ? undefined : (count) => onCoalesced.call(handlers, count),
      ),
    );
    this.#started = true;
    this.#restoreTsc = undefined;
  }

  pauseAll(timeoutMs: number = PAUSE_TIMEOUT_MS): void {
    this.#restoreTsc = undefined;
    guarded(() => this.#native.pause(false, timeoutMs));
  }

  pauseAllOpen(timeoutMs: number = PAUSE_TIMEOUT_MS): void {
    this.#restoreTsc = undefined;
    guarded(() => this.#native.pause(true, timeoutMs));
  }

  resumeAll(): void {
    this.#restoreTsc = undefined;
    guarded(() => this.#native.resume());
  }

  get paused(): boolean {
    return !this.#destroyed && this.#native.paused();
  }

  completeExit(vcpu: number): void {
    guarded(() => this.#native.completeExit(vcpu));
  }

  openExit(vcpu: number): number {
    return guarded(() => this.#native.openExit(vcpu));
  }

  drainCoalesced(): void {
    guarded(() => this.#native.drainCoalesced());
  }

  drainIoEvents(): void {
    guarded(() => this.#native.drainIoEvents());
  }

  setSpin(options: SpinOptions): void {
    this.#spin = { ...this.#spin, ...options };
    guarded(() => this.#native.setSpin(this.#spin.vcpuMaxUs, this.#spin.loopMaxUs));
  }

  stats(): VmStats {
    return guarded(() => this.#native.stats());
  }

  setGuestDebug(vcpu: number, options: GuestDebugOptions): void {
    const singleStep = options.singleStep ?? false;
    guarded(() => this.#native.setGuestDebug(vcpu, singleStep, singleStep));
  }

  // State.

  captureState(): KvmState {
    return guarded(() => {
      const hostTsc = this.#captureTsc();
      const vcpus: VcpuState[] = [];
      for (let i = 0; i < this.vcpuCount; i++) vcpus.push(this.#readVcpu(i, hostTsc));
      return { vm: this.getVmState(), vcpus };
    });
  }

  restoreState(state: KvmState, options: RestoreOptions = {}): RestoreReport {
    if (state.vcpus.length !== this.vcpuCount) {
      throw new VmmError(
        'STATE_INVALID',
        `the state has ${state.vcpus.length} vCPUs, this machine has ${this.vcpuCount}`,
      );
    }
    this.setVmState(state.vm, options);
    const report: RestoreReport = { tscTaken: true, msrsSkipped: [] };
    for (const [i, vcpu] of state.vcpus.entries()) {
      const one = this.setVcpuState(i, vcpu, options);
      report.tscTaken &&= one.tscTaken;
      for (const msr of one.msrsSkipped) {
        if (!report.msrsSkipped.includes(msr)) report.msrsSkipped.push(msr);
      }
    }
    return report;
  }

  getVcpuState(vcpu: number): VcpuState {
    return guarded(() => this.#readVcpu(vcpu, this.#captureTsc()));
  }

  setVcpuState(vcpu: number, state: VcpuState, options: RestoreOptions = {}): RestoreReport {
    this.#requireStopped();
    this.#restoreTsc ??= this.#hostTsc();
    const base: TscBase = {
      hostTsc: this.#restoreTsc,
      elapsedNs: options.elapsedNs ?? 0n,
      now: this.#hostTsc,
    };
    return guarded(() => {
      const report = writeVcpuState(this.#native, vcpu, state, base);
      // A new state ends an exit that the old one could not go on from.
      if (this.#started && isTerminalExit(this.#native.openExit(vcpu))) {
        this.#native.completeExit(vcpu);
      }
      return report;
    });
  }

  getVmState(): VmState {
    this.#requireStopped();
    return guarded(() => readVmState(this.#native, this.#pit));
  }

  setVmState(state: VmState, options: RestoreOptions = {}): void {
    this.#requireStopped();
    guarded(() => writeVmState(this.#native, this.#pit, state, options));
  }

  getRegs(vcpu: number): BigUint64Array {
    const regs = new BigUint64Array(18);
    guarded(() => this.#native.getState(vcpu, STATE.regs, new Uint8Array(regs.buffer)));
    return regs;
  }

  setRegs(vcpu: number, regs: BigUint64Array): void {
    const bytes = new Uint8Array(regs.buffer, regs.byteOffset, regs.byteLength);
    guarded(() => this.#native.setState(vcpu, STATE.regs, bytes));
  }

  getSregs(vcpu: number): Uint8Array {
    return guarded(() => {
      const bytes = new Uint8Array(this.#native.stateBytes(STATE.sregs));
      this.#native.getState(vcpu, STATE.sregs, bytes);
      return bytes;
    });
  }

  setSregs(vcpu: number, sregs: Uint8Array): void {
    guarded(() => this.#native.setState(vcpu, STATE.sregs, sregs));
  }

  getCpuid(vcpu: number): Uint32Array {
    return guarded(() => this.#native.getCpuid(vcpu));
  }

  translate(vcpu: number, linear: bigint): number | null {
    return guarded(() => this.#native.translate(vcpu, linear) ?? null);
  }

  #captureTsc(): bigint {
    return this.#started ? this.#native.pauseTsc() : this.#hostTsc();
  }

  #requireStopped(): void {
    if (this.#started && !this.paused) {
      throw new VmmError('KVM_NOT_PAUSED', 'the VM is running: pause it first');
    }
  }

  #readVcpu(vcpu: number, hostTsc: bigint): VcpuState {
    this.#requireStopped();
    const state = readVcpuState(this.#native, vcpu, this.#msrs, hostTsc);
    if (this.#native.openExit(vcpu) === EXIT.pioOut) {
      state.regs = regsBeforeOpenOut(this.slots[vcpu]!, state.regs, state.sregs, this.#lazySkip(), {
        translate: (linear) => this.#native.translate(vcpu, linear) ?? null,
        read: (guestPhys, dst) => this.#readGuest(guestPhys, dst),
      });
    }
    return state;
  }

  #readGuest(guestPhys: number, dst: Uint8Array): void {
    this.memory.native.read(guestPhys, dst);
  }

  // Interrupts.

  setIrqLine(gsi: number, level: boolean): void {
    try {
      this.#native.setIrqLine(gsi, level);
    } catch (error) {
      throw toVmmError(error);
    }
  }

  setGsiRoutes(routes: readonly GsiRoute[] = defaultGsiRoutes()): void {
    const rows = encodeGsiRoutes(routes);
    guarded(() => this.#native.setGsiRouting(rows));
  }

  signalMsi(address: number, data: number): boolean {
    try {
      return this.#native.signalMsi(address, data);
    } catch (error) {
      throw toVmmError(error);
    }
  }

  addIrqfd(gsi: number): Irqfd {
    const native = this.#native;
    return guarded(() => {
      const id = native.addIrqfd(gsi);
      return {
        fd: native.eventFd(id),
        gsi,
        signal: () => native.signalEvent(id),
        close: () => guarded(() => native.removeEvent(id)),
      };
    });
  }

  addIoEvent(options: IoEventOptions, onKick: () => void): IoEvent {
    const native = this.#native;
    const { space, address, size, datamatch } = options;
    return guarded(() => {
      const match = datamatch === undefined ? undefined : BigInt(datamatch);
      const id = native.addIoEvent(space === 'pio', address, size, match);
      this.#doorbells.set(id, onKick);
      return {
        fd: native.eventFd(id),
        close: () => {
          this.#doorbells.delete(id);
          guarded(() => native.removeEvent(id));
        },
      };
    });
  }

  addCoalescedZone(space: 'pio' | 'mmio', address: number, sizeBytes: number): void {
    guarded(() => this.#native.coalescedZone(space === 'pio', address, sizeBytes, true));
  }

  removeCoalescedZone(space: 'pio' | 'mmio', address: number, sizeBytes: number): void {
    guarded(() => this.#native.coalescedZone(space === 'pio', address, sizeBytes, false));
  }

  destroy(): void {
    guarded(() => this.#native.destroy());
    this.#destroyed = true;
    this.#doorbells.clear();
  }
}
