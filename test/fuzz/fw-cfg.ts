/**
 * The fuzzer of the firmware configuration device: selectors, the data port and, above all, DMA descriptors that lie
 * across the edges of memory, describe themselves, or ask for more than there is. See twins.ts for what must hold;
 * here guest memory belongs to what a guest sees.
 */
import { FwCfgContent } from '../../devices/fw-cfg/content.ts';
import { FwCfg } from '../../devices/fw-cfg/fw-cfg.ts';
import { DMA, FW_CFG_PORTS, KEY, OFFSET } from '../../devices/fw-cfg/spec.ts';
import { AssertionError, assert } from '../../src/base/assert.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Prng } from '../../src/base/prng.ts';
import type { Device } from '../../src/bus/device.ts';
import { IoBus } from '../../src/bus/io-bus.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import type { Coverage } from './coverage.ts';
import { type Act, anyAccess, readOf, type Twin, type TwinSubject } from './twins.ts';

const PAGE = 4096;
/** RAM: 16 KiB at 0, a hole, 8 KiB that end at 4 GiB, and 8 KiB directly above. */
const HIGH = 2 ** 32;
const RANGES = [
  { base: 0, bytes: 4 * PAGE },
  { base: HIGH - 2 * PAGE, bytes: 2 * PAGE },
  { base: HIGH, bytes: 2 * PAGE },
];
const EDGES = RANGES.flatMap(({ base, bytes }) => [base, base + bytes]);
const FILES = 3;

class FwCfgTwin implements Twin {
  readonly clock = new ManualClock();
  readonly memory = new GuestMemory(
    RANGES.map(({ base, bytes }) => ({ base, buffer: new ArrayBuffer(bytes) })),
  );
  bus = new IoBus('pio');
  device = this.#make();

  get devices(): readonly Device[] {
    return [this.device];
  }

  rebuild(): void {
    this.bus = new IoBus('pio');
    this.device = this.#make();
  }

  observe(): unknown {
    return this.memory.ranges.map(({ bytes }) => Buffer.from(bytes).toString('latin1'));
  }

  #make(): FwCfg {
    const { memory, clock } = this;
    const content = new FwCfgContent()
      .machine({
        cpus: 2,
        memoryBytes: 2 ** 30,
        memoryMap: [{ base: 0, size: 2 ** 30, type: 1 }],
        bootOrder: ['/pci@i0cf8/scsi@4/disk@0,0'],
      })
      .file('opt/empty', new Uint8Array(0))
      .file(
        'opt/large',
        Uint8Array.from({ length: 3 * PAGE + 5 }, (_, i) => i * 7),
      );
    const device = new FwCfg({ id: 'fw-cfg', content, memory, clock, log: silentLog });
    this.bus.map(0, FW_CFG_PORTS, device);
    return device;
  }

  /** Hands the descriptor at `address` to the device. */
  transfer(address: number): void {
    const high = Math.floor(address / 2 ** 32) % 2 ** 32;
    this.bus.write(OFFSET.dmaHigh, 4, swapped(high));
    this.bus.write(OFFSET.dmaLow, 4, swapped(address % 2 ** 32));
  }
}

function swapped(value: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, value);
  return view.getUint32(0, true);
}

function anyKey(random: Prng): number {
  if (random.chance(0.1)) return random.below(0x1_0000);
  return random.pick([...Object.values(KEY), KEY.firstFile + random.below(FILES + 1)]);
}

/** Mostly of RAM, often near an edge of it, sometimes nonsense. */
function anyAddress(random: Prng): number {
  if (random.chance(0.5)) return random.below(4 * PAGE);
  if (random.chance(0.8)) {
    return Math.max(0, random.pick(EDGES) + random.between(-40, 40));
  }
  return random.u32() * 2 ** random.below(33);
}

function anyLength(random: Prng): number {
  return random.pick([0, 1, 4, 20, 56, 64, PAGE, 2 * PAGE, random.below(5 * PAGE), random.u32()]);
}

