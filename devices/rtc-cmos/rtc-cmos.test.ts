import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { RecordingIrq } from '../../test/support/recording-irq.ts';
import { access, alone, anyAccess, type RegionAccess } from '../../test/support/region-access.ts';
import { type Calendar, fromSeconds, toSeconds } from './calendar.ts';
import { cmosContent } from './cmos-content.ts';
import { RtcCmos } from './rtc-cmos.ts';
import { A, B, BOOT_DEVICE, C, CMOS, REG, RTC_PORTS, UPDATE_AHEAD_US } from './spec.ts';
import type { RtcState } from './state.ts';

const SECOND = 1e9;
/** Sunday 2026-11-22 23:59:58.25 UTC. */
const START = Date.UTC(2026, 10, 22, 23, 59, 58, 250) * 1e6;
const MEMORY = { lowMemory: 3 * 2 ** 30, highMemory: 5 * 2 ** 30, cpus: 4 };

function rig(start = START) {
  const clock = new ManualClock(start);
  const irq = new RecordingIrq();
  const rtc = new RtcCmos({ id: 'rtc', irq, clock, cmos: cmosContent(MEMORY) });
  rtc.resume();
  const get = (register: number): number => {
    rtc.write(0, 1, register);
    return rtc.read(1);
  };
  const set = (register: number, value: number): void => {
    rtc.write(0, 1, register);
    rtc.write(1, 1, value);
  };
  /** Register C without the periodic flag, which always comes up. */
  const flags = (): number => get(REG.c) & ~C.periodic;
  const time = (): number[] =>
    [
      REG.century,
      REG.year,
      REG.month,
      REG.day,
      REG.weekday,
      REG.hours,
      REG.minutes,
      REG.seconds,
    ].map(get);
  return { clock, irq, rtc, get, set, flags, time };
}

describe('calendar', () => {
  it('agrees with the platform for every day from 1900 to 2400', () => {
    const out = {} as Calendar;
    for (let day = -25_567; day < 157_054; day++) {
      const date = new Date(day * 86_400_000);
      const seconds = day * 86_400 + 3723;
      fromSeconds(seconds, out);
      if (
        out.year !== date.getUTCFullYear() ||
        out.month !== date.getUTCMonth() + 1 ||
        out.day !== date.getUTCDate() ||
        out.weekday !== date.getUTCDay() ||
        toSeconds(out) !== seconds
      ) {
        expect.fail(`day ${day}: ${JSON.stringify(out)}`);
      }
    }
    expect([out.hours, out.minutes, out.seconds]).toEqual([1, 2, 3]);
  });
});

