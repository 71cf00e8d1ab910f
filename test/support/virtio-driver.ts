/**
 * A guest's virtio driver for tests: finds the device on PCI, negotiates, builds rings in guest memory, and talks to
 * the device only through configuration space, MMIO and memory, as a kernel does.
 */
import { assert } from '../../src/base/assert.ts';
import type { AccessSize } from '../../src/bus/io-bus.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import { CAP_TYPE, COMMON, DESC, type FeatureSet, STATUS } from '../../src/virtio/spec.ts';
import type { PciTestBoard } from './pci-board.ts';

/** One buffer of a chain. */
export interface Segment {
  readonly address: number;
  readonly length: number;
  /** Whether the device writes it. */
  readonly write?: boolean;
}

/** A used entry. */
export interface Used {
  readonly head: number;
  readonly written: number;
}

/** Where MMIO of the device under test goes. */
export const TEST_BAR0 = 0xe000_0000;
export const TEST_BAR1 = 0xe001_0000;

/** Guest memory for tests: `bytes` at 0, and 64 KiB above 4 GiB. */
export function testMemory(bytes = 0x40_0000): GuestMemory {
  return new GuestMemory([
    { base: 0, buffer: new ArrayBuffer(bytes) },
    { base: 0x1_0000_0000, buffer: new ArrayBuffer(0x1_0000) },
  ]);
}

export class VirtioDriver {
  /** Replaced when the device is: the guest does not notice. */
  board: PciTestBoard;
  readonly memory: GuestMemory;
  readonly slot: number;
  readonly #heap: number;
  readonly queues: DriverQueue[] = [];
  features: FeatureSet = { low: 0, high: 0 };
  #next: number;
  #places = new Map<number, number>();

  /** @param heap where rings and buffers are taken from */
  constructor(board: PciTestBoard, memory: GuestMemory, slot: number, heap = 0x1_0000) {
    this.board = board;
    this.memory = memory;
    this.slot = slot;
    this.#heap = heap;
    this.#next = heap;
  }

  /** Gives back everything allocated: for a driver that starts anew. */
  rewind(): void {
    this.#next = this.#heap;
  }

