import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { alignDown, alignUp, hi32, isPowerOfTwo, lo32, sizeMask, u64 } from './bits.ts';
import { ManualClock } from './clock.ts';
import { crc32c } from './crc32c.ts';
import { GuestComplaints, MemoryLog } from './log.ts';
import { Prng } from './prng.ts';
import { BoundedRing, ByteRing } from './ring.ts';

describe('crc32c', () => {
  it('matches the published check values (RFC 3720, B.4)', () => {
    expect(crc32c(new TextEncoder().encode('123456789'))).toBe(0xe3069283);
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
    expect(crc32c(new Uint8Array(32).map((_, i) => i))).toBe(0x46dd794e);
  });

  it('can be continued at any split', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.nat(64), (data, cut) => {
        const at = Math.min(cut, data.length);
        expect(crc32c(data, at, data.length, crc32c(data, 0, at))).toBe(crc32c(data));
      }),
    );
  });
});

describe('ManualClock', () => {
  it('fires timers in order, at their instants, re-armed ones too', () => {
    const clock = new ManualClock();
    const fired: string[] = [];
    const late = clock.timer(() => fired.push(`late ${clock.nowNs()}`));
    const soon = clock.timer(() => {
      fired.push(`soon ${clock.nowNs()}`);
      if (clock.nowNs() < 40) soon.arm(clock.nowNs() + 20);
    });
    const never = clock.timer(() => fired.push('never'));
    late.arm(50);
    soon.arm(10);
    never.arm(30);
    never.cancel();
    clock.advance(100);
    expect(fired).toEqual(['soon 10', 'soon 30', 'late 50', 'soon 50']);
    expect(clock.nowNs()).toBe(100);
  });
});

describe('rings', () => {
  it('BoundedRing behaves like a bounded array', () => {
    fc.assert(
      fc.property(fc.array(fc.option(fc.nat(9))), (steps) => {
        const ring = new BoundedRing<number>(3);
        const model: number[] = [];
        for (const step of steps) {
          if (step === null) expect(ring.shift()).toBe(model.shift());
          else {
            expect(ring.push(step)).toBe(model.length < 3);
            if (model.length < 3) model.push(step);
          }
          expect(ring.length).toBe(model.length);
          expect(ring.peek()).toBe(model[0]);
          expect(ring.full).toBe(model.length === 3);
        }
      }),
    );
  });

  it('ByteRing keeps order and refuses when full', () => {
    const ring = new ByteRing(2);
    expect(ring.shift()).toBe(-1);
    expect([ring.push(1), ring.push(2), ring.push(3)]).toEqual([true, true, false]);
    expect(ring.shift()).toBe(1);
    ring.push(4);
    expect([...ring.toBytes()]).toEqual([2, 4]);
    ring.clear();
    expect(ring.free).toBe(2);
  });
});

describe('Prng', () => {
  it('repeats with its seed and differs with another', () => {
    const take = (seed: number) => {
      const prng = new Prng(seed);
      return Array.from({ length: 8 }, () => prng.u32());
    };
    expect(take(1)).toEqual(take(1));
    expect(take(1)).not.toEqual(take(2));
    expect(take(1)).not.toEqual(take(1 + 2 ** 40));
    expect(new Set(take(0)).size).toBe(8);
  });

  it('spreads over its range', () => {
    const prng = new Prng(7);
    const counts = new Array<number>(10).fill(0);
    for (let i = 0; i < 10000; i++) counts[prng.below(10)]!++;
    for (const count of counts) expect(count).toBeGreaterThan(850);
  });
});

describe('bits', () => {
  it('splits and joins 53-bit values', () => {
    expect(u64(lo32(0x1f_dead_beef_00), hi32(0x1f_dead_beef_00))).toBe(0x1f_dead_beef_00);
    expect(u64(-1, 0)).toBe(0xffffffff);
    expect([alignUp(0x1001, 0x1000), alignDown(0x1fff, 0x1000)]).toEqual([0x2000, 0x1000]);
    expect([sizeMask(1), sizeMask(2), sizeMask(4)]).toEqual([0xff, 0xffff, 0xffffffff]);
    expect([1, 3, 4096, 0].map(isPowerOfTwo)).toEqual([true, false, true, false]);
  });
});

describe('GuestComplaints', () => {
  it('limits the rate and says what it swallowed', () => {
    const log = new MemoryLog();
    const clock = new ManualClock();
    const complaints = new GuestComplaints(log, clock, 'dev', 2, 1000);
    for (let i = 0; i < 5; i++) complaints.warn('bad');
    clock.advance(1000);
    complaints.warn('bad');
    expect(log.lines).toEqual([
      'warn dev: guest: bad',
      'warn dev: guest: bad',
      'warn dev: guest: bad (3 similar lines suppressed)',
    ]);
  });
});
