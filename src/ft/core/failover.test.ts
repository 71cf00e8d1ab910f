import { describe, expect, it } from 'vitest';
import { EffectQueue } from './effects.ts';
import {
  type ArbiterAnswer,
  type ArbiterEffect,
  type AuthorityConfig,
  PrimaryAuthority,
  StandbyAuthority,
} from './failover.ts';

const CONFIG: AuthorityConfig = { arbiter: true, onPeerLoss: 'go-on', retryNs: 100 };

function answer(ticket: number, change: Partial<ArbiterAnswer> = {}): ArbiterAnswer {
  return { ticket, result: 'ok', generation: 7, sentence: '', ...change };
}

function primary(change: Partial<AuthorityConfig> = {}) {
  const out = new EffectQueue<ArbiterEffect>();
  const authority = new PrimaryAuthority(7, { ...CONFIG, ...change }, out);
  const asked = (): string => {
    const e = out.shift();
    if (e === undefined) return 'nothing';
    const { request } = e;
    return request.kind === 'record'
      ? `record '${request.inSync}' #${e.ticket}`
      : `${request.kind} #${e.ticket}`;
  };
  return { authority, asked };
}

describe('PrimaryAuthority', () => {
  it('lets outputs pass alone only while the record says that nobody is in sync', () => {
    const { authority, asked } = primary();
    expect(authority.mayRunAlone).toBe(true);
    authority.peerInSync('b', 0);
    expect([authority.mayRunAlone, asked()]).toEqual([false, "record 'b' #1"]);
    authority.answer(answer(1), 0);
    expect([authority.recorded, authority.mayRunAlone]).toEqual(['b', false]);
    authority.goAlone(0);
    expect([authority.mayRunAlone, asked()]).toEqual([false, "record '' #2"]);
    authority.answer(answer(2), 0);
    expect([authority.recorded, authority.mayRunAlone]).toEqual(['', true]);
  });

  it('asks again while the arbiter is unreachable, and stays closed meanwhile', () => {
    const { authority, asked } = primary();
    authority.peerInSync('b', 0);
    asked();
    authority.answer(answer(1), 0);
    authority.goAlone(0);
    asked();
    authority.answer(answer(2, { result: 'unreachable', generation: 0 }), 10);
    expect([authority.mayRunAlone, authority.recorded, asked()]).toEqual([
      false,
      undefined,
      'nothing',
    ]);
    authority.tick(109);
    expect(asked()).toBe('nothing');
    authority.tick(110);
    expect(asked()).toBe("record '' #3");
    authority.answer(answer(2), 120); // an answer to an older question
    expect(authority.mayRunAlone).toBe(false);
    authority.answer(answer(3), 120);
    expect(authority.mayRunAlone).toBe(true);
  });

  it('is fenced by a higher generation for good', () => {
    const { authority, asked } = primary();
    authority.peerInSync('b', 0);
    asked();
    authority.answer(answer(1, { result: 'refused', generation: 8 }), 0);
    authority.goAlone(1000);
    expect([authority.fencedBy, authority.mayRunAlone, asked()]).toEqual([8, false, 'nothing']);
  });

  it('makes one request at a time: what changes meanwhile is asked afterwards', () => {
    const { authority, asked } = primary();
    authority.peerInSync('b', 0);
    authority.goAlone(0);
    expect([asked(), asked()]).toEqual(["record 'b' #1", 'nothing']);
    authority.answer(answer(1), 0);
    expect([authority.mayRunAlone, asked()]).toEqual([false, "record '' #2"]);
  });

  it('waits for an operator where that was chosen', () => {
    const { authority, asked } = primary({ onPeerLoss: 'wait' });
    authority.peerInSync('b', 0);
    asked();
    authority.answer(answer(1), 0);
    authority.goAlone(0);
    expect([authority.waitsForOperator, authority.mayRunAlone, asked()]).toEqual([
      true,
      false,
      'nothing',
    ]);
    authority.operatorGoOn(0);
    expect(asked()).toBe("record '' #2");
    const none = primary({ onPeerLoss: 'wait', arbiter: false }).authority;
    none.peerInSync('b', 0);
    none.goAlone(0);
    expect(none.mayRunAlone).toBe(false);
    none.operatorGoOn(0);
    expect(none.mayRunAlone).toBe(true);
  });

  it('gives the guest up, and takes it back only with the arbiter', () => {
    const { authority, asked } = primary();
    authority.peerInSync('b', 0);
    asked();
    authority.answer(answer(1), 0);
    authority.hand(0);
    expect(asked()).toBe('hand #2');
    authority.answer(answer(2), 0);
    expect([authority.handed, authority.mayRunAlone]).toEqual([true, false]);
    authority.takeBack(0);
    expect([authority.mayRunAlone, asked()]).toEqual([false, "record '' #3"]);
    authority.answer(answer(3), 0);
    expect([authority.handed, authority.mayRunAlone]).toEqual([false, true]);
  });

  it('knows when a lease is over', () => {
    const { authority } = primary();
    expect(authority.leaseValid(1e18)).toBe(true);
    authority.lease(500);
    expect([authority.leaseValid(499), authority.leaseValid(500)]).toEqual([true, false]);
  });
});

