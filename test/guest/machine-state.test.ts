/**
 * Capture -> fresh machine -> restore -> continue, at arbitrary instants: a guest that checks its own registers, AVX
 * state, timers and memory must finish with the console that an uninterrupted run prints.
 */
import { afterAll, describe, expect, it } from 'vitest';
import { Prng } from '../../src/base/prng.ts';
import { SLOT_WORD } from '../../src/kvm/api.ts';
import { encodeMachineState } from '../../src/machine/machine-state.ts';
import type { Outcome } from '../../src/machine/outcome.ts';
import {
  type GuestOptions,
  loadInto,
  makeMachine,
  plain,
  runGuest,
  type Saved,
  saveOf,
  sleep,
  type TestMachine,
} from './machine-guest.ts';

const seed = Number(process.env.TSVMM_SEED ?? 20261121);
const random = new Prng(seed);
const fraction = (): number => random.below(1_000_000) / 1e6;
afterAll(() => process.stdout.write(`machine-state: TSVMM_SEED=${seed}\n`));

interface Relay {
  readonly outcome: Outcome;
  readonly text: string;
  /** How many machines the guest was moved through. */
  readonly moves: number;
}

/** Runs a guest that is moved to a fresh machine after each of `delays` (ms) of running, then left alone. */
async function relay(
  guest: string,
  options: GuestOptions,
  delays: readonly number[],
): Promise<Relay> {
  let text = '';
  let current: TestMachine = makeMachine(guest, options);
  let moves = 0;
  try {
    current.machine.boot();
    for (const delay of delays) {
      const { machine, console } = current;
      machine.start();
      const ended = await Promise.race([machine.finished, sleep(delay).then(() => undefined)]);
      if (ended !== undefined) return { outcome: ended, text: plain(text + console.text), moves };
      machine.pause();
      if (machine.phase !== 'paused') break; // It ended while it was being stopped.
      const saved = saveOf(machine);
      text += console.drain();
      machine.dispose();
      current = makeMachine(guest, options);
      loadInto(current.machine, saved);
      moves++;
    }
    if (current.machine.phase === 'created') current.machine.start();
    const outcome = await current.machine.finished;
    return { outcome, text: plain(text + current.console.text), moves };
  } finally {
    current.machine.dispose();
  }
}

/** `count` delays that together are about `share` of `wholeMs`, each with a random length. */
function delays(count: number, wholeMs: number, share = 0.8): number[] {
  const weights = Array.from({ length: count }, () => 0.05 + fraction());
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => (weight / sum) * wholeMs * share);
}

/** A real KVM, on a slow CPU: the same moves, and fewer of them. */
const inLab = process.env.TSVMM_LAB === '1';

describe('a guest moved to fresh machines at arbitrary instants', () => {
  // The software KVM has AVX and does not say so; a real one says what it has (the lab's has none: SSE and x87 remain).
  const avx = inLab ? 'auto' : 'force';
  const append = `iters=${inLab ? 60 : 400} every=20 spins=20000 mem=2M avx=${avx}`;

  it('keeps registers, AVX, timers and memory (one move each, early and late)', async () => {
    const whole = await runGuest('state', { append });
    expect(whole.outcome).toEqual({ kind: 'power-off' });
    if (avx === 'force') expect(whole.text).toContain('avx 1');
    let moves = 0;
    const tries = inLab ? 4 : 8;
    for (let i = 0; i < tries; i++) {
      const at = fraction() * whole.ms;
      const moved = await relay('state', { append }, [at]);
      expect(moved, `moved after ${at} ms`).toMatchObject({
        outcome: { kind: 'power-off' },
        text: whole.text,
      });
      moves += moved.moves;
    }
    expect(moves).toBeGreaterThan(inLab ? 0 : tries / 2);
  });

  it('keeps them over many moves of one run', async () => {
    const whole = await runGuest('state', { append });
    const moved = await relay('state', { append }, delays(inLab ? 10 : 25, whole.ms));
    expect(moved.moves).toBeGreaterThan(inLab ? 4 : 10);
    expect(moved).toMatchObject({ outcome: { kind: 'power-off' }, text: whole.text });
  });

  it('keeps two CPUs together: atomics, lock, IPIs while halted, timers of their own', async () => {
    const work = inLab ? 'incs=400000 rounds=300 ticks=50' : 'incs=2000000 rounds=3000 ticks=200';
    const options = { append: `cpus=2 ${work}`, cpus: 2 };
    const whole = await runGuest('smp', options);
    expect(whole.outcome).toEqual({ kind: 'power-off' });
    let moves = 0;
    const tries = inLab ? 2 : 4;
    for (let i = 0; i < tries; i++) {
      const moved = await relay('smp', options, delays(5, whole.ms));
      expect(moved).toMatchObject({ outcome: { kind: 'power-off' }, text: whole.text });
      moves += moved.moves;
    }
    expect(moves).toBeGreaterThan(tries * 2);
  });
});

