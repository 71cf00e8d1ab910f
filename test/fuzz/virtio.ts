/**
 * A seeded fuzzer of the virtio devices on PCI: a guest without manners configures the function, negotiates, damages
 * rings and device registers, while disks and networks behind it complete, fail, fill up and unplug. What must hold:
 * nothing is thrown, state can be taken and put back at any time, and a driver that behaves is served again after a
 * reset. The unit tests run some thousand operations; `fuzzVirtio(kind, seed, operations)` as many as asked for.
 */

import { VirtioBlk } from '../../devices/virtio-blk/virtio-blk.ts';
import { VirtioNet } from '../../devices/virtio-net/virtio-net.ts';
import { VirtioRng } from '../../devices/virtio-rng/virtio-rng.ts';
import { assert } from '../../src/base/assert.ts';
import { alignDown } from '../../src/base/bits.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Prng } from '../../src/base/prng.ts';
import { ERRNO } from '../../src/block/backend.ts';
import { MemoryDisk } from '../../src/block/memory.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize } from '../../src/bus/io-bus.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import type { VirtioDevice } from '../../src/virtio/device.ts';
import { VirtioPciFunction } from '../../src/virtio/pci-function.ts';
import { COMMON, DESC, STATUS } from '../../src/virtio/spec.ts';
import { PciTestBoard } from '../support/pci-board.ts';
import { TestNet } from '../support/test-net.ts';
import { TEST_BAR0, TEST_BAR1, VirtioDriver } from '../support/virtio-driver.ts';

/** The devices that {@link fuzzVirtio} knows. */
export type FuzzedVirtio = 'blk' | 'net' | 'rng';

/** What a run saw. */
export interface VirtioFuzzReport {
  /** Chains that came back. */
  readonly used: number;
  readonly interrupts: number;
  /** How often the device asked for a reset. */
  readonly resets: number;
  readonly restores: number;
}

const SLOT = 6;
const MEMORY_BYTES = 0x10_0000;
/** Rings below, buffers from here on. */
const BUFFERS = 0x8_0000;
const MAC = Uint8Array.of(0x52, 0x54, 0, 1, 2, 3);

