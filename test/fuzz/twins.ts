/**
 * The fuzzer that devices share. Two machines alike are built from one seed and given the same steps; at random steps
 * both are captured, which must give the same bytes, and the second one goes on as a fresh device with that state. From
 * then on a guest and the outside must see the same from both. Now and then a captured state is damaged: a fresh device
 * must refuse it with an error in words, or live with it.
 *
 * What a step may be and what counts as seen is the subject's; what a guest does never throws.
 */
import { isDeepStrictEqual } from 'node:util';
import { AssertionError, assert } from '../../src/base/assert.ts';
import { sizeMask } from '../../src/base/bits.ts';
import { VmmError } from '../../src/base/error.ts';
import { Prng } from '../../src/base/prng.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize, IoBus } from '../../src/bus/io-bus.ts';
import type { Coverage } from './coverage.ts';

/** A machine with what is fuzzed, and its outside. */
export interface Twin {
  /** In the order in which state is loaded. */
  readonly devices: readonly Device[];
  /** Puts fresh devices, not resumed, in the place of the old ones, which are paused. The outside stays. */
  rebuild(): void;
  /** What left the devices since the last call, as plain data. */
  observe(): unknown;
  /** Throws when something does not hold that always must. */
  check?(): void;
}

/** One step: performed on both twins; the result, plain data, is what the guest saw. */
export type Act<T> = (twin: T) => unknown;

/** What is fuzzed. */
export interface TwinSubject<T extends Twin> {
  /** A new machine, the same every time, not resumed. */
  build(): T;
  /** Draws a step. All chance is in here: the step itself is the same for both. */
  draw(random: Prng, twin: T, seen: Coverage): Act<T>;
  /** Notes the state that `twin` is in. */
  cover?(twin: T, seen: Coverage): void;
}

/** Mistakes that the fuzzer must find, made on purpose in the twin that is replaced. */
export interface Plant {
  /** Takes a captured state and spoils it. */
  spoil?(state: Record<string, unknown>, fresh: Record<string, unknown>): void;
  /** A step which goes wrong in a way that no device may. */
  misstep?(step: number): void;
}

/** A plant which forgets a field of the saved state: the fresh device keeps its own. */
export function forgets(field: string): Plant {
  return {
    spoil(state, fresh) {
      assert(!(field in fresh) === !(field in state), `there is a field ${field}`);
      if (field in state) state[field] = fresh[field];
    },
  };
}

/** Probability of a capture after a step. */
const CAPTURE = 0.02;
/** Probability that what was captured is damaged and tried as well. */
const DAMAGE = 0.2;
/** Steps on a machine whose state was damaged. */
const AFTER_DAMAGE = 12;

