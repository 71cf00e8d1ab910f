import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import {
  DriverQueue,
  type Segment,
  testMemory,
  VirtioDriver,
} from '../../test/support/virtio-driver.ts';
import { VmmError } from '../base/error.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { CHAIN_MAX_SEGMENTS, Chain } from './chain.ts';
import { VirtQueue } from './queue.ts';
import { DESC } from './spec.ts';

const chain = new Chain();

/** A queue and a driver for it, without a transport. */
function rig(size = 8, { eventIdx = false, indirect = true } = {}) {
  const memory: GuestMemory = testMemory();
  const faults: string[] = [];
  const queue = new VirtQueue(memory, size, (why) => faults.push(why));
  const guest = new DriverQueue(new VirtioDriver(new PciTestBoard(), memory, 0), 0, size);
  queue.descAddress = guest.desc;
  queue.availAddress = guest.avail;
  queue.usedAddress = guest.used;
  queue.setFeatures(eventIdx, indirect);
  expect(queue.enable()).toBeUndefined();
  return { memory, faults, queue, guest };
}

const read = (length = 16, address = 0x1000): Segment => ({ address, length });
const write = (length = 16, address = 0x2000): Segment => ({ address, length, write: true });

describe('VirtQueue', () => {
  it('hands out chains in order with readable and writable parts, and takes them back', () => {
    const { queue, guest, memory } = rig();
    const head = guest.add([read(3), read(5, 0x1100), write(7), write(0), write(9, 0x2200)]);
    expect(queue.pop(chain)).toBe(true);
    expect([chain.head, chain.readable, chain.count]).toEqual([head, 2, 4]);
    expect([chain.readableBytes, chain.writableBytes]).toEqual([8, 16]);
    expect(queue.inUse).toBe(1);
    expect(queue.pop(chain)).toBe(false);
    queue.push(head, 11);
    expect(guest.take()).toBeUndefined();
    memory.dirty.clear();
    expect(queue.publish()).toBe(true);
    expect(guest.take()).toEqual({ head, written: 11 });
    expect(memory.dirty.has(Math.floor(guest.used / 4096))).toBe(true);
    expect(queue.inUse).toBe(0);
  });

  it('goes on past the wrap of 16-bit indices', () => {
    const { queue, guest } = rig(4);
    for (let i = 0; i < 70_000; i++) {
      guest.add([read()]);
      if (!queue.pop(chain)) throw new Error(`nothing at ${i}`);
      queue.push(chain.head, 0);
      queue.publish();
      if (guest.take() === undefined) throw new Error(`lost at ${i}`);
    }
    expect(guest.usedIndex).toBe(70_000 & 0xffff);
  });

  it('reads and writes chains at any cut', () => {
    const { queue, guest, memory } = rig();
    guest.add([read(3), read(5, 0x1100), write(2), write(6, 0x2200)]);
    queue.pop(chain);
    memory.write(0x1000, Uint8Array.of(1, 2, 3));
    memory.write(0x1100, Uint8Array.of(4, 5, 6, 7, 8));
    const out = new Uint8Array(8);
    expect(chain.read(memory, 2, out, 1, 100)).toBe(6);
    expect([...out]).toEqual([0, 3, 4, 5, 6, 7, 8, 0]);
    expect(chain.write(memory, 1, Uint8Array.of(9, 8, 7), 0, 3)).toBe(3);
    expect([memory.readU8(0x2001), memory.readU8(0x2200), memory.readU8(0x2201)]).toEqual([
      9, 8, 7,
    ]);
    expect(chain.write(memory, 7, Uint8Array.of(1, 1), 0, 2)).toBe(1);
  });

  it('walks indirect tables, after direct descriptors too', () => {
    const { queue, guest, memory } = rig();
    guest.offer(guest.indirect([read(), write(4), write(5)]));
    expect(queue.pop(chain)).toBe(true);
    expect([chain.readable, chain.count, chain.writableBytes]).toEqual([1, 3, 9]);
    const table = 0x8000;
    guest.writeDesc(table, 0, write(6), 0, 0);
    guest.writeDesc(guest.desc, 6, read(), DESC.next, 7);
    guest.writeDesc(guest.desc, 7, { address: table, length: 16 }, DESC.indirect, 0);
    guest.offer(6);
    expect(queue.pop(chain)).toBe(true);
    expect([chain.readable, chain.count, chain.writableBytes]).toEqual([1, 2, 6]);
    expect(memory.contains(table, 16)).toBe(true);
  });

  it('puts back several, the last one first', () => {
    const { queue, guest } = rig();
    const heads = [0, 1, 2].map(() => guest.add([read()]));
    while (queue.pop(chain));
    for (const head of [...heads].reverse()) queue.unpop(head);
    expect(queue.inUse).toBe(0);
    const again: number[] = [];
    while (queue.pop(chain)) again.push(chain.head);
    expect(again).toEqual(heads);
    expect(() => queue.unpop(heads[0]!)).toThrow(/popped last/);
  });

  it('puts back what was popped last', () => {
    const { queue, guest } = rig();
    const first = guest.add([read()]);
    const second = guest.add([read()]);
    queue.pop(chain);
    queue.unpop(chain.head);
    queue.pop(chain);
    expect(chain.head).toBe(first);
    queue.pop(chain);
    expect(chain.head).toBe(second);
    expect(queue.inUse).toBe(2);
  });
});

