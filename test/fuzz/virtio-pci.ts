/**
 * The fuzzer of the virtio transport on PCI, under a device that does nothing but hold chains and give them back: the
 * common structure in all widths, negotiation in any order, the access window in configuration space, vectors, BARs
 * that move while doorbells are placed, resets that wait for the device. See twins.ts for what must hold; besides,
 * doorbells lie where the queues are. What real devices do with their rings is the matter of virtio.ts.
 */
import { assert } from '../../src/base/assert.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Prng } from '../../src/base/prng.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize } from '../../src/bus/io-bus.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import { fixedBytes, struct } from '../../src/snapshot/codec.ts';
import { Chain } from '../../src/virtio/chain.ts';
import type { VirtioDevice, VirtioTransport } from '../../src/virtio/device.ts';
import { VirtioPciFunction } from '../../src/virtio/pci-function.ts';
import { CAP_TYPE, COMMON, featureSet, STATUS } from '../../src/virtio/spec.ts';
import { PciTestBoard } from '../support/pci-board.ts';
import type { Coverage } from './coverage.ts';
import { type Act, anyValue, readOf, type Twin, type TwinSubject } from './twins.ts';

const SLOT = 6;
const QUEUES = 2;
const QUEUE_SIZE = 8;
const CONFIG_BYTES = 6;
const MEMORY_BYTES = 0x2000;
/** Rings of queue `i`: descriptors, available, used. */
const rings = (i: number) => ({
  desc: 0x400 * i,
  avail: 0x400 * i + 0x100,
  used: 0x400 * i + 0x200,
});
const BUFFER = 0x1000;
const BAR0_PLACES = [0xe000_0000, 0xe000_4000, 0xfebf_0000, 0];
const BAR1_PLACES = [0xe001_0000, 0xe001_1000, 0];
/** Pages of BAR 0. */
const PAGE = { common: 0, isr: 0x1000, device: 0x2000, notify: 0x3000 } as const;

/** The outside of the device under the transport: it survives when that is replaced. */
interface Outside {
  /** Chains are kept, not given back. */
  hold: boolean;
  /** A reset has to wait. */
  slow: boolean;
}

interface StubState {
  config: Uint8Array;
}

/** A device that takes chains and gives them back at once, or when it is told to. */
class Stub implements VirtioDevice<StubState> {
  readonly id = 'stub';
  readonly kind = 'fuzzed-virtio';
  readonly version = 1;
  readonly codec = struct<StubState>({ config: fixedBytes(CONFIG_BYTES) });
  readonly type = 0x20;
  readonly classCode = 0xff0000;
  readonly queueSizes = new Array<number>(QUEUES).fill(QUEUE_SIZE);
  readonly features = featureSet(0, 5, 40);
  readonly config = new Uint8Array(CONFIG_BYTES);
  readonly #outside: Outside;
  readonly #chain = new Chain();
  readonly #held: number[][] = Array.from({ length: QUEUES }, () => []);
  #transport!: VirtioTransport;