describe('time', () => {
  it('is the wall time, in BCD and 24 hours at first', () => {
    const { clock, time } = rig();
    expect(time()).toEqual([0x20, 0x26, 0x11, 0x22, 1, 0x23, 0x59, 0x58]);
    clock.advance(1.75 * SECOND);
    expect(time()).toEqual([0x20, 0x26, 0x11, 0x23, 2, 0x00, 0x00, 0x00]);
  });

  it('can be had in binary and in 12 hours', () => {
    const { clock, set, time, get } = rig();
    set(REG.b, B.binary | B.hours24);
    expect(time()).toEqual([20, 26, 11, 22, 1, 23, 59, 58]);
    set(REG.b, 0);
    expect(get(REG.hours)).toBe(0x91);
    clock.advance(2 * SECOND);
    expect(get(REG.hours)).toBe(0x12);
    clock.advance(12 * 3600 * SECOND);
    expect(get(REG.hours)).toBe(0x92);
  });

  it.each([
    ['BCD, 24 hours', B.hours24, [0x19, 0x99, 0x12, 0x31, 0x13, 0x05, 0x06]],
    ['binary, 12 hours', B.binary, [19, 99, 12, 31, 0x81, 5, 6]],
  ])('is set while SET holds it (%s)', (_name, mode, values) => {
    const { clock, get, set } = rig();
    const registers = [
      REG.century,
      REG.year,
      REG.month,
      REG.day,
      REG.hours,
      REG.minutes,
      REG.seconds,
    ];
    set(REG.b, mode | B.set);
    for (const [i, register] of registers.entries()) set(register, values[i]!);
    clock.advance(5 * SECOND);
    expect(registers.map(get)).toEqual(values);
    set(REG.b, mode);
    // SET does not touch the divider: the next second is due after what was left of this one.
    clock.advance(0.74 * SECOND);
    expect(get(REG.seconds)).toBe(6);
    clock.advance(0.02 * SECOND);
    expect(get(REG.seconds)).toBe(7);
    expect(get(REG.weekday)).toBe(6);
  });

  it('starts half a second after the divider is let go, as Linux counts on when it sets the clock', () => {
    const { clock, get, set } = rig();
    set(REG.b, B.hours24 | B.set);
    set(REG.a, 0x70 | 6);
    set(REG.seconds, 0x10);
    set(REG.b, B.hours24);
    clock.advance(3 * SECOND);
    expect(get(REG.seconds)).toBe(0x10);
    set(REG.a, A.dividerRunning | 6);
    clock.advance(0.49 * SECOND);
    expect(get(REG.seconds)).toBe(0x10);
    clock.advance(0.02 * SECOND);
    expect(get(REG.seconds)).toBe(0x11);
  });

  it('can be changed register by register while it runs', () => {
    const { set, time } = rig();
    set(REG.year, 0x30);
    set(REG.minutes, 0x07);
    expect(time()).toEqual([0x20, 0x30, 0x11, 0x22, 6, 0x23, 0x07, 0x58]);
  });

  it('announces an update before it happens', () => {
    const { clock, get } = rig();
    clock.advance(0.75 * SECOND - UPDATE_AHEAD_US * 1000 - 2000);
    expect(get(REG.a) & A.updateInProgress).toBe(0);
    clock.advance(4000);
    expect(get(REG.a) & A.updateInProgress).toBe(A.updateInProgress);
    clock.advance(UPDATE_AHEAD_US * 1000);
    expect(get(REG.a) & A.updateInProgress).toBe(0);
    expect(get(REG.seconds)).toBe(0x59);
  });

  it('says that it is valid', () => {
    const { get, set } = rig();
    set(REG.d, 0);
    expect(get(REG.d)).toBe(0x80);
  });
});