describe('notification', () => {
  it('follows the flags without EVENT_IDX', () => {
    const { queue, guest } = rig();
    const once = () => {
      guest.add([read()]);
      queue.pop(chain);
      queue.push(chain.head, 0);
      const wanted = queue.publish();
      guest.takeAll();
      return wanted;
    };
    expect(once()).toBe(true);
    guest.suppressInterrupts(true);
    expect(once()).toBe(false);
    guest.suppressInterrupts(false);
    expect(once()).toBe(true);
    queue.disableNotify();
    expect(guest.notifySuppressed).toBe(true);
    expect(queue.enableNotify()).toBe(false);
    expect(guest.notifySuppressed).toBe(false);
    guest.add([read()]);
    expect(queue.enableNotify()).toBe(true);
  });

  it('follows the events with EVENT_IDX', () => {
    const { queue, guest } = rig(8, { eventIdx: true });
    const some = (count: number) => {
      for (let i = 0; i < count; i++) guest.add([read()]);
      for (let i = 0; i < count; i++) {
        queue.pop(chain);
        queue.push(chain.head, 0);
      }
      const wanted = queue.publish();
      guest.takeAll();
      return wanted;
    };
    expect(some(1)).toBe(true);
    guest.setUsedEvent(3);
    expect(some(1)).toBe(false);
    expect(some(1)).toBe(false);
    expect(some(1)).toBe(true);
    guest.setUsedEvent(6);
    expect(some(4)).toBe(true);
    expect(some(1)).toBe(false);
    expect(queue.enableNotify()).toBe(false);
    expect(guest.availEvent).toBe(guest.availIndex);
    guest.add([read()]);
    expect(queue.enableNotify()).toBe(true);
  });
});

