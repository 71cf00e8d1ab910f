/**
 * One conformance suite that every device is put through: life cycle, saved state, hostile state, and
 * "snapshot anywhere": a script of steps gives the same observations whether or not the device is
 * captured after step k and replaced by a fresh one. A device's own test calls {@link deviceConformance}
 * once with a {@link DeviceCase}; what the device means is tested beside it.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AssertionError } from '../../src/base/assert.ts';
import { VmmError } from '../../src/base/error.ts';
import type { Device } from '../../src/bus/device.ts';

/**
 * How to put one kind of device through the suite. `W` is its world: everything outside the device that
 * survives when the device is replaced (clock, interrupt recorder, backend, guest memory).
 */
export interface DeviceCase<W, D extends Device, Step> {
  /** A new world, the same every time. */
  world(): W;
  /** A new device in power-on state, wired into `world`, not yet resumed. It must not drive lines by itself. */
  attach(world: W): D;
  /** One step of a guest or of the outside (a register access, bytes arriving, time passing). */
  readonly steps: fc.Arbitrary<Step>;
  /** Performs `step`; the result (plain data) is what the guest saw. */
  perform(world: W, device: D, step: Step): unknown;
  /** What left the device so far, as plain data: interrupt edges, bytes sent, guest memory. */
  observe(world: W): unknown;
  /** States that `load` must refuse, made from a good one. Empty where every decodable state is possible. */
  impossible(good: ReturnType<D['save']>): readonly ReturnType<D['save']>[];
  /** Property runs for each test; default 25. */
  readonly runs?: number;
  /** Steps in a script; default 30. */
  readonly maxSteps?: number;
}

/** Registers the suite under `name`. */
export function deviceConformance<W, D extends Device, Step>(
  name: string,
  subject: DeviceCase<W, D, Step>,
): void {
  const runs = { numRuns: subject.runs ?? 25 };
  const script = fc.array(subject.steps, { maxLength: subject.maxSteps ?? 30 });

  /** A running device that has seen `steps`. */
  function afterSteps(steps: readonly Step[]): { world: W; device: D } {
    const world = subject.world();
    const device = subject.attach(world);
    device.resume();
    for (const step of steps) subject.perform(world, device, step);
    return { world, device };
  }

  /** Runs `steps`; after `cut` of them the device is captured and a fresh one takes over. */
  function run(steps: readonly Step[], cut: number | undefined): unknown {
    const world = subject.world();
    let device = subject.attach(world);
    device.resume();
    const seen: unknown[] = [];
    for (let at = 0; at <= steps.length; at++) {
      if (at === cut) {
        device.pause();
        const payload = device.schema.encode(device.save());
        const fresh = subject.attach(world);
        fresh.load(fresh.schema.decode(payload));
        fresh.resume();
        device = fresh;
      }
      if (at < steps.length) seen.push(subject.perform(world, device, steps[at] as Step));
    }
    device.pause();
    return { seen, left: subject.observe(world), end: device.save() };
  }

  function encoded(device: D): Uint8Array {
    return device.schema.encode(device.save());
  }

  describe(`${name} conformance`, () => {
    it('goes on unchanged when captured and replaced after any step', () => {
      fc.assert(
        fc.property(script, (steps) => {
          const whole = run(steps, undefined);
          for (let cut = 0; cut <= steps.length; cut++) expect(run(steps, cut)).toEqual(whole);
        }),
        runs,
      );
    });

    it('has an idempotent reset, running and paused', () => {
      fc.assert(
        fc.property(script, (steps) => {
          const { device } = afterSteps(steps);
          device.reset();
          device.pause();
          device.reset();
          const once = encoded(device);
          device.reset();
          expect(encoded(device)).toEqual(once);
        }),
        runs,
      );
    });

    it('has an idempotent pause and resume, and saves only while paused', () => {
      fc.assert(
        fc.property(script, (steps) => {
          const { device } = afterSteps(steps);
          expect(() => device.save()).toThrow(AssertionError);
          device.pause();
          const once = encoded(device);
          device.pause();
          expect(encoded(device)).toEqual(once);
          device.resume();
          device.resume();
          device.pause();
          expect(encoded(device)).toEqual(once);
        }),
        runs,
      );
    });

    it('takes back a captured state, which is a deep copy', () => {
      fc.assert(
        fc.property(script, script, (before, later) => {
          const { world, device } = afterSteps(before);
          device.pause();
          const state = device.save();
          const captured = device.schema.encode(state);
          const twin = subject.attach(world);
          twin.load(twin.schema.decode(captured));
          expect(encoded(twin)).toEqual(captured);
          device.resume();
          for (const step of later) subject.perform(world, device, step);
          device.pause();
          expect(device.schema.encode(state)).toEqual(captured);
          // Loading leaves nothing of what was before; a device that follows time outside may see it has passed.
          device.load(device.schema.decode(captured));
          const fresh = subject.attach(world);
          fresh.load(fresh.schema.decode(captured));
          expect(encoded(device)).toEqual(encoded(fresh));
        }),
        runs,
      );
    });

    it('refuses damaged state, or survives it', () => {
      const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
      fc.assert(
        fc.property(script, damage, script, (before, flips, later) => {
          const { world, device } = afterSteps(before);
          device.pause();
          const payload = encoded(device);
          for (const [at, value] of flips) {
            if (payload.length > 0) payload[at % payload.length] = value;
          }
          const fresh = subject.attach(world);
          try {
            fresh.load(fresh.schema.decode(payload));
          } catch (error) {
            expect(error).toBeInstanceOf(VmmError);
            return;
          }
          fresh.resume();
          for (const step of later) subject.perform(world, fresh, step);
          fresh.pause();
          fresh.save();
        }),
        { numRuns: (subject.runs ?? 25) * 4 },
      );
    });

    it('refuses impossible states and stays as it was', () => {
      const { device } = afterSteps([]);
      device.pause();
      const before = encoded(device);
      for (const bad of subject.impossible(device.save() as ReturnType<D['save']>)) {
        expect(() => device.load(bad)).toThrow(VmmError);
        expect(encoded(device)).toEqual(before);
      }
    });
  });
}
