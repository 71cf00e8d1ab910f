import { describe, expect, it } from 'vitest';
import { MemoryLog, silentLog } from '../base/log.ts';
import { HostClock, type TimeSource } from './host-clock.ts';

/** A host whose time the test moves; its one timer fires when its instant is reached. */
function hostTime() {
  const state = { now: 1e9, deadline: undefined as number | undefined, closed: false, armings: 0 };
  let fire = (): void => {};
  const source: TimeSource = {
    monotonicNs: () => state.now,
    wallNs: () => 1.7e18 + state.now,
    timer(callback) {
      fire = callback;
      return {
        arm(deadlineNs) {
          state.deadline = deadlineNs;
          state.armings++;
        },
        cancel() {
          state.deadline = undefined;
        },
        close() {
          state.deadline = undefined;
          state.closed = true;
        },
      };
    },
  };
  const advance = (ns: number): void => {
    const end = state.now + ns;
    while (state.deadline !== undefined && state.deadline <= end) {
      state.now = Math.max(state.now, state.deadline);
      state.deadline = undefined;
      fire();
    }
    state.now = end;
  };
  return { state, source, advance };
}

describe('the clock of a machine', () => {
  it('stands still before the start and in every pause', () => {
    const { source, advance } = hostTime();
    const clock = new HostClock(source, silentLog);
    advance(500);
    expect(clock.nowNs()).toBe(0);
    clock.resume();
    advance(100);
    expect(clock.nowNs()).toBe(100);
    clock.pause();
    clock.pause();
    advance(1e12);
    expect(clock.nowNs()).toBe(100);
    clock.resume();
    clock.resume();
    advance(11);
    expect(clock.nowNs()).toBe(111);
  });

  it('goes on from a saved instant', () => {
    const { source, advance } = hostTime();
    const clock = new HostClock(source, silentLog);
    clock.setNow(5e15);
    clock.resume();
    advance(1);
    expect(clock.nowNs()).toBe(5e15 + 1);
    expect(() => clock.setNow(0)).toThrow(/paused clock/);
  });

  it('fires timers once, at their instants, in a pause not at all, and behind it with the time left', () => {
    const { source, advance } = hostTime();
    const clock = new HostClock(source, silentLog);
    const fired: string[] = [];
    const timers = ['a', 'b', 'c'].map((name) =>
      clock.timer(() => fired.push(`${name} ${clock.nowNs()}`)),
    );
    timers[0]!.arm(300);
    timers[1]!.arm(100);
    advance(1e6);
    expect(fired).toEqual([]);
    clock.resume();
    advance(150);
    expect(fired).toEqual(['b 100']);
    clock.pause();
    timers[2]!.arm(200);
    advance(1e9);
    expect(fired).toEqual(['b 100']);
    clock.resume();
    advance(49);
    expect(fired).toEqual(['b 100']);
    advance(1);
    advance(1000);
    expect(fired).toEqual(['b 100', 'c 200', 'a 300']);
  });

  it('moves, cancels and re-arms, also from inside a timer', () => {
    const { source, advance, state } = hostTime();
    const clock = new HostClock(source, silentLog);
    clock.resume();
    let count = 0;
    const periodic = clock.timer(() => {
      count++;
      if (count < 5) periodic.arm(clock.nowNs() + 10);
      if (count === 3) other.cancel();
    });
    const other = clock.timer(() => expect.unreachable());
    periodic.arm(10);
    other.arm(35);
    advance(1000);
    expect(count).toBe(5);
    periodic.arm(5000);
    periodic.arm(2000);
    expect(state.deadline).toBe(1e9 + 2000);
    periodic.cancel();
    expect(state.deadline).toBeUndefined();
    advance(1e6);
    expect(count).toBe(5);
  });

  it('fires what is due already at once', () => {
    const { source, advance } = hostTime();
    const clock = new HostClock(source, silentLog);
    clock.resume();
    advance(1000);
    let fired = 0;
    clock.timer(() => fired++).arm(10);
    advance(0);
    expect(fired).toBe(1);
  });

  it('says it when a timer fails, and gives the host timer back in the end', () => {
    const { source, advance, state } = hostTime();
    const log = new MemoryLog();
    const clock = new HostClock(source, log);
    clock.resume();
    clock
      .timer(() => {
        throw new Error('broken');
      })
      .arm(10);
    expect(() => advance(20)).toThrow('broken');
    expect(log.lines).toEqual(['error a device timer failed: broken']);
    clock.dispose();
    expect(state).toMatchObject({ closed: true, deadline: undefined });
    expect(clock.running).toBe(false);
  });
});
