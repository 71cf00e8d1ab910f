/**
 * What must hold (R1-R5, R7), watched all the time. A checker knows more than any participant: it is told the truth
 * about every capture, every commit and every output, and says {@link Violation} at the first thing that
 * contradicts a promise.
 */
import {
  AMBIGUOUS,
  BLOCKS,
  blockSignature,
  FAILED,
  FRAME,
  type Ghost,
  type SimGuest,
} from './guest.ts';

/** A broken promise. */
export class Violation extends Error {
  override readonly name = 'Violation';
  /** R1..R7, or P for the rules of the protocol itself. */
  readonly promise: string;

  constructor(promise: string, message: string) {
    super(`${promise}: ${message}`);
    this.promise = promise;
  }
}

function same(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

/** What the checker needs to know about whoever shows something to the outside. */
export interface Shower {
  readonly name: string;
  readonly generation: number;
  /** Whether outputs leave without an ACK. */
  readonly passing: boolean;
}

export class Checker {
  /** Truth about captures: by generation and id. */
  readonly #ghosts = new Map<string, Ghost>();
  readonly #ackedIds = new Set<string>();
  /** Most guest steps that a standby was found to hold, by generation. */
  readonly #heldSteps = new Map<number, number>();
  /** Highest generation that has run. */
  #generation = 0;
  #endedGeneration = 0;
  /** Who is on the arbiter's record as in sync, where there is an arbiter. */
  recordedInSync: (() => string) | undefined;
  /** Releases after another generation started may be repetitions of what was acknowledged (no arbiter). */
  lateFramesAllowed = false;
  outputs = 0;

  capture(generation: number, id: number, ghost: Ghost): void {
    this.#ghosts.set(`${generation}/${id}`, ghost);
  }

  ghost(generation: number, id: number): Ghost | undefined {
    return this.#ghosts.get(`${generation}/${id}`);
  }

  /** A standby says ACK for `id`; `held` is what it would load. */
  acked(generation: number, id: number, held: Ghost | undefined): void {
    const truth = this.ghost(generation, id);
    if (truth === undefined)
      throw new Violation('R4', `ACK of ${generation}/${id}, never captured`);
    this.#same('R1', `ACK of ${generation}/${id}`, truth, held);
    if (truth.blocks !== undefined) this.#ackedIds.add(`${generation}/${id}`);
    const before = this.#heldSteps.get(generation) ?? 0;
    this.#heldSteps.set(generation, Math.max(before, truth.steps));
  }

  /** What a standby's guest holds right now, with `id` applied. */
  standing(generation: number, id: number, held: Ghost): void {
    const truth = this.ghost(generation, id);
    if (truth === undefined) return; // the first copy: incomplete by nature
    this.#same('R4', `state ${generation}/${id}`, truth, held);
  }

  #same(promise: string, what: string, truth: Ghost, held: Ghost | undefined): void {
    const equal =
      held !== undefined &&
      truth.memoryHash === held.memoryHash &&
      same(truth.regs, held.regs) &&
      same(truth.nic, held.nic) &&
      same(truth.disk, held.disk);
    if (equal) return;
    const [a, b] = [JSON.stringify(truth), JSON.stringify(held)];
    throw new Violation(promise, `${what} is not the captured state: ${a} but ${b}`);
  }

  /** What a host's copies of the disks hold with epoch `id` applied, and nothing behind it. */
  disks(generation: number, id: number, held: readonly number[], what: string): void {
    // A first copy has an id of its own, which no epoch was acknowledged under: it is on its way to its first one.
    if (!this.#ackedIds.has(`${generation}/${id}`)) return;
    const truth = this.ghost(generation, id)!.blocks!;
    for (let block = 0; block < BLOCKS; block++) {
      if (truth[block] === FAILED || truth[block] === held[block]) continue;
      throw new Violation(
        'R4',
        `disks ${what} at ${generation}/${id}: block ${block} has ${held[block]}, not ${truth[block]} as at the capture`,
      );
    }
  }

  /** What the guest was told of its disks and what is on them: `blocks` as in its ghost. */
  guestKnows(guest: SimGuest, blocks: readonly number[]): void {
    const { incarnation } = guest;
    for (let block = 0; block < BLOCKS; block++) {
      const known = guest.known(block);
      if (blocks[block] === FAILED || known === AMBIGUOUS) continue;
      const expected = known === 0 ? 0 : blockSignature(incarnation, block, known);
      if (blocks[block] === expected) continue;
      throw new Violation(
        'R2',
        `the guest wrote number ${known} to block ${block}, where ${blocks[block]} is instead of ${expected}`,
      );
    }
  }

  /** A guest starts to run with outputs. */
  running(name: string, generation: number, complete: boolean): void {
    if (!complete) throw new Violation('R3', `${name} runs without a complete state`);
    if (generation <= this.#generation) {
      throw new Violation('R3', `${name} runs generation ${generation} after ${this.#generation}`);
    }
    if (this.#endedGeneration !== 0 && this.#endedGeneration === generation - 1) {
      throw new Violation('R3', `${name} runs a guest that has ended`);
    }
    this.#generation = generation;
  }

  /** The guest of `generation` has ended and said so. */
  ended(generation: number): void {
    this.#endedGeneration = generation;
  }

  /**
   * Something shows itself to the outside that the guest made at `step`.
   * @param early it was on its way before the first capture, so every state that a standby can have contains it
   */
  output(who: Shower, what: string, step: number, early = false): void {
    this.outputs++;
    const held = this.#heldSteps.get(who.generation) ?? -1;
    if (who.generation !== this.#generation) {
      const repeated = this.lateFramesAllowed && what === 'frame' && !who.passing && held >= step;
      if (!repeated) {
        throw new Violation(
          'R3',
          `${who.name} shows a ${what} of generation ${who.generation}, ${this.#generation} runs`,
        );
      }
    }
    if (early) return;
    if (who.passing) {
      const inSync = this.recordedInSync?.() ?? '';
      if (inSync !== '') {
        throw new Violation(
          'R3',
          `${who.name} shows an unprotected ${what} while ${inSync} may take over`,
        );
      }
    } else if (held < step) {
      throw new Violation(
        'R1',
        `${who.name} shows a ${what} of step ${step}; the peer holds ${held}`,
      );
    }
  }

  /** A bound. */
  bound(what: string, value: number, max: number): void {
    if (value > max) throw new Violation('R5', `${what}: ${value} of ${max}`);
  }
}

/** The client's view: requests it makes one after the other, answers and beacons it sees. */
export class OutsideView {
  #incarnation = 0;
  /** The request waiting for its answer. */
  request = 1;
  readonly #replies = new Map<number, number>();
  readonly #beacons: number[] = [];
  repeated = 0;
  answered = 0;

  /** A guest is started from scratch: whatever came before is void. */
  restart(incarnation: number): void {
    this.#incarnation = incarnation;
    this.request = 1;
    this.#replies.clear();
    this.#beacons.length = 0;
  }

  /**
   * A frame arrives.
   * @returns the request that it answers for the first time, or 0
   */
  frame(frame: Uint32Array): number {
    const [type, incarnation, n, hash] = frame as unknown as [number, number, number, number];
    if (incarnation !== this.#incarnation) return 0;
    if (type === FRAME.lost) {
      throw new Violation('R2', `the guest has forgotten: request ${n} meets counter ${hash}`);
    }
    if (type === FRAME.beacon) {
      const seen = this.#beacons.length;
      if (n > seen + 1) throw new Violation('R2', `beacon ${n} after ${seen}: one was lost`);
      if (n <= seen) {
        this.repeated++;
        if (this.#beacons[n - 1] !== hash)
          throw new Violation('R2', `beacon ${n} has two contents`);
      } else this.#beacons.push(hash);
      return 0;
    }
    const before = this.#replies.get(n);
    if (before !== undefined && before !== hash) {
      throw new Violation('R2', `answer ${n} has two contents`);
    }
    if (n > this.request) throw new Violation('R2', `answer ${n} to a question never asked`);
    if (before !== undefined) {
      this.repeated++;
      return 0;
    }
    this.#replies.set(n, hash);
    this.answered++;
    this.request = n + 1;
    return n;
  }
}