  constructor(outside: Outside) {
    this.#outside = outside;
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }
  accepts({ low }: { low: number }): boolean {
    return (low & 0x21) !== 0x20;
  }
  configWrite(offset: number, size: AccessSize, value: number): void {
    assert(offset + size <= CONFIG_BYTES, 'inside the configuration');
    for (let i = 0; i < size; i++) this.config[offset + i] = value >>> (8 * i);
  }
  start(): void {
    assert(this.#transport.features.high % 2 === 1, 'VERSION_1 was agreed on');
  }
  notify(index: number): void {
    assert(this.#transport.running, 'only while running');
    const queue = this.#transport.queues[index]!;
    const held = this.#held[index]!;
    while (queue.pop(this.#chain)) held.push(this.#chain.head);
    if (!this.#outside.hold) this.finish(index);
    queue.enableNotify();
  }
  /** Gives back what is held. */
  finish(index: number): void {
    if (!this.#transport.running) return;
    for (const head of this.#held[index]!.splice(0)) this.#transport.queues[index]!.push(head, 0);
    this.#transport.publish(index);
  }
  change(): void {
    this.#transport.configChanged();
  }
  stop(): boolean {
    for (const held of this.#held) held.length = 0;
    return !this.#outside.slow;
  }
  /** The reset that waited may end. */
  stopped(): void {
    this.#transport.stopped();
  }
  reset(): void {
    for (const held of this.#held) held.length = 0;
    this.config.fill(0);
  }
  pause(): void {}
  resume(): void {}
  save(): StubState {
    return { config: this.config.slice() };
  }
  check(): void {}
  load({ config }: StubState): void {
    this.config.set(config);
  }
}

class VirtioPciTwin implements Twin {
  readonly clock = new ManualClock();
  readonly memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(MEMORY_BYTES) }]);
  readonly outside: Outside = { hold: false, slow: false };
  board = new PciTestBoard();
  stub!: Stub;
  fn!: VirtioPciFunction<StubState>;
  /** Offset of the access window's capability. */
  window = 0;

  constructor() {
    this.rebuild();
    for (let at = this.board.read(SLOT, 0x34, 1); at !== 0; at = this.board.read(SLOT, at + 1, 1)) {
      const isVendor = this.board.read(SLOT, at, 1) === 9;
      if (isVendor && this.board.read(SLOT, at + 3, 1) === CAP_TYPE.pciAccess) this.window = at;
    }
    assert(this.window !== 0, 'there is a window');
  }

  get devices(): readonly Device[] {
    return [this.board.bus, this.fn];
  }

  get common(): number | undefined {
    return this.fn.pci.bars[0]!.base;
  }

  rebuild(): void {
    this.fn?.pci.msix?.reset();
    this.board = new PciTestBoard(this.board.msi, this.board.irqs);
    this.stub = new Stub(this.outside);
    this.fn = new VirtioPciFunction({
      device: this.stub,
      memory: this.memory,
      clock: this.clock,
      log: silentLog,
      doorbells: this.board.doorbells,
    });
    this.board.bus.add(this.fn.pci, { slot: SLOT });
  }

  observe(): unknown {
    const { msi, irqs } = this.board;
    return {
      messages: msi.take(),
      levels: irqs.map(({ level }) => level),
      edges: irqs.map(({ edges }) => edges.splice(0)),
      doorbells: [...this.board.doorbells.byAddress.keys()].sort(),
      memory: Buffer.from(this.memory.ranges[0]!.bytes).toString('latin1'),
    };
  }

  check(): void {
    const base = this.common;
    for (const address of this.board.doorbells.byAddress.keys()) {
      const queue = (address - (base ?? 0) - PAGE.notify) / 4;
      assert(this.fn.queues[queue]?.enabled === true, `doorbell at ${address} of no queue`);
    }
    assert(this.board.msi.live <= QUEUES + 1, 'vectors are given back');
  }
}

function read(page: number, offset: number, size: AccessSize): Act<VirtioPciTwin> {
  return ({ board, common }) =>
    common === undefined ? undefined : readOf(board.mmio, common + page + offset, size);
}

function write(page: number, offset: number, size: AccessSize, value: number): Act<VirtioPciTwin> {
  return (twin) => {
    if (twin.common !== undefined) twin.board.mmioWrite(twin.common + page + offset, size, value);
  };
}

const anySize = (random: Prng): AccessSize => random.pick<AccessSize>([1, 2, 2, 4, 4]);

/** A driver that knows what it does, as far as `steps` go. */
function driver(random: Prng): Act<VirtioPciTwin> {
  const msix = random.chance(0.6);
  const low = random.pick([0, 0x3000_0000, 0x2000_0000, 0x21, 0x20]);
  const steps = random.chance(0.7) ? 99 : random.below(10);
  const bar = random.pick(BAR0_PLACES.slice(0, 3));
  return (twin) => {
    const { board, memory } = twin;
    const set = (offset: number, size: AccessSize, value: number): void => {
      if (twin.common !== undefined) board.mmio.write(twin.common + offset, size, value);
    };
    board.write(SLOT, 0x10, bar);
    board.write(SLOT, 0x14, BAR1_PLACES[0]!);
    board.write(SLOT, 0x04, 0x0006, 2);
    for (let i = 0; i <= QUEUES && msix; i++) {
      const at = BAR1_PLACES[0]! + 16 * i;
      board.mmio.write(at, 4, 0xfee0_0000);
      board.mmio.write(at + 8, 4, 0x40 + i);
      board.mmio.write(at + 12, 4, 0);
    }
    const capability = twin.fn.pci.msix === undefined ? 0 : twin.window + 20;
    if (board.read(SLOT, capability, 1) === 0x11) {
      board.write(SLOT, capability + 2, msix ? 0x8000 : 0, 2);
    }
    let step = 0;
    const next = (...args: [number, AccessSize, number]): void => {
      if (step++ < steps) set(...args);
    };
    next(COMMON.status, 1, 0);
    next(COMMON.status, 1, STATUS.acknowledge | STATUS.driver);
    next(COMMON.driverFeatureSelect, 4, 0);
    next(COMMON.driverFeature, 4, low);
    next(COMMON.driverFeatureSelect, 4, 1);
    next(COMMON.driverFeature, 4, 1);
    next(COMMON.status, 1, STATUS.acknowledge | STATUS.driver | STATUS.featuresOk);
    memory.fill(0, BUFFER, 0);
    for (let i = 0; i < QUEUES; i++) {
      const { desc, avail, used } = rings(i);
      next(COMMON.queueSelect, 2, i);
      next(COMMON.queueDesc, 4, desc);
      next(COMMON.queueDriver, 4, avail);
      next(COMMON.queueDevice, 4, used);
      next(COMMON.queueVector, 2, i + 1);
      next(COMMON.queueEnable, 2, 1);
    }
    next(COMMON.configVector, 2, 0);
    next(COMMON.status, 1, 15);
  };
}

/** Makes a chain available, mostly a sound one, and mostly tells. */
function offer(random: Prng): Act<VirtioPciTwin> {
  const index = random.below(QUEUES);
  const { desc, avail } = rings(index);
  const sound = random.chance(0.97);
  const tells = random.chance(0.8);
  const flags = random.pick([0, 2]);
  const step = sound ? 1 : random.below(40);
  const width = anySize(random);
  return (twin) => {
    const { memory } = twin;
    // Chains that the device holds are walked again after a restore: a driver must leave them alone (2.7.13).
    if (!sound && twin.fn.queues[index]!.inUse > 0) return;
    const at = memory.readU16(avail + 2);
    const head = sound ? at % QUEUE_SIZE : index * 5;
    memory.writeU32(desc + 16 * head, sound ? BUFFER : 0xffff_ff00);
    memory.writeU32(desc + 16 * head + 4, 0);
    memory.writeU32(desc + 16 * head + 8, 64);
    memory.writeU32(desc + 16 * head + 12, flags);
    memory.writeU16(avail + 4 + 2 * (at % QUEUE_SIZE), head);
    memory.writeU16(avail + 2, (at + step) & 0xffff);
    if (tells) write(PAGE.notify, 4 * index, width, index)(twin);
  };
}

/** An access through the window in configuration space (VIRTIO 1.2, 4.1.4.9), also a senseless one. */
function throughWindow(random: Prng, seen: Coverage): Act<VirtioPciTwin> {
  const bar = random.pick([0, 0, 0, 0, 1, 255]);
  const length = random.chance(0.9) ? random.pick([1, 2, 4]) : random.pick([0, 3, 8]);
  const page = random.pick(Object.values(PAGE));
  const within = random.below(0x40);
  const offset = random.chance(0.9) ? page + within - (within % Math.max(length, 1)) : random.u32();
  const value = random.chance(0.5) ? anyValue(random) : undefined;
  const size = anySize(random);
  const lane = random.below(4);
  return ({ board, window }) => {
    board.write(SLOT, window + 4, bar, 1);
    board.write(SLOT, window + 8, offset);
    board.write(SLOT, window + 12, length);
    if (value !== undefined) {
      seen.hit('written through the window');
      board.write(SLOT, window + 16, value);
      return undefined;
    }
    const data = board.read(SLOT, window + 16 + (lane % (5 - size)), size);
    if (data !== 0) seen.hit('read through the window');
    return data;
  };
}

function outside(random: Prng, seen: Coverage): Act<VirtioPciTwin> {
  const index = random.below(QUEUES);
  switch (random.below(5)) {
    case 0: {
      const hold = random.chance(0.5);
      return (twin) => {
        twin.outside.hold = hold;
      };
    }
    case 1:
      return ({ stub }) => stub.finish(index);
    case 2: {
      const slow = random.chance(0.3);
      return (twin) => {
        twin.outside.slow = slow;
        if (!slow) twin.stub.stopped();
      };
    }
    case 3:
      return ({ fn }) => fn.kick();
    default:
      return ({ stub, board }) => {
        stub.change();
        if (board.msi.messages.length > 0) seen.hit('message');
      };
  }
}

export const virtioPci: TwinSubject<VirtioPciTwin> = {
  build: () => new VirtioPciTwin(),
  draw(random, _twin, seen) {
    switch (random.below(16)) {
      case 0:
        return random.chance(0.4) ? driver(random) : () => undefined;
      case 1:
      case 2:
      case 3:
        return offer(random);
      case 4:
        return throughWindow(random, seen);
      case 5:
      case 6:
        return outside(random, seen);
      case 7: {
        const offset = random.pick([COMMON.status, COMMON.status, random.below(COMMON.bytes + 8)]);
        const value = random.chance(0.7)
          ? random.pick([0, 1, 3, 7, 11, 15, 0x80])
          : anyValue(random);
        if (offset === COMMON.status && random.chance(0.5)) return () => undefined;
        return write(PAGE.common, offset, offset === COMMON.status ? 1 : anySize(random), value);
      }
      case 8:
      case 9: {
        const offset = random.below(COMMON.bytes + 8);
        const size = anySize(random);
        return (twin) => {
          const value = read(PAGE.common, offset, size)(twin);
          if (value !== undefined) seen.hit(`common ${offset}/${size}`);
          return value;
        };
      }
      case 10:
        return random.chance(0.5)
          ? read(PAGE.isr, random.below(8), anySize(random))
          : read(PAGE.device, random.below(CONFIG_BYTES + 4), anySize(random));
      case 11:
        return write(PAGE.device, random.below(CONFIG_BYTES + 4), anySize(random), random.u32());
      case 12:
        return write(PAGE.notify, random.below(12), anySize(random), anyValue(random));
      case 13: {
        const register = random.pick([0x10, 0x14]);
        const place = random.pick(register === 0x10 ? BAR0_PLACES : BAR1_PLACES);
        if (random.chance(0.5)) {
          const command = random.pick([0, 2, 4, 6, 6, 6, 0x406]);
          return ({ board }) => board.write(SLOT, 4, command, 2);
        }
        return ({ board }) => board.write(SLOT, register, place);
      }
      case 14: {
        const at = random.below(16 * (QUEUES + 2));
        const size = anySize(random);
        const value = at % 16 >= 12 ? random.below(2) : anyValue(random);
        return ({ fn, board }) => {
          const base = fn.pci.bars[1]!.base;
          if (base !== undefined) board.mmio.write(base + at, size, value);
        };
      }
      default: {
        const offset = random.below(256);
        const size = anySize(random);
        const value = anyValue(random);
        if (random.chance(0.8)) return ({ board }) => board.read(SLOT, offset, size);
        return ({ board }) => board.write(SLOT, offset, value, size);
      }
    }
  },
  cover(twin, seen) {
    const { fn, board } = twin;
    if (fn.running) seen.hit('running');
    if (board.doorbells.byAddress.size > 0) seen.hit('doorbells');
    if (board.irqs.some(({ level }) => level)) seen.hit('INTx');
    if (fn.queues.some(({ inUse }) => inUse > 0)) seen.hit('chains held');
    if (twin.common === undefined) return;
    const status = board.mmio.read(twin.common + COMMON.status, 1);
    seen.hit(`status ${status.toString(16)}`);
    if (twin.outside.slow && status !== 0 && !fn.running) seen.hit('not running');
  },
};
