import { describe, expect, it } from 'vitest';
import type { ArbiterAnswer, ArbiterRequest } from './failover.ts';
import {
  LeaseArbiter,
  type LeaseConfig,
  type StoreState,
  type StoreWrite,
} from './lease-arbiter.ts';

const LEASE = 1000;
const MARGIN = 200;

/** A store that answers when it is told to. */
class Store {
  revision = 0;
  state: StoreState = { recordRevision: 0, record: undefined, ownerRevision: 0, owner: undefined };

  swap(write: StoreWrite): number {
    const { state } = this;
    if (write.recordRevision !== state.recordRevision) return 0;
    if (write.ownerRevision !== state.ownerRevision) return 0;
    const revision = ++this.revision;
    this.state = {
      record: write.record ?? state.record,
      recordRevision: write.record === undefined ? state.recordRevision : revision,
      owner: write.owner,
      ownerRevision: write.owner === undefined ? 0 : revision,
    };
    return revision;
  }
}

/** One process: its arbiter, and what it has heard. */
class Side {
  readonly arbiter: LeaseArbiter;
  readonly store: Store;
  answers: ArbiterAnswer[] = [];
  heard: string[] = [];
  #ticket = 0;

  constructor(store: Store, token: string, change: Partial<LeaseConfig> = {}) {
    this.store = store;
    const config = { token, leaseNs: LEASE, marginNs: MARGIN, beatNs: 300, retryNs: 50 };
    this.arbiter = new LeaseArbiter({ ...config, ...change });
  }

  /** Carries out effects; `lose`: calls reach the store ('answer') or do not ('call'), and fail at `now`. */
  run(now: number, lose?: 'call' | 'answer'): this {
    const { out } = this.arbiter;
    for (let e = out.shift(); e !== undefined; e = out.shift()) {
      if (e.type === 'answer') this.answers.push(e.answer);
      else if (e.type === 'read') {
        if (lose !== undefined) this.arbiter.failed(e.call, 'no answer', now);
        else this.arbiter.state(e.call, this.store.state, now);
      } else if (e.type === 'write') {
        const revision = lose === 'call' ? 0 : this.store.swap(e.write);
        if (lose !== undefined) this.arbiter.failed(e.call, 'no answer', now);
        else if (revision === 0) this.arbiter.state(e.call, this.store.state, now);
        else this.arbiter.written(e.call, revision, now);
      } else if (e.type === 'began' || e.type === 'superseded') {
        this.heard.push(`${e.type} ${e.generation}`);
      } else this.heard.push(e.type === 'trouble' ? e.sentence : e.type);
    }
    return this;
  }