describe('interrupts', () => {
  it('flags updates without an interrupt until one is enabled', () => {
    const { clock, irq, flags, set } = rig();
    // Not midnight, which is near.
    set(REG.hoursAlarm, 0x12);
    expect(flags()).toBe(0);
    clock.advance(SECOND);
    expect(flags()).toBe(C.update);
    expect(flags()).toBe(0);
    set(REG.b, B.hours24 | B.updateEnable);
    clock.advance(SECOND);
    expect(irq.level).toBe(true);
    expect(flags()).toBe(C.irq | C.update);
    expect(irq.level).toBe(false);
    clock.advance(3 * SECOND);
    expect(irq.rises).toBe(2);
  });

  it('raises one at once when an enabled flag already stands', () => {
    const { clock, irq, set } = rig();
    clock.advance(SECOND);
    set(REG.b, B.hours24 | B.updateEnable);
    expect(irq.level).toBe(true);
  });

  it('gives an alarm at its time, once a day', () => {
    const { clock, irq, flags, set } = rig();
    set(REG.hoursAlarm, 0x00);
    set(REG.minutesAlarm, 0x00);
    set(REG.secondsAlarm, 0x05);
    set(REG.b, B.hours24 | B.alarmEnable);
    clock.advance(6.7 * SECOND);
    expect(irq.level).toBe(false);
    clock.advance(0.1 * SECOND);
    expect(flags()).toBe(C.irq | C.alarm | C.update);
    clock.advance(86_399 * SECOND);
    expect(irq.level).toBe(false);
    clock.advance(SECOND);
    expect(irq.level).toBe(true);
  });

  it('takes an alarm byte with both top bits set for any', () => {
    const { clock, irq, get, set } = rig();
    set(REG.hoursAlarm, 0xff);
    set(REG.minutesAlarm, 0xc0);
    set(REG.secondsAlarm, 0x30);
    set(REG.b, B.hours24 | B.alarmEnable);
    for (let minute = 0; minute < 3; minute++) {
      clock.advance(60 * SECOND);
      expect(get(REG.c) & C.alarm).toBe(C.alarm);
    }
    expect(irq.rises).toBe(3);
  });

  it('looks for an alarm without going through all seconds of a day', () => {
    const { set, clock, rtc } = rig();
    set(REG.b, B.hours24 | B.alarmEnable);
    set(REG.hoursAlarm, 0xff);
    set(REG.minutesAlarm, 0xff);
    const cost = (alarm: number): number => {
      set(REG.secondsAlarm, alarm);
      let best = Number.POSITIVE_INFINITY;
      for (let run = 0; run < 5; run++) {
        const start = performance.now();
        for (let i = 0; i < 200; i++) rtc.read(1);
        best = Math.min(best, performance.now() - start);
      }
      clock.advance(SECOND);
      return best;
    };
    // A second that never comes, beside one that does.
    const possible = cost(0x57);
    expect(cost(0x7f)).toBeLessThan(50 * possible + 1);
  });

  it('goes on when the periodic tick falls on a time that nanoseconds cannot tell apart', () => {
    const { set, get, clock, irq } = rig();
    clock.advance(3_629_194_026_803_951);
    for (const rate of [0x23, 0x24, 0x26]) {
      set(REG.a, rate);
      set(REG.b, B.hours24 | B.periodicEnable);
      for (let i = 0; i < 2000; i++) {
        clock.advance(61_037);
        get(REG.c);
      }
    }
    expect(irq.rises).toBeGreaterThan(1000);
  });

  it('never gives an alarm at an impossible time', () => {
    const { clock, irq, set } = rig();
    set(REG.hoursAlarm, 0x25);
    set(REG.b, B.hours24 | B.alarmEnable);
    clock.advance(200_000 * SECOND);
    expect(irq.rises).toBe(0);
  });

  it('ticks periodically', () => {
    const { clock, irq, get, set } = rig();
    set(REG.a, A.dividerRunning | 15);
    set(REG.b, B.hours24 | B.periodicEnable);
    let ticks = 0;
    for (let i = 0; i < 100; i++) {
      clock.advance(0.1 * SECOND);
      if ((get(REG.c) & C.periodic) !== 0) ticks++;
    }
    expect(ticks).toBe(20);
    expect(irq.rises).toBe(20);
    set(REG.a, A.dividerRunning);
    clock.advance(SECOND);
    expect(get(REG.c) & C.periodic).toBe(0);
  });

  it('withdraws interrupts on reset and keeps time and memory', () => {
    const { clock, irq, rtc, get, set, time } = rig();
    set(0x40, 0x5a);
    set(REG.b, B.hours24 | B.updateEnable);
    clock.advance(SECOND);
    rtc.reset();
    expect(irq.level).toBe(false);
    clock.advance(2 * SECOND);
    expect(irq.rises).toBe(1);
    expect([get(0x40), get(REG.b)]).toEqual([0x5a, B.hours24]);
    expect(time().slice(0, 4)).toEqual([0x20, 0x26, 0x11, 0x23]);
  });

  it('follows wall time that was adjusted backwards', () => {
    const late = rig(START);
    late.rtc.pause();
    const state = late.rtc.save();
    const early = rig(START - 100 * SECOND);
    early.rtc.pause();
    early.rtc.load(state);
    early.rtc.resume();
    expect(early.get(REG.minutes)).toBe(0x58);
    expect(early.flags()).toBe(C.update);
  });
});

