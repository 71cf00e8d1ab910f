/**
 * A seeded fuzzer of the e1000: a guest without manners writes registers where the device listens, fills rings with
 * sound, damaged and random descriptors, and the outside sends frames, fills up and unplugs. What must hold: nothing
 * is thrown, no turn does more than its bound, every entry sent is well formed, and state can be taken and put back
 * at any time. The unit test runs some thousand operations; `fuzzE1000(seed, operations)` runs as many as asked for.
 */

import { isDeepStrictEqual } from 'node:util';
import { E1000 } from '../../devices/e1000/e1000.ts';
import type { E1000State } from '../../devices/e1000/state.ts';
import { assert } from '../../src/base/assert.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Prng } from '../../src/base/prng.ts';
import { MAX_ENTRY_BYTES, VNET_HEADER_BYTES } from '../../src/net/backend.ts';
import {
  driverMemory,
  E1000Driver,
  LAYOUT,
  E1000_REG as R,
  ScriptedNet,
} from '../support/e1000-driver.ts';

/** What a run saw. */
export interface E1000FuzzReport {
  readonly sent: number;
  readonly received: number;
  readonly interrupts: number;
}

const REGISTERS = Object.values(R);
const SIZES = [0, 1, 13, 14, 60, 66, 255, 1500, 2048, 16288, 16289, 65535, 0xfffff];

class Run {
  readonly random: Prng;
  readonly memory = driverMemory();
  readonly net: ScriptedNet;
  readonly clock = new ManualClock();
  interrupts = 0;
  received = 0;
  sent = 0;
  chip: E1000;
  driver: E1000Driver;

  readonly #forgets: string | undefined;

  constructor(seed: number, forgets: string | undefined) {
    this.random = new Prng(seed);
    this.#forgets = forgets;
    this.net = new ScriptedNet(this.random.pick([0, 1, 7]));
    this.chip = this.#build();
    this.driver = new E1000Driver(this.memory, this.chip.mmio);
    this.chip.resume();
    this.driver.start(64, 64, 0x0400801a);
  }