describe('a hostile ring', () => {
  let now = rig();
  beforeEach(() => {
    now = rig();
  });

  function broken(why: RegExp): void {
    const { queue, faults } = now;
    expect(queue.pop(chain)).toBe(false);
    expect(faults).toHaveLength(1);
    expect(faults[0]).toMatch(why);
    expect(queue.pop(chain)).toBe(false);
    expect(queue.hasAvailable()).toBe(false);
    expect(queue.enableNotify()).toBe(false);
    expect(faults).toHaveLength(1);
  }

  it('index jump', () => {
    now.guest.forceAvailIndex(9);
    broken(/ahead/);
  });
  it('index backwards', () => {
    now.guest.forceAvailIndex(-1);
    broken(/ahead/);
  });
  it('head outside', () => {
    now.guest.offer(8);
    broken(/head 8/);
  });
  it('head twice', () => {
    const head = now.guest.add([read()]);
    now.queue.pop(chain);
    now.guest.offer(head);
    broken(/in use/);
  });
  it('loop', () => {
    const { guest } = now;
    guest.writeDesc(guest.desc, 0, read(), DESC.next, 1);
    guest.writeDesc(guest.desc, 1, read(), DESC.next, 0);
    guest.offer(0);
    broken(/loop/);
  });
  it('next outside', () => {
    now.guest.writeDesc(now.guest.desc, 0, read(), DESC.next, 8);
    now.guest.offer(0);
    broken(/descriptor 8/);
  });
  it('address outside memory', () => {
    now.guest.add([read(16, 2 ** 45)]);
    broken(/not RAM/);
  });
  it('address beyond 2^63', () => {
    const { guest, memory } = now;
    guest.writeDesc(guest.desc, 0, read(), 0, 0);
    memory.writeU32(guest.desc + 4, 0xffffffff);
    guest.offer(0);
    broken(/not RAM/);
  });
  it('length beyond memory', () => {
    now.guest.add([read(0xffffffff, 0x1000)]);
    broken(/not RAM/);
  });
  it('buffer that runs over the end of memory', () => {
    now.guest.add([read(32, 0x40_0000 - 16)]);
    broken(/not RAM/);
  });
  it('readable after writable', () => {
    now.guest.add([write(), read()]);
    broken(/readable/);
  });
  it('indirect table of an odd size', () => {
    now.guest.writeDesc(now.guest.desc, 0, read(17), DESC.indirect, 0);
    now.guest.offer(0);
    broken(/17 bytes/);
  });
  it('indirect table that is empty', () => {
    now.guest.writeDesc(now.guest.desc, 0, read(0), DESC.indirect, 0);
    now.guest.offer(0);
    broken(/0 bytes/);
  });
  it('indirect table outside memory', () => {
    now.guest.writeDesc(now.guest.desc, 0, read(32, 2 ** 40), DESC.indirect, 0);
    now.guest.offer(0);
    broken(/not RAM/);
  });
  it('indirect with next', () => {
    now.guest.writeDesc(now.guest.desc, 0, read(16), DESC.indirect | DESC.next, 1);
    now.guest.offer(0);
    broken(/successor/);
  });
  it('indirect in indirect, loop in indirect', () => {
    const { guest } = now;
    guest.writeDesc(0x8000, 0, read(16, 0x9000), DESC.indirect, 0);
    guest.writeDesc(guest.desc, 0, read(16, 0x8000), DESC.indirect, 0);
    guest.offer(0);
    broken(/indirect descriptor in/);
    now = rig();
    now.guest.writeDesc(0x8000, 0, read(), DESC.next, 1);
    now.guest.writeDesc(0x8000, 1, read(), DESC.next, 0);
    now.guest.writeDesc(now.guest.desc, 0, read(32, 0x8000), DESC.indirect, 0);
    now.guest.offer(0);
    broken(/loop/);
  });
  it('indirect without the feature', () => {
    now = rig(8, { indirect: false });
    now.guest.offer(now.guest.indirect([read()]));
    broken(/feature/);
  });
  it('more segments than anything needs', () => {
    const many = Array.from({ length: CHAIN_MAX_SEGMENTS + 1 }, () => read(1));
    now.guest.offer(now.guest.indirect(many));
    broken(/descriptors/);
  });
  it('empty descriptors without end', () => {
    const many = Array.from({ length: CHAIN_MAX_SEGMENTS }, () => read(0));
    now.guest.offer(now.guest.indirect([...many, read(1)]));
    broken(/descriptors/);
  });

  it('rings in bad places are refused when they are enabled', () => {
    const { queue, guest } = now;
    queue.reset();
    const cases: [number, number, number, RegExp][] = [
      [guest.desc + 8, guest.avail, guest.used, /aligned/],
      [guest.desc, guest.avail + 1, guest.used, /aligned/],
      [guest.desc, guest.avail, guest.used + 2, /aligned/],
      [0x40_0000 - 16, guest.avail, guest.used, /not RAM/],
      [guest.desc, 2 ** 40, guest.used, /not RAM/],
      [guest.desc, guest.avail, 0x1_0001_0000, /not RAM/],
    ];
    for (const [desc, avail, used, why] of cases) {
      queue.descAddress = desc;
      queue.availAddress = avail;
      queue.usedAddress = used;
      expect(queue.enable()).toMatch(why);
      expect(queue.enabled).toBe(false);
    }
  });

  it('random bytes in every structure never get past the queue', () => {
    const pokes = fc.array(fc.tuple(fc.nat(0x200), fc.nat(0xff)), { maxLength: 12 });
    fc.assert(
      fc.property(fc.array(pokes, { maxLength: 12 }), (rounds) => {
        const { queue, guest, memory } = rig();
        for (const round of rounds) {
          if (guest.free > 2) guest.add([read(), write()]);
          for (const [offset, value] of round) memory.writeU8(guest.desc + offset, value);
          while (queue.pop(chain)) {
            for (let i = 0; i < chain.count; i++) {
              expect(memory.contains(chain.addresses[i]!, chain.lengths[i]!)).toBe(true);
            }
            queue.push(chain.head, 0);
          }
          queue.publish();
          queue.enableNotify();
        }
      }),
    );
  });
});