  /** Memory for a ring or buffer. */
  allocate(bytes: number, alignment = 16): number {
    const address = Math.ceil(this.#next / alignment) * alignment;
    this.#next = address + bytes;
    assert(this.memory.contains(address, bytes), 'the test has enough memory');
    return address;
  }

  /** Programs the BARs and reads the capabilities. */
  probe(): void {
    const { board, slot } = this;
    board.write(slot, 0x10, TEST_BAR0);
    board.write(slot, 0x14, TEST_BAR1);
    board.write(slot, 0x04, 0x0006, 2);
    this.#places = new Map();
    for (let at = board.read(slot, 0x34, 1); at !== 0; at = board.read(slot, at + 1, 1)) {
      if (board.read(slot, at, 1) !== 9) continue;
      this.#places.set(board.read(slot, at + 3, 1), TEST_BAR0 + board.read(slot, at + 8));
    }
  }

  /** Turns MSI-X on: vector `i` sends data 0x40 + i. */
  enableMsix(vectors: number): void {
    for (let i = 0; i < vectors; i++) {
      const at = TEST_BAR1 + 16 * i;
      this.board.mmio.write(at, 4, 0xfee0_0000);
      this.board.mmio.write(at + 8, 4, 0x40 + i);
      this.board.mmio.write(at + 12, 4, 0);
    }
    const cap = this.capability(0x11);
    this.board.write(this.slot, cap + 2, 0x8000, 2);
  }

  /** Offset of the capability with `id`. */
  capability(id: number): number {
    let at = this.board.read(this.slot, 0x34, 1);
    while (at !== 0 && this.board.read(this.slot, at, 1) !== id) {
      at = this.board.read(this.slot, at + 1, 1);
    }
    return at;
  }

  common(offset: number, size: AccessSize): number {
    return this.board.mmio.read(this.#place(CAP_TYPE.common) + offset, size);
  }

  setCommon(offset: number, size: AccessSize, value: number): void {
    this.board.mmio.write(this.#place(CAP_TYPE.common) + offset, size, value);
  }

  get status(): number {
    return this.common(COMMON.status, 1);
  }

  set status(value: number) {
    this.setCommon(COMMON.status, 1, value);
  }

  /** Device configuration. */
  config(offset: number, size: AccessSize): number {
    return this.board.mmio.read(this.#place(CAP_TYPE.device) + offset, size);
  }

  setConfig(offset: number, size: AccessSize, value: number): void {
    this.board.mmio.write(this.#place(CAP_TYPE.device) + offset, size, value);
  }

  /** Reads and so acknowledges the interrupt status. */
  isr(): number {
    return this.board.mmio.read(this.#place(CAP_TYPE.isr), 1);
  }

  /** The features on offer. */
  offered(): FeatureSet {
    this.setCommon(COMMON.deviceFeatureSelect, 4, 0);
    const low = this.common(COMMON.deviceFeature, 4);
    this.setCommon(COMMON.deviceFeatureSelect, 4, 1);
    return { low, high: this.common(COMMON.deviceFeature, 4) };
  }

  /**
   * Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK.
   * @returns whether the device agreed
   */
  negotiate(features: FeatureSet = this.offered()): boolean {
    this.status = 0;
    this.status = STATUS.acknowledge;
    this.status = STATUS.acknowledge | STATUS.driver;
    this.features = features;
    this.setCommon(COMMON.driverFeatureSelect, 4, 0);
    this.setCommon(COMMON.driverFeature, 4, features.low);
    this.setCommon(COMMON.driverFeatureSelect, 4, 1);
    this.setCommon(COMMON.driverFeature, 4, features.high);
    this.status = STATUS.acknowledge | STATUS.driver | STATUS.featuresOk;
    return (this.status & STATUS.featuresOk) !== 0;
  }

  /** Makes and enables queue `index`; vector `index + 1` when MSI-X is used. */
  setupQueue(index: number, size?: number): DriverQueue {
    this.setCommon(COMMON.queueSelect, 2, index);
    if (size !== undefined) this.setCommon(COMMON.queueSize, 2, size);
    const entries = this.common(COMMON.queueSize, 2);
    const queue = new DriverQueue(this, index, entries);
    const write64 = (offset: number, value: number) => {
      this.setCommon(offset, 4, value % 2 ** 32);
      this.setCommon(offset + 4, 4, Math.floor(value / 2 ** 32));
    };
    write64(COMMON.queueDesc, queue.desc);
    write64(COMMON.queueDriver, queue.avail);
    write64(COMMON.queueDevice, queue.used);
    this.setCommon(COMMON.queueVector, 2, index + 1);
    this.setCommon(COMMON.queueEnable, 2, 1);
    this.queues[index] = queue;
    return queue;
  }

  /** DRIVER_OK. */
  start(): void {
    this.setCommon(COMMON.configVector, 2, 0);
    this.status = this.status | STATUS.driverOk;
  }

  /** Rings the doorbell of queue `index`. */
  notify(index: number): void {
    this.setCommon(COMMON.queueSelect, 2, index);
    const offset = this.common(COMMON.queueNotifyOff, 2);
    this.board.mmioWrite(this.#place(CAP_TYPE.notify) + 4 * offset, 2, index);
  }

  #place(type: number): number {
    const place = this.#places.get(type);
    assert(place !== undefined, 'probe() comes first');
    return place;
  }
}

/** The driver's side of one split virtqueue. */
export class DriverQueue {
  readonly index: number;
  readonly size: number;
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  readonly #driver: VirtioDriver;
  readonly #memory: GuestMemory;
  readonly #free: number[];
  readonly #chains = new Map<number, readonly number[]>();
  #availIndex = 0;
  #usedIndex = 0;

  constructor(driver: VirtioDriver, index: number, size: number) {
    this.#driver = driver;
    this.#memory = driver.memory;
    this.index = index;
    this.size = size;
    this.desc = driver.allocate(16 * size);
    this.avail = driver.allocate(6 + 2 * size, 2);
    this.used = driver.allocate(6 + 8 * size, 4);
    driver.memory.fill(this.desc, 16 * size, 0);
    driver.memory.fill(this.avail, 6 + 2 * size, 0);
    driver.memory.fill(this.used, 6 + 8 * size, 0);
    this.#free = Array.from({ length: size }, (_, i) => i);
  }

  /** Free descriptors. */
  get free(): number {
    return this.#free.length;
  }

  /** Writes one raw descriptor. */
  writeDesc(table: number, i: number, segment: Segment, flags: number, next: number): void {
    const at = table + 16 * i;
    this.#memory.writeU64(at, segment.address);
    this.#memory.writeU32(at + 8, segment.length);
    this.#memory.writeU16(at + 12, flags | (segment.write === true ? DESC.write : 0));
    this.#memory.writeU16(at + 14, next);
  }

  /** Writes a chain into the descriptor table. @returns its head; -1 when there is no room */
  chain(segments: readonly Segment[]): number {
    if (segments.length > this.#free.length) return -1;
    const used = this.#free.splice(0, segments.length);
    for (let i = 0; i < used.length; i++) {
      const last = i === used.length - 1;
      this.writeDesc(
        this.desc,
        used[i]!,
        segments[i]!,
        last ? 0 : DESC.next,
        last ? 0 : used[i + 1]!,
      );
    }
    this.#chains.set(used[0]!, used);
    return used[0]!;
  }

  /** Writes a chain as one indirect descriptor. */
  indirect(segments: readonly Segment[]): number {
    if (this.#free.length === 0) return -1;
    const table = this.#driver.allocate(16 * segments.length);
    for (let i = 0; i < segments.length; i++) {
      const last = i === segments.length - 1;
      this.writeDesc(table, i, segments[i]!, last ? 0 : DESC.next, last ? 0 : i + 1);
    }
    const head = this.#free.shift()!;
    const whole = { address: table, length: 16 * segments.length };
    this.writeDesc(this.desc, head, whole, DESC.indirect, 0);
    this.#chains.set(head, [head]);
    return head;
  }

  /** Makes `head` available. */
  offer(head: number): void {
    const slot = this.#availIndex & (this.size - 1);
    this.#memory.writeU16(this.avail + 4 + 2 * slot, head);
    this.#availIndex = (this.#availIndex + 1) & 0xffff;
    this.#memory.writeU16(this.avail + 2, this.#availIndex);
  }

  /** A chain, made available. @returns its head; -1 when there is no room */
  add(segments: readonly Segment[]): number {
    const head = this.chain(segments);
    if (head >= 0) this.offer(head);
    return head;
  }

  /** Sets the available index without entries, as a broken driver. */
  forceAvailIndex(index: number): void {
    this.#availIndex = index & 0xffff;
    this.#memory.writeU16(this.avail + 2, this.#availIndex);
  }

  notify(): void {
    this.#driver.notify(this.index);
  }

  /** The next used entry; its descriptors are free again. */
  take(): Used | undefined {
    if (this.#memory.readU16(this.used + 2) === this.#usedIndex) return undefined;
    const at = this.used + 4 + 8 * (this.#usedIndex & (this.size - 1));
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    const head = this.#memory.readU32(at);
    const written = this.#memory.readU32(at + 4);
    this.#free.push(...(this.#chains.get(head) ?? []));
    this.#chains.delete(head);
    return { head, written };
  }

  /** All used entries. */
  takeAll(): Used[] {
    const all: Used[] = [];
    for (let used = this.take(); used !== undefined; used = this.take()) all.push(used);
    return all;
  }

  /** Whether the device asked for no notification (without EVENT_IDX). */
  get notifySuppressed(): boolean {
    return (this.#memory.readU16(this.used) & 1) !== 0;
  }

  /** The device's event: it wants a notification when this index is made available. */
  get availEvent(): number {
    return this.#memory.readU16(this.used + 4 + 8 * this.size);
  }

  get availIndex(): number {
    return this.#availIndex;
  }

  get usedIndex(): number {
    return this.#usedIndex;
  }

  /** Asks for no interrupts (without EVENT_IDX). */
  suppressInterrupts(off: boolean): void {
    this.#memory.writeU16(this.avail, off ? 1 : 0);
  }

  /** Asks for an interrupt when used index `index` is passed (EVENT_IDX). */
  setUsedEvent(index: number): void {
    this.#memory.writeU16(this.avail + 4 + 2 * this.size, index & 0xffff);
  }
}
