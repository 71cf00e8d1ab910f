/**
 * The statistics registers of the 82540EM (8254x SDM, 13.7): 32-bit counters clear when read and stick at all ones;
 * octet counters are pairs, cleared by reading the upper half. Collisions, line errors and flow control never happen
 * here: their registers read 0.
 */
import { ETH, STAT } from './spec.ts';

const STICK = 0xffffffff;

function isPair(register: number): boolean {
  return (
    (register & ~4) === STAT.gorcl ||
    (register & ~4) === STAT.gotcl ||
    (register & ~4) === STAT.torl ||
    (register & ~4) === STAT.totl
  );
}

/** Index of the size class of a frame of `wire` bytes with FCS (13.7.21-26, 13.7.51-56). */
function sizeClass(wire: number): number {
  return wire <= 64 ? 0 : wire >= 1024 ? 5 : 32 - Math.clz32(wire) - 6;
}

export class Statistics {
  readonly #words: Uint32Array;

  constructor(words: Uint32Array) {
    this.#words = words;
  }

  /** Reads a counter as software does. */
  read(register: number): number {
    const word = register >>> 2;
    const value = this.#words[word]!;
    if (!isPair(register)) this.#words[word] = 0;
    else if ((register & 4) !== 0) {
      this.#words[word] = 0;
      this.#words[word - 1] = 0;
    }
    return value;
  }

  /** Adds `n` to a 32-bit counter. */
  add(register: number, n: number): void {
    const word = register >>> 2;
    const sum = this.#words[word]! + n;
    this.#words[word] = sum > STICK ? STICK : sum;
  }

  /** Adds `n` to the pair that starts at `low`. */
  addOctets(low: number, n: number): void {
    const word = low >>> 2;
    const sum = this.#words[word]! + n;
    if (sum <= STICK) {
      this.#words[word] = sum;
      return;
    }
    if (this.#words[word + 1] === STICK) {
      this.#words[word] = STICK;
      return;
    }
    this.#words[word] = sum - STICK - 1;
    this.#words[word + 1]!++;
  }

  /** Counts `frames` transmitted frames of `octets` bytes in all (FCS not included) to the address at `at`. */
  transmitted(view: DataView, at: number, octets: number, frames: number): void {
    const wire = octets + ETH.fcs * frames;
    this.add(STAT.tpt, frames);
    this.add(STAT.gptc, frames);
    this.addOctets(STAT.totl, wire);
    this.addOctets(STAT.gotcl, wire);
    this.add(STAT.ptc64 + 4 * sizeClass(Math.ceil(wire / frames)), frames);
    this.#group(view, at, STAT.mptc, STAT.bptc, frames);
  }

  /** Counts a received frame of `length` bytes (FCS not included) that passed the filters. */
  received(view: DataView, at: number, length: number): void {
    const wire = length + ETH.fcs;
    this.add(STAT.gprc, 1);
    this.addOctets(STAT.gorcl, wire);
    this.add(STAT.prc64 + 4 * sizeClass(wire), 1);
    this.#group(view, at, STAT.mprc, STAT.bprc, 1);
  }

  #group(view: DataView, at: number, multicast: number, broadcast: number, n: number): void {
    if ((view.getUint8(at) & 1) === 0) return;
    const all = view.getUint32(at) === 0xffffffff && view.getUint16(at + 4) === 0xffff;
    this.add(all ? broadcast : multicast, n);
  }
}