  #build(): E1000 {
    const { memory, net: backend, clock } = this;
    let level = false;
    const irq = {
      set: (high: boolean) => {
        if (high && !level) this.interrupts++;
        level = high;
      },
    };
    const mac = Uint8Array.of(0x52, 0x54, 0, 1, 2, 3);
    return new E1000({ id: 'fuzzed', mac, memory, backend, clock, irq, log: silentLog });
  }

  /** An address: mostly of a buffer, sometimes nonsense. */
  #address(): number {
    const { random } = this;
    if (random.chance(0.8)) return LAYOUT.txBuffers + random.below(0x100000);
    if (random.chance(0.5)) return random.below(LAYOUT.bytes + 100);
    return random.u32() * 2 ** random.below(32);
  }

  #descriptors(): void {
    const { random, memory } = this;
    const ring = random.chance(0.7) ? LAYOUT.txRing : LAYOUT.rxRing;
    for (let n = random.below(20); n >= 0; n--) {
      const at = ring + 16 * random.below(70);
      const address = this.#address();
      memory.writeU32(at, address % 2 ** 32);
      memory.writeU32(at + 4, Math.min(Math.floor(address / 2 ** 32), 0xffffffff));
      if (random.chance(0.3)) {
        // A context whose offsets are near something sensible.
        memory.writeU32(at, random.pick([0x00210e0e, 0x0021180e, random.u32()]));
        memory.writeU32(at + 4, random.pick([0x00003222, 0x00002822, random.u32()]));
        memory.writeU32(at + 8, (0x24000000 | (random.u32() & 0x0b0fffff)) >>> 0);
        const mss = random.pick([0, 1, 7, 100, 1448, 0xffff]);
        memory.writeU32(at + 12, ((mss << 16) | (random.pick([0, 54, 66, 255]) << 8)) >>> 0);
        continue;
      }
      const command = random.pick([
        0x0b,
        0x01,
        0x2b,
        0x6b,
        0x2f,
        0x25,
        0x24,
        0x20,
        random.below(256),
      ]);
      const type = random.chance(0.9) ? 0x00100000 : random.u32() & 0x00f00000;
      const length = random.pick(SIZES) & (command & 0x20 ? 0xfffff : 0xffff);
      const d2 = (command << 24) | (command & 0x20 ? type : random.u32() & 0xff0000) | length;
      memory.writeU32(at + 8, d2 >>> 0);
      memory.writeU32(at + 12, random.chance(0.5) ? 0x300 : random.u32());
    }
  }

  #registers(): void {
    const { random, chip, driver } = this;
    const register = random.chance(0.9) ? random.pick(REGISTERS) : random.below(0x20000);
    const size = random.chance(0.9) ? 4 : random.pick([1, 2] as const);
    if (random.chance(0.4)) {
      const value = chip.mmio.read(register, size);
      assert(Number.isInteger(value), 'a register holds an integer');
      return;
    }
    const value = random.pick([0, 0x40, 0xffffffff, random.below(100), random.u32()]);
    if (random.chance(0.1)) {
      chip.io.write(0, 4, register);
      chip.io.write(4, 4, value);
    } else chip.mmio.write(register, size, value);
    if (random.chance(0.2)) driver.start(64, 64, 0x0400801a | (random.u32() & 0x023b3320));
  }

  #frame(): void {
    const { random, net } = this;
    const header = new Uint8Array(VNET_HEADER_BYTES);
    if (random.chance(0.2)) random.fill(header);
    const frame = new Uint8Array(random.pick([0, 5, 14, 42, 60, 300, 1514, 1518, 9000, 65554]));
    random.fill(frame.subarray(0, 80));
    if (frame.length > 20 && random.chance(0.7))
      frame.set([0x81, 0, 0, 5, 8, 0, 0x45].slice(random.pick([0, 4])), 12);
    net.inject(frame, header);
    net.pump();
    net.queue.splice(100);
  }

  #replace(): void {
    this.chip.pause();
    const state = this.chip.save();
    this.chip = this.#build();
    const field = this.#forgets as keyof E1000State | undefined;
    const spoilt = field === undefined ? state : { ...state, [field]: this.chip.save()[field] };
    this.chip.load(spoilt);
    assert(isDeepStrictEqual(this.chip.save(), state), 'a loaded state is the saved one');
    this.driver = new E1000Driver(this.memory, this.chip.mmio);
    this.driver.txCount = 64;
    this.driver.rxCount = 64;
    this.chip.resume();
  }

  #check(): void {
    for (const entry of this.net.sent) {
      const length = entry.length - VNET_HEADER_BYTES;
      assert(length >= 14 && entry.length <= MAX_ENTRY_BYTES, `sent entry of ${entry.length}`);
      const view = new DataView(entry.buffer);
      if (entry[0] === 0) continue;
      const end = view.getUint16(6, true) + view.getUint16(8, true) + 2;
      assert(end <= length, `checksum at ${end} of ${length}`);
      if (entry[1] !== 0) assert(view.getUint16(4, true) > 0, 'a segment size');
    }
    // A step may advance time over many turns, and one packet to be cut holds up to 2^20 bytes (8254x SDM, 3.3.7).
    assert(this.net.sent.length <= 2 ** 20, `${this.net.sent.length} frames in a step`);
    this.sent += this.net.sent.length;
    this.net.sent.length = 0;
  }

  step(): void {
    const { random, driver, net, clock } = this;
    switch (random.below(12)) {
      case 0:
      case 1:
      case 2:
        this.#descriptors();
        break;
      case 3:
      case 4:
        driver.set(R.TDT, random.below(66));
        if (random.chance(0.2)) {
          driver.get(R.ICR);
          driver.set(R.IMS, 0xffff);
        }
        break;
      case 5:
        driver.set(R.RDT, random.below(66));
        break;
      case 6:
        this.#registers();
        break;
      case 7:
        this.#frame();
        break;
      case 8:
        clock.advance(random.below(3) * 100_000);
        break;
      case 9:
        if (random.chance(0.5)) net.credit = random.below(40);
        else net.grant(random.below(300));
        break;
      case 10:
        if (random.chance(0.05)) net.setLink(random.chance(0.7));
        driver.phyWrite(
          random.below(32),
          random.pick([0x1140, 0x9140, 0x4140, random.below(65536)]),
        );
        break;
      default:
        if (random.chance(0.2)) this.#replace();
        else if (driver.poll() !== undefined) this.received++;
    }
    this.#check();
  }
}

/**
 * Runs `operations` from `seed`; throws on the first thing that must not happen.
 * @param forgets a field of the saved state that a fresh device does not get: a mistake made on purpose
 */
export function fuzzE1000(seed: number, operations: number, forgets?: string): E1000FuzzReport {
  const run = new Run(seed, forgets);
  for (let i = 0; i < operations; i++) {
    try {
      run.step();
    } catch (error) {
      throw new Error(`e1000 fuzz seed ${seed} operation ${i}`, { cause: error });
    }
  }
  return { sent: run.sent, received: run.received, interrupts: run.interrupts };
}