function standby(change: Partial<AuthorityConfig> = {}) {
  const out = new EffectQueue<ArbiterEffect>();
  const config: AuthorityConfig = { ...CONFIG, onPeerLoss: 'wait', ...change };
  return { authority: new StandbyAuthority('b', config, 1000, out), out };
}

describe('StandbyAuthority', () => {
  it('does nothing on silence but detach and ask', () => {
    const { authority, out } = standby();
    authority.peerLost(0);
    authority.tick(999, true);
    expect(authority.takeWish()).toBe('none');
    authority.tick(1000, true);
    expect([authority.takeWish(), out.length, authority.granted]).toEqual(['detach', 0, false]);
    authority.detached(7);
    expect(out.shift()?.request).toEqual({ kind: 'acquire', generation: 7, instance: 'b' });
    expect(authority.granted).toBe(false);
    authority.answer(answer(1, { generation: 8 }), 1000);
    expect([authority.granted, authority.newGeneration, authority.takeWish()]).toEqual([
      true,
      8,
      'take-over',
    ]);
  });

  it('answers the primary again when refused, and waits longer each time', () => {
    const { authority, out } = standby();
    const gaps: number[] = [];
    let now = 0;
    for (let i = 1; i <= 4; i++) {
      authority.peerLost(now);
      const from = now;
      while (authority.takeWish() !== 'detach') {
        now += 50;
        authority.tick(now, true);
      }
      gaps.push(now - from);
      authority.detached(7);
      out.shift();
      authority.answer(answer(i, { result: 'refused', sentence: 'held' }), now);
      expect(authority.takeWish()).toBe('reattach');
    }
    expect(gaps).toEqual([1000, 100, 200, 400]);
    expect(authority.refusal).toBe('held');
  });

  it('stays detached and asks again when it cannot know', () => {
    const { authority, out } = standby();
    authority.order(true);
    authority.takeWish();
    authority.detached(7);
    out.shift();
    authority.answer(answer(1, { result: 'unreachable' }), 0);
    expect(authority.takeWish()).toBe('none');
    authority.tick(100, true);
    expect(out.shift()?.ticket).toBe(2);
  });

  it('never moves without a complete state, whoever says so', () => {
    const { authority } = standby();
    authority.peerLost(0);
    authority.tick(1e9, false);
    expect(authority.order(false)).toContain('no complete state');
    expect(authority.takeWish()).toBe('none');
  });

  it('without an arbiter moves on an order, a hand-over or the agreed policy, not on a hint', () => {
    const hint = standby({ arbiter: false }).authority;
    hint.peerLost(0);
    hint.tick(1e9, true);
    expect(hint.takeWish()).toBe('none');
    hint.order(true);
    expect(hint.takeWish()).toBe('detach');
    hint.detached(7);
    expect([hint.granted, hint.newGeneration]).toEqual([true, 8]);
    const policy = standby({ arbiter: false, onPeerLoss: 'takeover' }).authority;
    policy.peerLost(0);
    policy.tick(1000, true);
    expect(policy.takeWish()).toBe('detach');
    const handed = standby({ arbiter: false }).authority;
    handed.handover();
    expect(handed.takeWish()).toBe('detach');
  });

  it('forgets a loss when a connection is up', () => {
    const { authority } = standby();
    authority.peerLost(0);
    authority.peerBack();
    authority.tick(1e9, true);
    expect(authority.takeWish()).toBe('none');
  });
});