function control(random: Prng): number {
  if (random.chance(0.1)) return random.u32();
  const command = random.pick([DMA.read, DMA.read, DMA.write, DMA.skip, 0]);
  const select = random.chance(0.5) ? DMA.select : 0;
  return ((anyKey(random) << 16) | command | select) >>> 0;
}

/** What the device left in the descriptor's first word. */
function answer(twin: FwCfgTwin, address: number, seen: Coverage): number | undefined {
  const bytes = new Uint8Array(4);
  if (!twin.memory.read(address, bytes)) {
    seen.hit('descriptor outside RAM');
    return undefined;
  }
  return new DataView(bytes.buffer).getUint32(0);
}

function dma(random: Prng, seen: Coverage): Act<FwCfgTwin> {
  const address = anyAddress(random);
  const descriptor = new Uint8Array(16);
  const view = new DataView(descriptor.buffer);
  const word = control(random);
  const length = anyLength(random);
  // Its own place is a target too: the descriptor is read whole before anything is written.
  const target = random.chance(0.1) ? address + random.below(16) : anyAddress(random);
  view.setUint32(0, word);
  view.setUint32(4, length);
  view.setUint32(8, Math.floor(target / 2 ** 32) % 2 ** 32);
  view.setUint32(12, target % 2 ** 32);
  const crosses = RANGES.some(({ base }) => target < base && target + length > base);
  return (twin) => {
    const before = twin.memory.ranges.map(({ bytes }) => bytes.slice());
    const inRam = twin.memory.write(address, descriptor);
    const whole = twin.memory.contains(target, length);
    twin.transfer(address);
    const left = answer(twin, address, seen);
    if (!inRam) {
      assert(
        twin.memory.ranges.every(({ bytes }, i) => Buffer.compare(bytes, before[i]!) === 0),
        'a descriptor outside of RAM moves nothing',
      );
      return left;
    }
    const overwritten = target < address + 16 && target + length > address;
    if (overwritten) seen.hit('descriptor overwritten');
    const isRead = (word & DMA.read) !== 0;
    if (isRead && length > 0 && !whole) {
      seen.hit('read refused');
      if (left !== DMA.error) throw new AssertionError('a read to where no RAM is fails');
    } else if (isRead) {
      seen.hit(crosses && whole ? 'read across ranges' : length > PAGE ? 'long read' : 'read');
      if (left !== 0) throw new AssertionError('a read to RAM succeeds');
    } else if ((word & DMA.write) !== 0) seen.hit('write refused');
    else if ((word & DMA.skip) !== 0) seen.hit('skip');
    return left;
  };
}

export const fwCfg: TwinSubject<FwCfgTwin> = {
  build: () => new FwCfgTwin(),
  draw(random, _twin, seen) {
    switch (random.below(8)) {
      case 0: {
        const key = anyKey(random);
        return ({ bus }) => bus.write(OFFSET.selector, 2, key);
      }
      case 1:
      case 2: {
        const count = random.between(1, 80);
        return ({ bus }) => Array.from({ length: count }, () => readOf(bus, OFFSET.data, 1));
      }
      case 3:
        return anyAccess<FwCfgTwin>(random, ({ bus }) => bus, random.below(FW_CFG_PORTS));
      case 4: {
        // Half an address, which a state has to keep until the other half comes.
        if (random.chance(0.5)) {
          const half = random.pick([0, 0x0100_0000, 0x0100_0000, 0xffff_ffff, random.u32()]);
          return ({ bus }) => bus.write(OFFSET.dmaHigh, 4, half);
        }
        const low = 4 * random.below(PAGE / 2 - 4);
        const word = control(random);
        return ({ bus, memory }) => {
          for (const base of [0, HIGH]) {
            memory.writeU32(base + low, swapped(word));
            memory.writeU32(base + low + 4, 0);
          }
          bus.write(OFFSET.dmaLow, 4, swapped(low));
        };
      }
      default:
        return dma(random, seen);
    }
  },
};
