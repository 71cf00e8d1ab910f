/**
 * A KvmVm without KVM, for tests of what stands above this room: memory is plain, the test plays the guest by
 * delivering exits, and everything that is asked of the VM is recorded. Keeps the contract of api.ts where code relies
 * on it (state only while stopped, open exits, no destroy from a handler), and models no instruction.
 */
import { assert } from '../base/assert.ts';
import { VmmError } from '../base/error.ts';
import {
  COALESCED_ENTRY_BYTES,
  COALESCED_WORD,
  CPUID_ROW_WORDS,
  EXIT,
  type ExitKind,
  type ExitSlot,
  type GsiRoute,
  type IoEvent,
  type IoEventOptions,
  type Irqfd,
  isTerminalExit,
  type KvmCapabilities,
  type KvmHost,
  type KvmMemoryMap,
  type KvmState,
  type KvmVm,
  type MemorySlotOptions,
  PAGE_SIZE_BYTES,
  type RestoreReport,
  SLOT_DATA_BYTES,
  SLOT_DATA_OFFSET,
  SLOT_STRIDE_BYTES,
  SLOT_WORD,
  type VcpuState,
  type VmHandlers,
  type VmOptions,
  type VmState,
  type VmStats,
} from './api.ts';
import { SREGS_BYTES } from './sregs.ts';

const COALESCED_ENTRIES = 128;

/** An exit to play. `data` is what the guest writes; reads return what the handler left in the slot. */
export interface FakeExit {
  readonly kind: ExitKind;
  readonly address?: number;
  readonly size?: number;
  readonly count?: number;
  readonly data?: readonly number[];
  readonly detail?: number;
}

interface Range {
  readonly guestPhys: number;
  readonly bytes: Uint8Array;
}

interface Slot extends Range {
  readonly options: MemorySlotOptions;
  readonly buffer: ArrayBuffer;
  log: boolean;
  readonly dirty: Set<number>;
}

/** Guest-physical memory over plain buffers. */
export class FakeMemoryMap implements KvmMemoryMap {
  readonly native: object = {};
  readonly #ranges: Range[] = [];

  addRange(
    guestPhys: number,
    buffer: ArrayBuffer,
    offset = 0,
    sizeBytes: number = buffer.byteLength - offset,
  ): void {
    const overlaps = this.#ranges.some(
      (range) =>
        guestPhys < range.guestPhys + range.bytes.length && range.guestPhys < guestPhys + sizeBytes,
    );
    if (overlaps || sizeBytes <= 0) throw new RangeError('the range overlaps or is empty');
    this.#ranges.push({ guestPhys, bytes: new Uint8Array(buffer, offset, sizeBytes) });
  }

  removeRange(guestPhys: number): void {
    const at = this.#ranges.findIndex((range) => range.guestPhys === guestPhys);
    if (at < 0) throw new RangeError('no range starts there');
    this.#ranges.splice(at, 1);
  }

  gather(pages: Uint32Array, count: number, dst: Uint8Array): void {
    for (let i = 0; i < count; i++) {
      this.read(
        pages[i]! * PAGE_SIZE_BYTES,
        dst.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES),
      );
    }
  }

  beginGather(
    pages: Uint32Array,
    count: number,
    dst: Uint8Array,
    blocks: Uint32Array,
    blockPages: number,
  ): void {
    for (let first = 0; first < count; first += blockPages) {
      const part = pages.subarray(first, Math.min(count, first + blockPages));
      this.gather(part, part.length, dst.subarray(blocks[first / blockPages]!));
    }
  }

  endGather(): void {}

  allocate(sizeBytes: number): Uint8Array {
    return new Uint8Array(sizeBytes);
  }

  scatter(pages: Uint32Array, count: number, src: Uint8Array): void {
    for (let i = 0; i < count; i++) {
      this.write(
        pages[i]! * PAGE_SIZE_BYTES,
        src.subarray(i * PAGE_SIZE_BYTES, (i + 1) * PAGE_SIZE_BYTES),
      );
    }
  }

  read(guestPhys: number, dst: Uint8Array): void {
    this.#each(guestPhys, dst.length, (bytes, at) => dst.set(bytes, at));
  }

  write(guestPhys: number, src: Uint8Array): void {
    this.#each(guestPhys, src.length, (bytes, at) =>
      bytes.set(src.subarray(at, at + bytes.length)),
    );
  }

  #each(guestPhys: number, length: number, visit: (bytes: Uint8Array, at: number) => void): void {
    for (let at = 0; at < length; ) {
      const phys = guestPhys + at;
      const range = this.#ranges.find(
        (r) => phys >= r.guestPhys && phys < r.guestPhys + r.bytes.length,
      );
      if (range === undefined) {
        throw new VmmError('KVM_MEMORY_RANGE', 'guest memory range is not mapped');
      }
      const from = phys - range.guestPhys;
      const piece = range.bytes.subarray(from, Math.min(range.bytes.length, from + length - at));
      visit(piece, at);
      at += piece.length;
    }
  }
}