class Run {
  readonly random: Prng;
  readonly memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(MEMORY_BYTES) }]);
  readonly clock = new ManualClock();
  readonly net = new TestNet({ sendOffloads: 15, receiveOffloads: 15, mtu: 1500 });
  readonly #kind: FuzzedVirtio;
  readonly #driver: VirtioDriver;
  #board = new PciTestBoard();
  #disk: MemoryDisk | undefined;
  #function: Device & { kick(): void };
  used = 0;
  resets = 0;
  restores = 0;
  interrupts = 0;

  readonly #forgets: string | undefined;

  constructor(kind: FuzzedVirtio, seed: number, forgets: string | undefined) {
    this.random = new Prng(seed);
    this.#kind = kind;
    this.#forgets = forgets;
    this.#driver = new VirtioDriver(this.#board, this.memory, SLOT);
    this.#function = this.#build();
    this.#function.resume();
    this.#begin();
  }

  #build(): Device & { kick(): void } {
    this.#board = new PciTestBoard(this.#board.msi, this.#board.irqs);
    this.#driver.board = this.#board;
    const { memory, clock } = this;
    switch (this.#kind) {
      case 'blk': {
        this.#disk = new MemoryDisk(memory, {
          sizeBytes: 0x1_0000,
          delivery: 'poll',
          maxRequests: 8,
        });
        const backend = this.#disk;
        return this.#place(new VirtioBlk({ id: 'blk', memory, backend, clock, queueSize: 32 }));
      }
      case 'net': {
        const { net } = this;
        return this.#place(
          new VirtioNet({ id: 'net', memory, backend: net, clock, mac: MAC, queueSize: 32 }),
        );
      }
      default: {
        const entropy = (bytes: Uint8Array, start: number, end: number) =>
          this.random.fill(bytes.subarray(start, end));
        return this.#place(new VirtioRng({ id: 'rng', memory, clock, entropy }));
      }
    }
  }

  #place<S>(device: VirtioDevice<S>): VirtioPciFunction<S> {
    const { memory, clock } = this;
    const { doorbells } = this.#board;
    const fn = new VirtioPciFunction({ device, memory, clock, log: silentLog, doorbells });
    this.#board.bus.add(fn.pci, { slot: SLOT });
    return fn;
  }

  /** A driver that behaves: after it the device must serve. */
  #begin(): void {
    const driver = this.#driver;
    driver.board.write(SLOT, 0x04, 0, 2);
    driver.probe();
    driver.status = 0;
    // A reset ends when the disk has let go of what is under way.
    if (this.#disk !== undefined) this.#disk.held = false;
    while (driver.status !== 0) this.#pollDisk();
    driver.rewind();
    this.memory.fill(0, BUFFERS, 0);
    const queues = driver.common(COMMON.numQueues, 2);
    if (this.random.chance(0.8)) driver.enableMsix(queues + 1);
    const offered = driver.offered();
    const plain = this.random.chance(0.5) ? offered : { low: 0, high: offered.high };
    assert(driver.negotiate(plain), 'a reasonable driver is accepted');
    for (let i = 0; i < queues; i++) driver.setupQueue(i);
    driver.start();
    assert((driver.status & STATUS.driverOk) !== 0, 'a reasonable driver gets started');
  }

  #pollDisk(): void {
    while ((this.#disk?.poll() ?? 0) > 0);
  }

  #address(): number {
    const { random } = this;
    if (random.chance(0.9)) return BUFFERS + random.below(MEMORY_BYTES - BUFFERS - 0x1_0000);
    return random.pick([random.below(MEMORY_BYTES), random.u32(), random.u32() * 2 ** 20]);
  }

  #chain(): void {
    const { random, memory } = this;
    const queue = random.pick(this.#driver.queues);
    if (queue.free < 6) this.#collect();
    const count = random.between(1, 5);
    const readable = random.below(count + 1);
    const header = alignDown(this.#address(), 16);
    if (header + 16 <= MEMORY_BYTES && random.chance(0.8)) this.#header(header);
    const segments = Array.from({ length: count }, (_, i) => ({
      address: i === 0 && memory.contains(header, 16) ? header : this.#address(),
      length: random.pick([0, 1, 2, 12, 16, 16, 60, 512, 512, 1024, 4096, random.below(0x1_0000)]),
      write: i >= readable,
    }));
    const indirect = random.chance(0.2);
    const head = indirect ? queue.indirect(segments) : queue.chain(segments);
    if (head >= 0) queue.offer(head);
    if (random.chance(0.7)) queue.notify();
  }

  /** Something like a block request, a control command or a frame header. */
  #header(at: number): void {
    const { random, memory } = this;
    const words =
      this.#kind === 'blk'
        ? [random.pick([0, 1, 1, 4, 8, 11, 13, random.u32()]), 0, random.below(140), 0]
        : [random.pick([0, random.u32() & 0x0505, random.u32()]), random.u32(), random.u32(), 0];
    for (const [i, word] of words.entries()) memory.writeU32(at + 4 * i, word);
  }

  #damage(): void {
    const { random, memory } = this;
    const queue = random.pick(this.#driver.queues);
    const at = random.pick([
      queue.desc + random.below(16 * queue.size),
      queue.avail + random.below(6 + 2 * queue.size),
      queue.used + random.below(6 + 8 * queue.size),
    ]);
    memory.writeU8(at, random.below(256));
    if (random.chance(0.2))
      queue.writeDesc(
        queue.desc,
        random.below(queue.size),
        {
          address: this.#address(),
          length: random.u32(),
        },
        random.pick([0, DESC.next, DESC.indirect, DESC.write]),
        random.below(queue.size + 1),
      );
    if (random.chance(0.1)) queue.forceAvailIndex(random.u32());
  }

  #registers(): void {
    const { random } = this;
    const board = this.#board;
    const size = random.pick<AccessSize>([1, 2, 4, 4]);
    const value = random.pick([0, 1, 0xff, 0xffff_ffff, random.below(64), random.u32()]);
    const page = 0x1000 * random.below(4);
    switch (random.below(5)) {
      case 0:
        board.mmio.write(TEST_BAR0 + page + random.below(0x60), size, value);
        break;
      case 1:
        board.mmio.read(TEST_BAR0 + page + random.below(0x60), size);
        break;
      case 2:
        board.mmio.write(TEST_BAR1 + random.below(0x1000), size, value);
        break;
      case 3:
        board.write(SLOT, random.below(256), value, 1);
        break;
      default:
        board.read(SLOT, random.below(256), 1);
    }
  }

  #outside(): void {
    const { random, net, clock } = this;
    const disk = this.#disk;
    if (disk !== undefined) {
      disk.fault = random.chance(0.1)
        ? () => random.pick([ERRNO.EIO, ERRNO.ENOSPC, 999])
        : undefined;
      disk.held = random.chance(0.2);
      disk.poll();
    }
    if (this.#kind === 'net') {
      const frame = new Uint8Array(random.pick([0, 13, 14, 60, 1514, 9000, 65_000]));
      random.fill(frame.subarray(0, 20));
      const header = new Uint8Array(12);
      if (random.chance(0.3)) random.fill(header);
      if (net.incoming.length < 20) net.arrive(frame, header);
      if (random.chance(0.05)) net.setLink(random.chance(0.7));
      net.becomeWritable(random.pick([0, 1, 5, 1000]));
      net.pump();
      net.sent.length = 0;
    }
    clock.advance(random.below(3) * 1e6);
  }

  /** Takes back what the device is done with; a device that asks for a reset gets one. */
  #collect(): void {
    for (const queue of this.#driver.queues) {
      for (let i = 0; i < queue.size && queue.take() !== undefined; i++) this.used++;
    }
    const status = this.#driver.status;
    const lost = (status & STATUS.driverOk) === 0;
    const wanted = (status & STATUS.needsReset) !== 0;
    if (wanted) this.resets++;
    if (lost || wanted || this.#driver.queues.some((queue) => queue.free < 6)) this.#begin();
  }

  #replace(): void {
    this.#function.pause();
    const payload = this.#function.schema.encode(this.#function.save() as never);
    const content = this.#disk?.content;
    const fresh = this.#build();
    if (content !== undefined) this.#disk?.content.set(content);
    const state = fresh.schema.decode(payload) as Record<string, unknown>;
    const field = this.#forgets;
    if (field !== undefined) state[field] = (fresh.save() as Record<string, unknown>)[field];
    fresh.load(state as never);
    const again = fresh.schema.encode(fresh.save() as never);
    assert(Buffer.compare(again, payload) === 0, 'a loaded state is the saved one');
    this.#function = fresh;
    this.restores++;
    fresh.resume();
  }

  step(): void {
    const { random } = this;
    switch (random.below(10)) {
      case 0:
      case 1:
      case 2:
      case 3:
        this.#chain();
        break;
      case 4:
        if (random.chance(0.3)) this.#damage();
        break;
      case 5:
        if (random.chance(0.5)) this.#registers();
        break;
      case 6:
      case 7:
        this.#outside();
        break;
      case 8:
        this.#collect();
        break;
      default:
        if (random.chance(0.3)) this.#replace();
        else if (random.chance(0.1)) this.#function.reset();
        else this.#function.kick();
    }
    this.interrupts += this.#board.msi.take().length;
  }
}

/**
 * Runs `operations` from `seed`; throws on the first thing that must not happen.
 * @param forgets a field of the saved state that a fresh device does not get: a mistake made on purpose
 */
export function fuzzVirtio(
  kind: FuzzedVirtio,
  seed: number,
  operations: number,
  forgets?: string,
): VirtioFuzzReport {
  const run = new Run(kind, seed, forgets);
  for (let i = 0; i < operations; i++) {
    try {
      run.step();
    } catch (error) {
      throw new Error(`virtio-${kind} fuzz seed ${seed} operation ${i}`, { cause: error });
    }
  }
  const { used, interrupts, resets, restores } = run;
  return { used, interrupts, resets, restores };
}