/** Runs `steps` steps from `seed`; throws on the first thing that must not happen. */
export function fuzzTwins<T extends Twin>(
  subject: TwinSubject<T>,
  seed: number,
  steps: number,
  seen: Coverage,
  plant?: Plant,
): void {
  const random = new Prng(seed);
  const whole = subject.build();
  const cut = subject.build();
  for (const twin of [whole, cut]) for (const device of twin.devices) device.resume();
  for (let step = 0; step < steps; step++) {
    try {
      const act = subject.draw(random, whole, seen);
      const saw = act(whole);
      plant?.misstep?.(step);
      same(saw, act(cut), 'a guest sees something else');
      if (step % 4 === 0) same(whole.observe(), cut.observe(), 'something else leaves');
      whole.check?.();
      cut.check?.();
      for (const twin of [whole, cut]) subject.cover?.(twin, seen);
      if (random.chance(0.005)) for (const twin of [whole, cut]) reset(twin);
      if (random.chance(CAPTURE)) {
        seen.hit('replaced');
        const states = capture(whole, cut);
        if (random.chance(DAMAGE)) damaged(subject, random, states, seen);
        replace(cut, states, plant);
        for (const device of whole.devices) device.resume();
        same(whole.observe(), cut.observe(), 'something else leaves after a restore');
        cut.check?.();
      }
    } catch (error) {
      throw new Error(`seed ${seed}, step ${step}: ${reasonOf(error)}`, { cause: error });
    }
  }
  seen.cases += steps;
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function same(a: unknown, b: unknown, what: string): void {
  if (a === b || isDeepStrictEqual(a, b)) return;
  throw new AssertionError(`${what} after a restore: ${textOf(a)} became ${textOf(b)}`);
}

function textOf(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 400 ? `${text.slice(0, 400)}...` : text;
}

function reset(twin: Twin): void {
  for (const device of twin.devices) device.reset();
}

/** Pauses both and takes the state of each device, which must be the same. */
function capture(whole: Twin, cut: Twin): Uint8Array[] {
  for (const twin of [whole, cut]) for (const device of twin.devices) device.pause();
  return whole.devices.map((device, i) => {
    const state = device.save();
    const payload = device.schema.encode(state);
    const other = cut.devices[i]!;
    if (Buffer.compare(payload, other.schema.encode(other.save())) !== 0) {
      const [a, b] = [textOf(state), textOf(other.save())];
      throw new AssertionError(`${device.id}: two saved states: ${a} and ${b}`);
    }
    return payload;
  });
}

/** Fresh devices take over `states`. */
function replace(twin: Twin, states: readonly Uint8Array[], plant?: Plant): void {
  twin.rebuild();
  for (const [i, device] of twin.devices.entries()) {
    const state = device.schema.decode(states[i]!) as Record<string, unknown>;
    plant?.spoil?.(state, device.save() as Record<string, unknown>);
    device.load(state);
  }
  for (const device of twin.devices) device.resume();
}

/** A machine of its own gets `states` with some bytes changed. */
function damaged<T extends Twin>(
  subject: TwinSubject<T>,
  random: Prng,
  states: readonly Uint8Array[],
  seen: Coverage,
): void {
  const target = random.below(states.length);
  const changed = states.map((state) => state.slice());
  const bytes = changed[target]!;
  for (let i = random.between(1, 3); i > 0 && bytes.length > 0; i--) {
    bytes[random.below(bytes.length)] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)]);
  }
  const twin = subject.build();
  try {
    for (const [i, device] of twin.devices.entries()) {
      device.load(device.schema.decode(changed[i]!));
    }
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    seen.hit('damaged state refused');
    return;
  }
  seen.hit('damaged state accepted');
  for (const device of twin.devices) device.resume();
  for (let i = 0; i < AFTER_DAMAGE; i++) {
    subject.draw(random, twin, seen)(twin);
    twin.check?.();
  }
  for (const device of twin.devices) device.pause();
  for (const device of twin.devices) device.schema.encode(device.save());
}

/** Values that a guest without manners writes. */
export function anyValue(random: Prng): number {
  return random.pick([
    0,
    1,
    0x80,
    0xff,
    0xffff,
    0x8000_0000,
    0xffff_ffff,
    1 << random.below(31),
    random.below(256),
    random.u32(),
  ]);
}

/** An access of any size near `address` on the bus that `busOf` names; what is read must fit its size. */
export function anyAccess<T>(
  random: Prng,
  busOf: (twin: T) => IoBus,
  address: number,
  value: number = anyValue(random),
): Act<T> {
  const size = random.pick<AccessSize>([1, 1, 2, 4]);
  return random.chance(0.5)
    ? (twin) => busOf(twin).write(address, size, (value & sizeMask(size)) >>> 0)
    : (twin) => readOf(busOf(twin), address, size);
}

/** A read whose result must fit its size. */
export function readOf(bus: IoBus, address: number, size: AccessSize): number {
  const value = bus.read(address, size);
  assert(Number.isInteger(value) && value >= 0 && value <= sizeMask(size), 'a read fits its size');
  return value;
}