/** A doorbell that the test rings. */
interface FakeDoorbell {
  readonly id: number;
  readonly options: IoEventOptions;
  readonly onKick: () => void;
}

export class FakeKvmVm implements KvmVm {
  readonly vcpuCount: number;
  readonly slots: readonly ExitSlot[];
  readonly coalesced: { readonly words: Uint32Array; readonly bytes: Uint8Array };
  readonly memory = new FakeMemoryMap();

  /** Level of each GSI that was ever set. */
  readonly irqLevels = new Map<number, boolean>();
  /** Every setIrqLine, in order. */
  readonly irqLog: { gsi: number; level: boolean }[] = [];
  /** Every signalMsi and signalled irqfd (`address` is then the GSI, `data` 0). */
  readonly msiLog: { address: number; data: number }[] = [];
  routes: readonly GsiRoute[] = [];
  readonly coalescedZones: { space: 'pio' | 'mmio'; address: number; sizeBytes: number }[] = [];
  readonly singleStep: boolean[];
  started = false;
  destroyed = false;
  paused = false;

  readonly #memorySlots = new Map<number, Slot>();
  readonly #doorbells: FakeDoorbell[] = [];
  readonly #rung = new Set<number>();
  readonly #open: number[];
  readonly #posted: number[];
  readonly #states: VcpuState[];
  #vmState: VmState = emptyVmState();
  #handlers: VmHandlers | undefined;
  #pendingCoalesced = 0;
  #delivering = 0;
  #nextId = 1;
  #exits = 0;

  constructor(options: VmOptions) {
    const { vcpus } = options;
    this.vcpuCount = vcpus;
    const shared = new ArrayBuffer(vcpus * SLOT_STRIDE_BYTES);
    this.slots = Array.from({ length: vcpus }, (_, i) => {
      const at = i * SLOT_STRIDE_BYTES;
      const words = new Uint32Array(shared, at, SLOT_DATA_OFFSET / 4);
      words[SLOT_WORD.vcpu] = i;
      return {
        words,
        data: new Uint8Array(shared, at + SLOT_DATA_OFFSET, SLOT_DATA_BYTES),
        view: new DataView(shared, at + SLOT_DATA_OFFSET, SLOT_DATA_BYTES),
      };
    });
    const ring = new ArrayBuffer(COALESCED_ENTRIES * COALESCED_ENTRY_BYTES);
    this.coalesced = { words: new Uint32Array(ring), bytes: new Uint8Array(ring) };
    this.#open = new Array<number>(vcpus).fill(0);
    this.#posted = new Array<number>(vcpus).fill(0);
    this.singleStep = new Array<boolean>(vcpus).fill(false);
    this.#states = Array.from({ length: vcpus }, (_, i) => emptyVcpuState(i));
  }

  // What a test does in the guest's place.

