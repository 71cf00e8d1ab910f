import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { MemoryLog } from '../../src/base/log.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { RecordingIrq } from '../../test/support/recording-irq.ts';
import { access, alone, anyAccess, type RegionAccess } from '../../test/support/region-access.ts';
import { AcpiPm } from './acpi-pm.ts';
import { ACPI_PM_PORTS, OFFSET, PM_TIMER_HZ, PM1, PM1_CONTROL } from './spec.ts';

const SECOND = 1e9;

function rig(timerBits: 24 | 32 = 32) {
  const clock = new ManualClock();
  const irq = new RecordingIrq();
  const log = new MemoryLog();
  const events: string[] = [];
  const pm = new AcpiPm({
    id: 'acpi-pm',
    irq,
    clock,
    log,
    timerBits,
    onPowerOff: () => events.push('off'),
  });
  pm.resume();
  return { clock, irq, log, events, pm, bus: alone(pm, ACPI_PM_PORTS) };
}

describe('PM timer', () => {
  it('counts at 3.579545 MHz, for a century too', () => {
    const { clock, bus } = rig();
    clock.advance(SECOND);
    expect(bus.read(OFFSET.timer, 4)).toBe(PM_TIMER_HZ);
    clock.advance(100 * 86400 * SECOND - SECOND);
    expect(bus.read(OFFSET.timer, 4)).toBe((100 * 86400 * PM_TIMER_HZ) % 2 ** 32);
  });

  it('has 24 bits when asked to', () => {
    const { clock, bus } = rig(24);
    clock.advance(10 * SECOND);
    expect(bus.read(OFFSET.timer, 4)).toBe((10 * PM_TIMER_HZ) % 2 ** 24);
    expect(bus.read(OFFSET.timer + 2, 2)).toBe(((10 * PM_TIMER_HZ) % 2 ** 24) >>> 16);
  });

  it('never goes back', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(2_000), { maxLength: 50 }), (pauses) => {
        const { clock, bus } = rig();
        let last = 0;
        for (const ns of pauses) {
          clock.advance(ns);
          const now = bus.read(OFFSET.timer, 4);
          expect(now).toBeGreaterThanOrEqual(last);
          last = now;
        }
      }),
    );
  });

  it('sets its status at every change of the top bit, and interrupts when enabled', () => {
    const { clock, irq, bus } = rig(24);
    const half = (2 ** 23 / PM_TIMER_HZ) * SECOND;
    clock.advance(half - 1000);
    expect(bus.read(OFFSET.pm1Status, 2)).toBe(0);
    clock.advance(2000);
    expect(bus.read(OFFSET.pm1Status, 2)).toBe(PM1.timer);
    expect(irq.level).toBe(false);
    bus.write(OFFSET.pm1Status, 2, PM1.timer);
    bus.write(OFFSET.pm1Enable, 2, PM1.timer);
    clock.advance(half - 4000);
    expect(irq.level).toBe(false);
    clock.advance(8000);
    expect(irq.level).toBe(true);
    bus.write(OFFSET.pm1Status, 2, PM1.timer);
    expect(irq.edges).toEqual([true, false]);
  });
});

describe('PM1 registers', () => {
  it('raises SCI for an enabled power button until its status is cleared', () => {
    const { irq, pm, bus } = rig();
    pm.pressPowerButton();
    expect(irq.level).toBe(false);
    bus.write(OFFSET.pm1Enable, 2, PM1.powerButton);
    expect(irq.level).toBe(true);
    expect(bus.read(OFFSET.pm1Status, 4)).toBe(PM1.powerButton * 0x10001);
    bus.write(OFFSET.pm1Status, 2, PM1.timer);
    expect(irq.level).toBe(true);
    bus.write(OFFSET.pm1Status + 1, 1, PM1.powerButton >> 8);
    expect(irq.level).toBe(false);
  });

  it('is in ACPI mode whatever is written', () => {
    const { bus } = rig();
    bus.write(OFFSET.pm1Control, 2, 0);
    expect(bus.read(OFFSET.pm1Control, 2)).toBe(PM1_CONTROL.sciEnable);
  });

  it('powers off in S5, written at once, in bytes, or as part of a dword', () => {
    const { events, bus } = rig();
    bus.write(OFFSET.pm1Control, 2, PM1_CONTROL.sleepEnable);
    bus.write(OFFSET.pm1Control + 1, 1, PM1_CONTROL.sleepEnable >> 8);
    bus.write(OFFSET.pm1Control, 4, PM1_CONTROL.sleepEnable);
    expect(events).toEqual(['off', 'off', 'off']);
    expect(bus.read(OFFSET.pm1Control, 2) & PM1_CONTROL.sleepEnable).toBe(0);
  });

  it('does not sleep in a state that it does not have', () => {
    const { events, log, bus } = rig();
    bus.write(OFFSET.pm1Control, 2, PM1_CONTROL.sleepEnable | (3 << 10));
    expect(events).toEqual([]);
    expect(log.lines[0]).toMatch(/sleep type 3/);
  });

  it('forgets status and enables on reset and lets SCI go', () => {
    const { irq, pm, bus } = rig();
    bus.write(OFFSET.pm1Enable, 2, PM1.powerButton);
    pm.pressPowerButton();
    pm.reset();
    expect(irq.level).toBe(false);
    expect(bus.read(OFFSET.pm1Status, 4)).toBe(0);
  });
});

type Step = RegionAccess | { readonly advance: number } | { readonly button: true };

const steps: fc.Arbitrary<Step> = fc.oneof(
  { weight: 5, arbitrary: anyAccess(ACPI_PM_PORTS) },
  { weight: 2, arbitrary: fc.record({ advance: fc.nat(3 * SECOND) }) },
  { weight: 1, arbitrary: fc.constant({ button: true } as const) },
);

deviceConformance('acpi-pm', {
  world: () => ({
    clock: new ManualClock(),
    irq: new RecordingIrq(),
    log: new MemoryLog(),
    events: [] as string[],
  }),
  attach: (world) =>
    new AcpiPm({
      id: 'acpi-pm',
      irq: world.irq,
      clock: world.clock,
      log: world.log,
      timerBits: 24,
      onPowerOff: () => world.events.push('off'),
    }),
  steps,
  perform(world, device, step) {
    if ('advance' in step) world.clock.advance(step.advance);
    else if ('button' in step) device.pressPowerButton();
    else return access(alone(device, ACPI_PM_PORTS), step);
    return undefined;
  },
  observe: ({ irq, events }) => [irq.edges, events],
  impossible: (good) => [
    { ...good, status: 0x10 },
    { ...good, enable: 0x8000 },
    { ...good, control: PM1_CONTROL.sleepEnable },
    { ...good, control: 1 },
  ],
});
