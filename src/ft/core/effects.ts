/**
 * Where the state machines put what has to be done. A machine pushes effects while it handles an event; its
 * owner takes them out and carries them out *in this order*, before it feeds the next event. Carrying one out
 * may feed the machine again: what that adds goes behind what is there.
 */
import { assert } from '../../base/assert.ts';
import { BoundedRing } from '../../base/ring.ts';

/** A bounded list of effects. */
export class EffectQueue<E> {
  readonly #ring: BoundedRing<E>;

  /** @param capacity more than any single event can cause; reaching it is a programmer error */
  constructor(capacity = 256) {
    this.#ring = new BoundedRing(capacity);
  }

  get length(): number {
    return this.#ring.length;
  }

  push(effect: E): void {
    assert(this.#ring.push(effect), 'effects are carried out before the next event');
  }

  /** The next effect to carry out. */
  shift(): E | undefined {
    return this.#ring.shift();
  }

  clear(): void {
    this.#ring.clear();
  }
}