  /**
   * The guest on `vcpu` makes this exit; it is delivered at once, or by resumeAll while the VM is paused. Returns true
   * when the handler completed it.
   */
  exit(vcpu: number, exit: FakeExit): boolean {
    assert(this.#posted[vcpu] === 0, `vCPU ${vcpu} stands at an exit already`);
    const { words, data } = this.slots[vcpu]!;
    const size = exit.size ?? 1;
    const count = exit.count ?? 1;
    const address = exit.address ?? 0;
    words[SLOT_WORD.kind] = exit.kind;
    words[SLOT_WORD.size] = size;
    words[SLOT_WORD.count] = count;
    words[SLOT_WORD.addressLo] = address % 2 ** 32;
    words[SLOT_WORD.addressHi] = Math.floor(address / 2 ** 32);
    words[SLOT_WORD.detail] = exit.detail ?? 0;
    words[SLOT_WORD.dataLength] = size * count;
    if (exit.data === undefined) data.fill(0xff, 0, size * count);
    else data.set(exit.data);
    this.#posted[vcpu] = exit.kind;
    this.#exits++;
    return this.paused || !this.started ? false : this.#deliver(vcpu);
  }

  /** Writes of `size` bytes to a port or address as guest instructions would make them. */
  out(port: number, size: number, value: number, vcpu = 0): boolean {
    return this.exit(vcpu, {
      kind: EXIT.pioOut,
      address: port,
      size,
      data: littleEndian(value, size),
    });
  }

  /** Reads a port; the handler must complete the exit. */
  in(port: number, size: number, vcpu = 0): number {
    assert(this.exit(vcpu, { kind: EXIT.pioIn, address: port, size }), 'the read was completed');
    return fromLittleEndian(this.slots[vcpu]!.data, size);
  }

  mmioWrite(address: number, size: number, value: number, vcpu = 0): boolean {
    return this.exit(vcpu, {
      kind: EXIT.mmioWrite,
      address,
      size,
      data: littleEndian(value, size),
    });
  }

  mmioRead(address: number, size: number, vcpu = 0): number {
    assert(this.exit(vcpu, { kind: EXIT.mmioRead, address, size }), 'the read was completed');
    return fromLittleEndian(this.slots[vcpu]!.data, size);
  }

  /** Puts a write into the coalesced ring. */
  coalesce(
    kind: typeof EXIT.pioOut | typeof EXIT.mmioWrite,
    address: number,
    size: number,
    value: number,
  ): void {
    assert(this.#pendingCoalesced < COALESCED_ENTRIES, 'the ring has room');
    const at = (this.#pendingCoalesced++ * COALESCED_ENTRY_BYTES) / 4;
    const { words, bytes } = this.coalesced;
    words[at + COALESCED_WORD.kind] = kind;
    words[at + COALESCED_WORD.size] = size;
    words[at + COALESCED_WORD.addressLo] = address % 2 ** 32;
    words[at + COALESCED_WORD.addressHi] = Math.floor(address / 2 ** 32);
    bytes.set(littleEndian(value, size), (at + COALESCED_WORD.data) * 4);
  }

  /** Rings the doorbell that covers this write; false if none does. Delivered by drainIoEvents or flushDoorbells. */
  ring(space: 'pio' | 'mmio', address: number, value = 0): boolean {
    const bell = this.#doorbells.find(
      ({ options }) =>
        options.space === space &&
        options.address === address &&
        (options.datamatch === undefined || options.datamatch === value),
    );
    if (bell !== undefined) this.#rung.add(bell.id);
    return bell !== undefined;
  }

  /** What the event loop does with rung doorbells. */
  flushDoorbells(): void {
    this.drainIoEvents();
  }

  /** The guest writes memory: the bytes and the dirty log. */
  guestWrite(guestPhys: number, data: Uint8Array): void {
    this.memory.write(guestPhys, data);
    for (const slot of this.#memorySlots.values()) {
      if (!slot.log) continue;
      const from = Math.max(guestPhys, slot.guestPhys);
      const to = Math.min(guestPhys + data.length, slot.guestPhys + slot.bytes.length);
      const first = slot.options.firstPage ?? slot.guestPhys / PAGE_SIZE_BYTES;
      for (let at = from; at < to; at = (Math.floor(at / PAGE_SIZE_BYTES) + 1) * PAGE_SIZE_BYTES) {
        slot.dirty.add(first + Math.floor((at - slot.guestPhys) / PAGE_SIZE_BYTES));
      }
    }
  }

  // KvmVm.

  addMemory(options: MemorySlotOptions): ArrayBuffer {
    const buffer = this.createBuffer(options.sizeBytes);
    this.mapAlias({ ...options, buffer, offset: 0 });
    return buffer;
  }

  createBuffer(sizeBytes: number): ArrayBuffer {
    assert(sizeBytes > 0 && sizeBytes % PAGE_SIZE_BYTES === 0, 'a memory buffer has whole pages');
    return new ArrayBuffer(sizeBytes);
  }

  mapAlias(options: MemorySlotOptions & { buffer: ArrayBuffer; offset: number }): void {
    const { slot, guestPhys, sizeBytes, buffer, offset } = options;
    if (this.#memorySlots.has(slot)) {
      throw new VmmError('KVM_SLOT_BUSY', `memory slot ${slot} is in use`);
    }
    assert(guestPhys % PAGE_SIZE_BYTES === 0 && sizeBytes % PAGE_SIZE_BYTES === 0, 'page aligned');
    this.memory.addRange(guestPhys, buffer, offset, sizeBytes);
    this.#memorySlots.set(slot, {
      options,
      guestPhys,
      buffer,
      bytes: new Uint8Array(buffer, offset, sizeBytes),
      log: options.log ?? false,
      dirty: new Set(),
    });
  }