describe('saved state', () => {
  it('gives outstanding chains out again in the order of their first pop', () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.constant('add'), fc.constant('pop'), fc.nat(7)), { maxLength: 60 }),
        (steps) => {
          const { queue, guest, memory } = rig();
          let model: number[] = [];
          const waiting: number[] = [];
          for (const step of steps) {
            if (step === 'add') {
              const head = guest.add([read(), write()]);
              if (head >= 0) waiting.push(head);
            } else if (step === 'pop') {
              if (queue.pop(chain)) model.push(waiting.shift()!);
            } else if (model.length > 0) {
              const head = model[step % model.length]!;
              model = model.filter((other) => other !== head);
              queue.push(head, 1);
              queue.publish();
              guest.take();
            }
          }
          const state = queue.save();
          expect(state.outstanding).toEqual(model);
          const fresh = new VirtQueue(memory, 8, () => expect.unreachable());
          fresh.setFeatures(false, true);
          fresh.check(state);
          fresh.load(state);
          expect(fresh.save()).toEqual(state);
          const again: number[] = [];
          while (fresh.pop(chain)) again.push(chain.head);
          expect(again).toEqual([...model, ...waiting]);
          expect(fresh.inUse).toBe(again.length);
        },
      ),
    );
  });

  it('can put back a chain of before the restore', () => {
    const { queue, guest, memory } = rig();
    const heads = [guest.add([read()]), guest.add([read()])];
    queue.pop(chain);
    queue.pop(chain);
    const fresh = new VirtQueue(memory, 8, () => expect.unreachable());
    fresh.load(queue.save());
    const seen: number[] = [];
    for (let i = 0; i < 2; i++) {
      fresh.pop(chain);
      fresh.unpop(chain.head);
      fresh.pop(chain);
      seen.push(chain.head);
    }
    expect(seen).toEqual(heads);
    expect(fresh.pop(chain)).toBe(false);
  });

  it('is refused when it cannot be', () => {
    const { queue, guest } = rig();
    guest.add([read()]);
    queue.pop(chain);
    const good = queue.save();
    queue.check(good);
    const bad = [
      { ...good, size: 3 },
      { ...good, size: 16 },
      { ...good, outstanding: [8] },
      { ...good, outstanding: [0, 0], lastAvail: 2 },
      { ...good, outstanding: [] },
      { ...good, usedIndex: 5 },
      { ...good, desc: 2 ** 40 },
      { ...good, used: good.used + 1 },
      { ...good, enabled: false },
    ];
    for (const state of bad) expect(() => queue.check(state)).toThrow(VmmError);
  });
});

describe('the hot path', () => {
  it('allocates nothing per descriptor', () => {
    const { queue, guest } = rig(64);
    const segments = Array.from({ length: 16 }, (_, i) => (i < 4 ? read() : write()));
    const heads = Array.from({ length: 4 }, () => guest.chain(segments));
    const turn = (count: number) => {
      for (let i = 0; i < count; i++) {
        guest.offer(heads[i & 3]!);
        if (!queue.pop(chain)) throw new Error('nothing popped');
        queue.push(chain.head, 1);
        queue.publish();
      }
    };
    turn(20_000);
    // The smallest object has 16 bytes: one per request is 0.8 MB a round, one per descriptor 12.8 MB. A round with a
    // collection in it, or before the engine has optimised, says nothing.
    let least = Number.POSITIVE_INFINITY;
    for (let measured = 0, round = 0; measured < 4 && round < 30; round++) {
      const before = process.memoryUsage().heapUsed;
      turn(50_000);
      const grown = process.memoryUsage().heapUsed - before;
      if (grown < 0) continue;
      measured++;
      least = Math.min(least, grown);
    }
    expect(least).toBeLessThan(400_000);
  });
});
