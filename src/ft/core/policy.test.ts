import { describe, expect, it } from 'vitest';
import { EpochPolicy, POLICY_DEFAULTS, SyncRounds } from './epoch-policy.ts';
import { Liveness } from './liveness.ts';

const MS = 1_000_000;

describe('EpochPolicy', () => {
  it('kemari: on the first output, not sooner than the gap, and when idle for long', () => {
    const p = new EpochPolicy({ ...POLICY_DEFAULTS, policy: 'kemari', gapMinNs: 2 * MS });
    p.captured(0);
    expect(p.due(1 * MS)).toBeUndefined();
    expect(p.nextNs(1 * MS)).toBe(1000 * MS);
    p.held(1 * MS);
    expect([p.due(1 * MS), p.nextNs(1 * MS)]).toEqual([undefined, 2 * MS]);
    expect(p.due(2 * MS)).toBe('output');
    p.captured(2 * MS);
    expect(p.due(500 * MS)).toBeUndefined();
    expect(p.due(1002 * MS)).toBe('interval');
  });

  it('periodic: by the clock, whatever is held', () => {
    const p = new EpochPolicy({ ...POLICY_DEFAULTS, policy: 'periodic' });
    p.captured(0);
    p.held(0);
    expect(p.due(19 * MS)).toBeUndefined();
    expect(p.due(20 * MS)).toBe('interval');
  });

  it('adaptive: the share of pauses bounds the rate, the interval bounds the delay', () => {
    const p = new EpochPolicy(POLICY_DEFAULTS);
    p.captured(0);
    p.measured(1 * MS, 10);
    p.held(0);
    expect(p.gapNs).toBe(9 * MS);
    expect([p.due(8 * MS), p.due(9 * MS)]).toEqual([undefined, 'output']);
    for (let i = 0; i < 50; i++) p.measured(10 * MS, 10);
    expect(p.gapNs).toBe(20 * MS);
    p.captured(9 * MS);
    expect(p.due(28 * MS)).toBeUndefined();
    expect(p.due(29 * MS)).toBe('interval');
  });

  it('lets the guest run at least as long as it stood still, however slow captures are', () => {
    for (const policy of ['kemari', 'periodic', 'adaptive'] as const) {
      const p = new EpochPolicy({ ...POLICY_DEFAULTS, policy });
      p.captured(0);
      p.measured(100 * MS, 10);
      p.held(0);
      expect([p.due(199 * MS), p.nextNs(0)]).toEqual([undefined, 200 * MS]);
      expect(p.due(200 * MS)).toBeDefined();
    }
  });

  it('commits at once when the tap is full or someone insists, and changes live', () => {
    const p = new EpochPolicy(POLICY_DEFAULTS);
    p.captured(0);
    p.tapFull();
    expect(p.due(0)).toBe('tap-full');
    p.captured(0);
    p.force();
    expect(p.due(0)).toBe('forced');
    p.captured(0);
    p.configure({ ...POLICY_DEFAULTS, policy: 'periodic', intervalNs: 5 * MS });
    expect(p.due(5 * MS)).toBe('interval');
    expect(() => p.configure({ ...POLICY_DEFAULTS, pauseShareMax: 0 })).toThrow();
  });

  it('asks for a light copy halfway, once per gap, when there is much to copy', () => {
    const p = new EpochPolicy(POLICY_DEFAULTS);
    p.captured(0);
    p.measured(1 * MS, 10);
    expect([p.preCopyDue(15 * MS), p.nextNs(0)]).toEqual([false, 20 * MS]);
    for (let i = 0; i < 50; i++) p.measured(1 * MS, 9000);
    expect([p.preCopyDue(9 * MS), p.nextNs(9 * MS)]).toEqual([false, 10 * MS]);
    expect([p.preCopyDue(10 * MS), p.preCopyDue(11 * MS)]).toEqual([true, false]);
    expect(p.nextNs(11 * MS)).toBe(20 * MS);
    // A held output brings the capture forward, and what goes ahead of it.
    p.captured(20 * MS);
    p.held(21 * MS);
    expect(p.nextNs(21 * MS)).toBe(24.5 * MS);
    const q = new EpochPolicy({ ...POLICY_DEFAULTS, policy: 'periodic' });
    q.captured(0);
    q.measured(1 * MS, 9000);
    expect(q.preCopyDue(15 * MS)).toBe(false);
  });

  it('lets the light copy be where the guest writes the same pages again, and tries it now and then', () => {
    const p = new EpochPolicy(POLICY_DEFAULTS);
    let now = 0;
    const tried: number[] = [];
    const run = (captures: number, again: number): number[] => {
      tried.length = 0;
      for (let i = 0; i < captures; i++) {
        const ahead = p.preCopyDue(now + 15 * MS);
        if (ahead) tried.push(i);
        now += 20 * MS;
        p.captured(now);
        p.measured(1 * MS, 5000, ahead ? { pages: 1000, again } : undefined);
      }
      return tried;
    };
    run(1, 0);
    expect(run(5, 500)).toEqual([0, 1, 2, 3, 4]);
    expect(run(200, 501)).toEqual([0, 3, 8, 17, 34, 67, 132, 197]);
    expect(run(100, 100).length).toBeGreaterThan(10);
  });
});

describe('SyncRounds', () => {
  it('goes on live while the rest takes longer than the downtime, then stops', () => {
    const s = new SyncRounds({ downtimeMaxNs: 30 * MS, roundsMax: 4 });
    expect(s.next(1000)).toBe('round');
    s.roundDone(1_000_000, 1000 * MS);
    expect(s.next(100_000)).toBe('round');
    expect(s.next(29_000)).toBe('commit');
    for (let i = 0; i < 3; i++) s.roundDone(1_000_000, 1000 * MS);
    expect(s.next(100_000)).toBe('commit-late');
    expect(s.next(0)).toBe('commit');
  });
});

describe('Liveness', () => {
  it('hints after the deadline, and does not blame the peer for its own sleep', () => {
    const l = new Liveness({ intervalNs: 100, deadlineNs: 1000 });
    l.start(0);
    expect([l.sendDue(0), l.sendDue(99), l.sendDue(100)]).toEqual([true, false, true]);
    for (let t = 0; t < 1000; t += 100) expect(l.silent(t)).toBe(false);
    expect(l.silent(1000)).toBe(true);
    l.heard(1000);
    expect(l.silent(1100)).toBe(false);
    expect(l.silent(90_000)).toBe(false);
    for (let t = 90_100; t < 90_500; t += 100) l.silent(t);
    expect(l.silent(91_000)).toBe(true);
  });
});