  unmapSlot(slot: number): void {
    this.memory.removeRange(this.#slot(slot).guestPhys);
    this.#memorySlots.delete(slot);
  }

  setDirtyLog(slot: number, on: boolean): void {
    const found = this.#slot(slot);
    found.log = on;
    if (!on) found.dirty.clear();
  }

  harvestDirty(list: Uint32Array): number {
    let count = 0;
    for (const slot of this.#memorySlots.values()) {
      for (const page of slot.dirty) {
        if (count === list.length) return count;
        list[count++] = page;
        slot.dirty.delete(page);
      }
    }
    return count;
  }

  harvestDirtyBits(words: Uint32Array): number {
    let fresh = 0;
    for (const slot of this.#memorySlots.values()) {
      for (const page of slot.dirty) {
        const bit = (1 << (page % 32)) >>> 0;
        const word = Math.floor(page / 32);
        if ((words[word]! & bit) === 0) fresh++;
        words[word] = (words[word]! | bit) >>> 0;
      }
      slot.dirty.clear();
    }
    return fresh;
  }

  start(handlers: VmHandlers): void {
    if (this.started) throw new VmmError('KVM_STARTED', 'the VM has been started already');
    this.started = true;
    this.#handlers = handlers;
    if (!this.paused) this.#deliverAll();
  }

  pauseAll(): void {
    if (this.#delivering > 0 && this.#open.some((kind) => kind !== 0 && !isTerminalExit(kind))) {
      throw new VmmError('KVM_EXIT_OPEN', 'a vCPU has an exit that is not complete');
    }
    this.#deliverAll();
    const open = this.#open.findIndex((kind) => kind !== 0 && !isTerminalExit(kind));
    if (open >= 0) {
      throw new VmmError('KVM_EXIT_OPEN', `vCPU ${open} has an exit that is not complete`);
    }
    this.paused = true;
    this.drainCoalesced();
  }

  pauseAllOpen(): void {
    this.paused = true;
    this.drainCoalesced();
  }

  resumeAll(): void {
    this.paused = false;
    if (this.started) this.#deliverAll();
  }

  completeExit(vcpu: number): void {
    if (this.#open[vcpu] === 0) {
      throw new VmmError('KVM_NO_EXIT', `vCPU ${vcpu} has no open exit`);
    }
    if (this.paused && !isTerminalExit(this.#open[vcpu]!)) {
      throw new VmmError('KVM_PAUSED', 'an exit cannot be completed while the VM is paused');
    }
    this.#open[vcpu] = 0;
    this.#posted[vcpu] = 0;
  }

  openExit(vcpu: number): number {
    return this.#posted[vcpu]!;
  }

  drainCoalesced(): void {
    const count = this.#pendingCoalesced;
    this.#pendingCoalesced = 0;
    if (count > 0) this.#handlers?.onCoalesced?.(count);
  }

  drainIoEvents(): void {
    for (const { id, onKick } of [...this.#doorbells]) {
      if (this.#rung.delete(id)) onKick();
    }
  }

  setSpin(): void {}

  stats(): VmStats {
    return {
      exits: this.#exits,
      vcpuSpinHits: 0,
      vcpuSleeps: 0,
      loopWakes: 0,
      kicks: 0,
      spins: false,
    };
  }

  setGuestDebug(vcpu: number, options: { singleStep?: boolean }): void {
    this.singleStep[vcpu] = options.singleStep ?? false;
  }

  captureState(): KvmState {
    return {
      vm: this.getVmState(),
      vcpus: this.#states.map((_, vcpu) => this.getVcpuState(vcpu)),
    };
  }

  restoreState(state: KvmState): RestoreReport {
    if (state.vcpus.length !== this.vcpuCount) {
      throw new VmmError('STATE_INVALID', `the state has ${state.vcpus.length} vCPUs`);
    }
    this.setVmState(state.vm);
    for (const [i, vcpu] of state.vcpus.entries()) this.setVcpuState(i, vcpu);
    return { tscTaken: true, msrsSkipped: [] };
  }

  getVcpuState(vcpu: number): VcpuState {
    this.#requireStopped();
    return structuredClone(this.#states[vcpu]!);
  }

  setVcpuState(vcpu: number, state: VcpuState): RestoreReport {
    this.#requireStopped();
    this.#states[vcpu] = structuredClone(state);
    if (isTerminalExit(this.#open[vcpu]!)) this.completeExit(vcpu);
    return { tscTaken: true, msrsSkipped: [] };
  }

  getVmState(): VmState {
    this.#requireStopped();
    return structuredClone(this.#vmState);
  }

  setVmState(state: VmState): void {
    this.#requireStopped();
    this.#vmState = structuredClone(state);
  }

  getRegs(vcpu: number): BigUint64Array {
    return this.#states[vcpu]!.regs.slice();
  }
  setRegs(vcpu: number, regs: BigUint64Array): void {
    this.#states[vcpu]!.regs = regs.slice();
  }
  getSregs(vcpu: number): Uint8Array {
    return this.#states[vcpu]!.sregs.slice();
  }
  setSregs(vcpu: number, sregs: Uint8Array): void {
    assert(sregs.length === SREGS_BYTES, 'struct kvm_sregs has 312 bytes');
    this.#states[vcpu]!.sregs = sregs.slice();
  }
  getCpuid(): Uint32Array {
    return new Uint32Array(CPUID_ROW_WORDS);
  }
  /** No page tables here: linear is physical. */
  translate(_vcpu: number, linear: bigint): number | null {
    return Number(linear);
  }

  setIrqLine(gsi: number, level: boolean): void {
    this.irqLevels.set(gsi, level);
    this.irqLog.push({ gsi, level });
  }

  setGsiRoutes(routes: readonly GsiRoute[]): void {
    this.routes = routes;
  }

  signalMsi(address: number, data: number): boolean {
    this.msiLog.push({ address, data });
    return true;
  }

  addIrqfd(gsi: number): Irqfd {
    return {
      fd: -1,
      gsi,
      signal: () => this.msiLog.push({ address: gsi, data: 0 }),
      close: () => {},
    };
  }

  addIoEvent(options: IoEventOptions, onKick: () => void): IoEvent {
    const id = this.#nextId++;
    this.#doorbells.push({ id, options, onKick });
    return {
      fd: -1,
      close: () => {
        const at = this.#doorbells.findIndex((bell) => bell.id === id);
        if (at >= 0) this.#doorbells.splice(at, 1);
        this.#rung.delete(id);
      },
    };
  }

  addCoalescedZone(space: 'pio' | 'mmio', address: number, sizeBytes: number): void {
    this.coalescedZones.push({ space, address, sizeBytes });
  }

  removeCoalescedZone(space: 'pio' | 'mmio', address: number, sizeBytes: number): void {
    const at = this.coalescedZones.findIndex(
      (zone) => zone.space === space && zone.address === address && zone.sizeBytes === sizeBytes,
    );
    if (at >= 0) this.coalescedZones.splice(at, 1);
  }

  destroy(): void {
    if (this.#delivering > 0) {
      throw new VmmError('KVM_BUSY', 'the VM cannot be destroyed from inside an exit handler');
    }
    this.destroyed = true;
    this.#memorySlots.clear();
    this.#doorbells.length = 0;
  }

  #slot(slot: number): Slot {
    const found = this.#memorySlots.get(slot);
    if (found === undefined) {
      throw new VmmError('KVM_SLOT_FREE', `memory slot ${slot} is not in use`);
    }
    return found;
  }

  #requireStopped(): void {
    if (this.started && !this.paused) {
      throw new VmmError('KVM_NOT_PAUSED', 'the VM is running: pause it first');
    }
  }

  #deliverAll(): void {
    for (let vcpu = 0; vcpu < this.vcpuCount; vcpu++) {
      if (this.#posted[vcpu] !== 0 && this.#open[vcpu] === 0) this.#deliver(vcpu);
    }
  }

  #deliver(vcpu: number): boolean {
    const handlers = this.#handlers;
    assert(handlers !== undefined, 'the VM was started');
    this.drainCoalesced();
    this.#open[vcpu] = this.#posted[vcpu]!;
    this.#delivering++;
    try {
      const done = handlers.onExit(vcpu);
      if (done) {
        this.#open[vcpu] = 0;
        this.#posted[vcpu] = 0;
      }
      return done;
    } finally {
      this.#delivering--;
    }
  }
}

/** Hands out fakes; `vms` has them in the order they were made. */
export class FakeKvmHost implements KvmHost {
  readonly vms: FakeKvmVm[] = [];
  readonly capabilities: KvmCapabilities = {
    apiVersion: 12,
    vcpusMax: 255,
    memorySlotsMax: 32764,
    hasReadonlyMemory: true,
    hasImmediateExit: true,
    hasIrqchip: true,
    hasPit2: true,
    hasIoeventfd: true,
    hasIoeventfdAnyLength: true,
    hasIrqfd: true,
    hasSignalMsi: true,
    hasCoalescedMmio: true,
    hasCoalescedPio: true,
    hasTscControl: false,
    hasTscDeadline: true,
    hasVcpuTscOffset: true,
    hasAdjustClock: true,
    hasXsave: true,
    xsaveBytes: 4096,
    hasQuirkOut7eDisable: true,
    lazySkip: { long: 'late', protected32: 'late', real: 'late' },
  };

  probe(): KvmCapabilities {
    return this.capabilities;
  }

  createVm(options: VmOptions): FakeKvmVm {
    const vm = new FakeKvmVm(options);
    this.vms.push(vm);
    return vm;
  }

  createMemoryMap(): FakeMemoryMap {
    return new FakeMemoryMap();
  }
}

function littleEndian(value: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => Math.floor(value / 2 ** (8 * i)) % 256);
}

function fromLittleEndian(bytes: Uint8Array, size: number): number {
  let value = 0;
  for (let i = size - 1; i >= 0; i--) value = value * 256 + bytes[i]!;
  return value;
}

/** MP state of application processors: KVM_MP_STATE_UNINITIALIZED. */
function emptyVcpuState(index: number): VcpuState {
  return {
    regs: new BigUint64Array(18),
    sregs: new Uint8Array(SREGS_BYTES),
    xsave: new Uint8Array(4096),
    xcrs: new Uint8Array(392),
    msrIndices: new Uint32Array(0),
    msrValues: new BigUint64Array(0),
    lapic: new Uint8Array(1024),
    events: new Uint8Array(64),
    mpState: index === 0 ? 0 : 1,
    debugregs: new Uint8Array(128),
    tscOffset: 0n,
    hasTscOffset: true,
    hostTsc: 0n,
    tscKhz: 1_000_000,
  };
}

function emptyVmState(): VmState {
  return {
    picMaster: new Uint8Array(512),
    picSlave: new Uint8Array(512),
    ioapic: new Uint8Array(512),
    pit2: new Uint8Array(112),
    clockNs: 0n,
    clockFlags: 0,
    clockRealtimeNs: 0n,
    clockHostTsc: 0n,
  };
}