  ask(request: ArbiterRequest, now: number, lose?: 'call' | 'answer'): ArbiterAnswer | undefined {
    this.arbiter.request(++this.#ticket, request, now);
    this.run(now, lose);
    return this.answers.pop();
  }
}

function begun(): { store: Store; a: Side; b: Side } {
  const store = new Store();
  const a = new Side(store, 'a');
  a.arbiter.begin(0);
  a.run(0);
  expect(a.ask({ kind: 'record', generation: 1, inSync: 'b1' }, 10)?.result).toBe('ok');
  return { store, a, b: new Side(store, 'b') };
}

const ACQUIRE = { kind: 'acquire', generation: 1, instance: 'b1' } as const;

describe('LeaseArbiter', () => {
  it('counts the lease from the sending of the beat, less the margin', () => {
    const store = new Store();
    const a = new Side(store, 'a');
    a.arbiter.begin(0);
    a.run(0);
    expect(a.arbiter.untilNs).toBe(LEASE - MARGIN);
    a.arbiter.tick(300);
    const e = a.arbiter.out.shift();
    expect(e?.type).toBe('write');
    if (e?.type === 'write') a.arbiter.written(e.call, store.swap(e.write), 700);
    expect(a.arbiter.untilNs).toBe(300 + LEASE - MARGIN);
    expect(store.state.owner?.beat).toBe(2);
  });

  it('grants the guest only to the standby on record, after a whole lease without a beat', () => {
    const { a, b } = begun();
    expect(b.ask({ ...ACQUIRE, instance: 'c1' }, 20)?.sentence).toMatch(/not on record/);
    expect(b.ask({ ...ACQUIRE, generation: 2 }, 20)).toMatchObject({ generation: 1 });
    expect(b.ask(ACQUIRE, 100)?.sentence).toMatch(/has not run out/);
    expect(b.ask(ACQUIRE, 1000)?.result).toBe('refused');
    a.arbiter.tick(1010);
    a.run(1010);
    // The beat begins the wait anew.
    expect(b.ask(ACQUIRE, 1200)?.result).toBe('refused');
    expect(b.ask(ACQUIRE, 2199)?.result).toBe('refused');
    expect(b.ask(ACQUIRE, 2200)).toMatchObject({ result: 'ok', generation: 2 });
    expect(b.arbiter.untilNs).toBe(2200 + LEASE - MARGIN);
    a.arbiter.tick(2300);
    a.run(2300);
    expect(a.heard).toContain('superseded 2');
    expect([a.arbiter.holds, a.arbiter.untilNs]).toEqual([0, Number.NEGATIVE_INFINITY]);
    expect(a.ask({ kind: 'record', generation: 1, inSync: '' }, 2400)).toMatchObject({
      result: 'refused',
      generation: 2,
    });
  });

  it('lets a beat that was on its way win over the takeover, or lose, but not both', () => {
    const { store, a, b } = begun();
    b.ask(ACQUIRE, 100);
    b.arbiter.request(9, ACQUIRE, 1100);
    const read = b.arbiter.out.shift();
    if (read?.type === 'read') b.arbiter.state(read.call, store.state, 1100);
    // Between the standby's read and its transaction the beat arrives.
    a.arbiter.tick(1100);
    a.run(1100);
    b.run(1100);
    expect(b.answers.pop()).toMatchObject({ result: 'refused', generation: 1 });
    expect(a.arbiter.untilNs).toBe(1100 + LEASE - MARGIN);
  });

  it('finds what an answer that was lost had done', () => {
    const store = new Store();
    const a = new Side(store, 'a');
    a.arbiter.begin(0);
    a.run(0, 'answer');
    for (let now = 50; a.heard.length < 4 && now < 500; now += 50) {
      a.arbiter.tick(now);
      a.run(now, now < 150 ? 'answer' : undefined);
    }
    expect(a.heard).toContain('began 1');
    expect(store.state.record).toMatchObject({ generation: 1, by: 'a' });
    a.ask({ kind: 'record', generation: 1, inSync: 'b1' }, 600);
    const b = new Side(store, 'b');
    b.ask(ACQUIRE, 700);
    b.arbiter.request(7, ACQUIRE, 1800);
    const read = b.arbiter.out.shift();
    if (read?.type === 'read') b.arbiter.state(read.call, store.state, 1800);
    b.run(1800, 'answer');
    expect(b.answers.pop()).toMatchObject({ result: 'unreachable', generation: 0 });
    expect(b.arbiter.untilNs).toBe(Number.NEGATIVE_INFINITY);
    expect(b.ask(ACQUIRE, 1900)).toMatchObject({ result: 'ok', generation: 2 });
    expect(b.arbiter.untilNs).toBe(1900 + LEASE - MARGIN);
  });

  it('writes a record even where it says that already, so that a late earlier one has no effect', () => {
    const { store, a } = begun();
    a.arbiter.request(5, { kind: 'record', generation: 1, inSync: 'c1' }, 100);
    const late = a.arbiter.out.shift();
    if (late?.type === 'write') a.arbiter.failed(late.call, 'no answer', 150);
    a.run(150);
    expect(a.answers.pop()?.result).toBe('unreachable');
    expect(a.ask({ kind: 'record', generation: 1, inSync: 'b1' }, 200)?.result).toBe('ok');
    if (late?.type === 'write') expect(store.swap(late.write)).toBe(0);
    expect(store.state.record?.inSync).toBe('b1');
  });

  it('gets its lease back when the store does, where nobody took the guest', () => {
    const { a } = begun();
    for (let now = 310; now < 2000; now += 50) {
      a.arbiter.tick(now);
      a.run(now, 'call');
    }
    expect(a.arbiter.untilNs).toBe(10 + LEASE - MARGIN);
    a.arbiter.tick(2010);
    a.run(2010);
    expect(a.arbiter.untilNs).toBe(2010 + LEASE - MARGIN);
    expect(a.heard.slice(-3)).toEqual(['no answer', '', 'lease']);
  });

  it('hands over at once, and takes back where nobody has it', () => {
    const { a, b } = begun();
    expect(a.ask({ kind: 'hand', generation: 1 }, 100)?.result).toBe('ok');
    expect([a.arbiter.holds, a.arbiter.untilNs]).toEqual([0, Number.NEGATIVE_INFINITY]);
    expect(a.ask({ kind: 'hand', generation: 1 }, 110)?.result).toBe('ok');
    expect(a.ask({ kind: 'record', generation: 1, inSync: 'b1' }, 120)?.result).toBe('ok');
    expect(b.ask(ACQUIRE, 130)?.result).toBe('refused');
    a.ask({ kind: 'hand', generation: 1 }, 140);
    expect(b.ask(ACQUIRE, 150)).toMatchObject({ result: 'ok', generation: 2 });
    expect(a.ask({ kind: 'record', generation: 1, inSync: '' }, 160)).toMatchObject({
      result: 'refused',
      generation: 2,
    });
  });

  it('waits for a lease also where somebody deleted the owner key', () => {
    const { store, b } = begun();
    store.state = { ...store.state, owner: undefined, ownerRevision: 0 };
    expect(b.ask(ACQUIRE, 100)?.result).toBe('refused');
    expect(b.ask(ACQUIRE, 1099)?.result).toBe('refused');
    expect(b.ask(ACQUIRE, 1100)?.result).toBe('ok');
  });

  it('starts a guest where the last run gave up, or has been silent for a lease', () => {
    const { store, a } = begun();
    const second = new Side(store, 'second');
    second.arbiter.begin(500);
    second.run(500);
    second.arbiter.tick(1499);
    second.run(1499);
    expect(second.heard.some((line) => /runs this guest/.test(line))).toBe(true);
    expect(second.heard).not.toContain('began 2');
    a.arbiter.release(1500);
    a.run(1500);
    expect(a.heard).toContain('released');
    second.arbiter.tick(1550);
    second.run(1550);
    expect(second.heard).toContain('began 2');
    const third = new Side(store, 'third');
    third.arbiter.begin(2000);
    third.run(2000);
    for (let now = 2050; now <= 3100; now += 50) {
      third.arbiter.tick(now);
      third.run(now);
    }
    expect(third.heard).toContain('began 3');
    second.arbiter.tick(3200);
    second.run(3200);
    expect(second.heard).toContain('superseded 3');
  });

  it('of two that begin or acquire at the same instant only one does', () => {
    const store = new Store();
    const sides = [new Side(store, 'a'), new Side(store, 'b')];
    for (const side of sides) side.arbiter.begin(0);
    for (const side of sides) {
      const e = side.arbiter.out.shift();
      if (e?.type === 'read') side.arbiter.state(e.call, store.state, 0);
    }
    for (const side of sides) side.run(0);
    expect(sides.filter((side) => side.heard.includes('began 1'))).toHaveLength(1);
  });

  it('ignores answers to questions of before', () => {
    const { a } = begun();
    a.arbiter.written(1, 99, 50);
    a.arbiter.state(
      2,
      { recordRevision: 7, record: undefined, ownerRevision: 7, owner: undefined },
      50,
    );
    a.arbiter.failed(3, 'late', 50);
    expect(a.arbiter.out.length).toBe(0);
    expect(a.arbiter.untilNs).toBe(10 + LEASE - MARGIN);
  });
});
