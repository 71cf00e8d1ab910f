/** Simulated time: a heap of things that will happen, in order of their instants, then of their making. */

interface Entry {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

export class Schedule {
  now = 0;
  /** Promises have settled: what waits for them has to run before anything else happens. */
  unsettled = false;
  readonly #heap: Entry[] = [];
  #order = 0;

  /** `run` happens `delay` from now. */
  after(delay: number, run: () => void): void {
    const heap = this.#heap;
    const entry = { at: this.now + Math.max(0, delay), order: this.#order++, run };
    let i = heap.length;
    heap.push(entry);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(entry, heap[parent]!)) break;
      heap[i] = heap[parent]!;
      i = parent;
    }
    heap[i] = entry;
  }

  /**
   * Runs what is due until `end`, or until `stop` says so.
   * @returns false when it has to be called again, as soon as all promises have been heard
   */
  runUntil(end: number, stop: () => boolean): boolean {
    while (this.#heap.length > 0 && this.#heap[0]!.at <= end) {
      const entry = this.#pop();
      this.now = entry.at;
      entry.run();
      if (stop()) return true;
      if (this.unsettled) {
        this.unsettled = false;
        return false;
      }
    }
    this.now = end;
    return true;
  }

  #pop(): Entry {
    const heap = this.#heap;
    const top = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (!before(heap[child]!, last)) break;
      heap[i] = heap[child]!;
      i = child;
    }
    heap[i] = last;
    return top;
  }
}

function before(a: Entry, b: Entry): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