const PORT = 0xe9;
const MASKS: Readonly<Record<number, number>> = { 1: 0xff, 2: 0xffff, 4: 0xffff_ffff };

/**
 * The device at the pio guest's port: remembers values written and read. At the first value of OUT exit number
 * `cutAt` it takes the state instead, with that OUT open, and wants no more.
 */
class Tape {
  readonly written: string[] = [];
  readonly read: string[] = [];
  saved: Saved | undefined;
  exits = 0;
  #left = 0;
  #reads = 0;
  readonly #cutAt: number;

  constructor(cutAt: number, from?: Tape) {
    this.#cutAt = cutAt;
    if (from === undefined) return;
    this.written.push(...from.written);
    this.read.push(...from.read);
    this.#reads = from.#reads;
    this.exits = from.exits;
  }

  plugInto({ machine }: TestMachine): void {
    const vm = machine.vm;
    machine.board.ports.map(PORT, 4, {
      name: 'tape',
      read: (_offset, size) => {
        const value = ((this.#reads++ * 0x0123_4567 + 0x89ab_cdef) & MASKS[size]!) >>> 0;
        this.read.push(`${size}:${value}`);
        return value;
      },
      write: (_offset, size, value) => {
        if (this.saved !== undefined) return; // The rest of the items of the OUT that stays open.
        if (this.#left === 0) {
          const vcpu = vm.openExit(0) !== 0 && ownExit(vm.slots[0]!.words) ? 0 : 1;
          this.#left = vm.slots[vcpu]!.words[SLOT_WORD.count]!;
          if (this.exits++ === this.#cutAt) {
            this.#cut(machine);
            return;
          }
        }
        this.#left--;
        this.written.push(`${size}:${value}`);
      },
    });
  }

  #cut(machine: TestMachine['machine']): void {
    const { vm, board, clock, config } = machine;
    vm.pauseAllOpen();
    vm.drainCoalesced();
    vm.drainIoEvents();
    board.pause();
    clock.pause();
    this.exits--;
    this.saved = {
      container: encodeMachineState(config, clock.nowNs(), vm.captureState(), board.save()),
      ranges: machine.memory.ranges.map(({ bytes }) => bytes.slice()),
    };
    machine.deaf = true;
    machine.stop();
    vm.resumeAll();
  }
}

function ownExit(words: Uint32Array): boolean {
  return words[SLOT_WORD.addressLo] === PORT;
}

describe('a guest moved while a port write is open', () => {
  async function run(options: GuestOptions, cuts: readonly number[]) {
    let text = '';
    let tape: Tape | undefined;
    let saved: Saved | undefined;
    for (const cutAt of [...cuts, Number.POSITIVE_INFINITY]) {
      const current = makeMachine('pio', options);
      try {
        tape = new Tape(cutAt, tape);
        tape.plugInto(current);
        if (saved === undefined) current.machine.boot();
        else loadInto(current.machine, saved);
        current.machine.start();
        const outcome = await current.machine.finished;
        text += plain(current.console.text);
        if (tape.saved === undefined) {
          const { written, read, exits } = tape;
          return { outcome, text, written, read, exits };
        }
        saved = tape.saved;
      } finally {
        current.machine.dispose();
      }
    }
    throw new Error('unreachable: the last run has no cut');
  }

  it.each([
    ['one CPU in 64-, 32- and 16-bit code', { append: 'modes=64,32,16', memoryMib: 4 }],
    ['a second CPU in real and protected mode', { append: 'modes=ap', cpus: 2, memoryMib: 4 }],
  ])('%s: every byte reaches the port exactly once', async (_name, options) => {
    const whole = await run(options, []);
    expect(whole.outcome).toEqual({ kind: 'power-off' });
    expect(whole.text).toMatch(/pio: end\n$/);
    expect(whole.exits).toBeGreaterThan(20);
    // Every fifth OUT is the open one; which of the five depends on the seed.
    const cuts: number[] = [];
    for (let at = random.below(5); at < whole.exits; at += 5) cuts.push(at);
    expect(await run(options, cuts)).toEqual(whole);
  });
});