describe('CMOS memory', () => {
  it('tells firmware the size of memory and the processors', () => {
    const { get } = rig();
    const word = (at: number): number => get(at) + get(at + 1) * 256;
    expect(word(CMOS.baseMemory)).toBe(640);
    expect(word(CMOS.extendedMemory)).toBe(0xffff);
    expect(word(CMOS.extendedMemory2)).toBe(0xffff);
    expect(word(CMOS.memoryAbove16M)).toBe((3 * 1024 - 16) * 16);
    expect(word(CMOS.memoryAbove4G) + get(CMOS.memoryAbove4G + 2) * 0x10000).toBe(5 * 1024 * 16);
    expect(get(CMOS.processors)).toBe(3);
  });

  it('holds small memories, a boot order and a checksum', () => {
    const cmos = cmosContent({
      lowMemory: 8 * 2 ** 20,
      highMemory: 0,
      cpus: 1,
      bootOrder: [BOOT_DEVICE.disk, BOOT_DEVICE.cdrom, BOOT_DEVICE.network],
    });
    expect(cmos[CMOS.extendedMemory]! + cmos[CMOS.extendedMemory + 1]! * 256).toBe(7 * 1024);
    expect(cmos[CMOS.memoryAbove16M]).toBe(0);
    expect([cmos[CMOS.bootOrder], cmos[CMOS.bootOrder3]]).toEqual([0x32, 0x40]);
    const sum = cmos.subarray(0x10, 0x2e).reduce((a, b) => a + b, 0);
    expect(cmos[0x2e]! * 256 + cmos[0x2f]!).toBe(sum);
  });

  it('cannot be reached beyond 128 bytes, and the index cannot be read', () => {
    const { rtc, get, set } = rig();
    set(0xc0, 7);
    expect(get(0x40)).toBe(7);
    expect(rtc.read(0)).toBe(0xff);
  });
});

type Step = RegionAccess | { readonly advance: number } | { readonly register: number };

const steps: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: anyAccess(RTC_PORTS) },
  { weight: 3, arbitrary: fc.record({ register: fc.nat(13) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      write: fc.constant(true),
      offset: fc.constant(1),
      size: fc.constant(1 as const),
      value: fc.oneof(fc.nat(255), fc.nat(0x59), fc.constantFrom(0x26, 0x2f, 0x72, 0xff)),
    }),
  },
  { weight: 2, arbitrary: fc.record({ advance: fc.nat(3 * SECOND) }) },
);

deviceConformance('rtc-cmos', {
  world: () => ({ clock: new ManualClock(START), irq: new RecordingIrq() }),
  attach: ({ clock, irq }) => new RtcCmos({ id: 'rtc', irq, clock, cmos: cmosContent(MEMORY) }),
  steps,
  perform(world, rtc, step) {
    if ('advance' in step) world.clock.advance(step.advance);
    else if ('register' in step) rtc.write(0, 1, step.register);
    else return access(alone(rtc, RTC_PORTS), step);
    return undefined;
  },
  observe: ({ irq }) => irq.edges,
  impossible(good: RtcState) {
    const withByte = (at: number, value: number): RtcState => ({
      ...good,
      cmos: good.cmos.map((byte, i) => (i === at ? value : byte)),
    });
    return [
      { ...good, index: 128 },
      { ...good, cmos: new Uint8Array(127) },
      { ...good, offsetSeconds: 0.5 },
      { ...good, offsetSeconds: Number.NaN },
      { ...good, doneSecond: 1e15 },
      { ...good, offsetUs: 1_000_000 },
      { ...good, periodicAgeNs: -1 },
      { ...good, periodicAgeNs: Number.POSITIVE_INFINITY },
      withByte(REG.a, 0xa6),
      withByte(REG.c, 1),
      withByte(REG.d, 0),
    ];
  },
});
