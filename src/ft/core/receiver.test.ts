import { describe, expect, it } from 'vitest';
import { hello, PAYLOAD, StandbyEnd } from '../../../test/support/protocol-ends.ts';
import { FAULT, type FaultCode, fault } from '../wire/fault.ts';
import type { Hello } from '../wire/message.ts';
import { ROLE } from '../wire/spec.ts';

describe('Receiver', () => {
  it('stages, validates, acknowledges, then applies', () => {
    const s = new StandbyEnd();
    s.begin(1);
    s.part(1, 0);
    s.commit(1);
    expect(s.did).toEqual(['stage 1', 'validate 1']);
    expect(s.said).toEqual([]);
    s.validated(1);
    expect(s.did.slice(2)).toEqual(['committed 1', 'apply 1']);
    expect(s.said).toMatchObject([{ cmd: 'ACK', id: 1, of: 'commit' }]);
    expect(s.receiver.appliedId).toBe(0);
    s.receiver.applied(1, true);
    expect([s.receiver.appliedId, s.receiver.degraded]).toEqual([1, true]);
  });

  it('asks for a copy anew after a disk has refused, and may take over all the same', () => {
    const s = new StandbyEnd();
    s.begin(1);
    s.part(1, 0);
    s.commit(1);
    s.validated(1);
    s.receiver.applied(1, true);
    expect(s.receiver.complete).toBe(true);
    expect(s.receiver.hello).toMatchObject({ committedId: 1, complete: false });
  });

  it('validates one transaction after the other while more arrive', () => {
    const s = new StandbyEnd();
    for (const id of [1, 2, 3]) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
    }
    expect(s.did.filter((d) => d.startsWith('validate'))).toEqual(['validate 1']);
    s.validated(1);
    s.validated(2);
    expect(s.did.filter((d) => d.startsWith('validate'))).toEqual([
      'validate 1',
      'validate 2',
      'validate 3',
    ]);
    expect(s.did.filter((d) => d.startsWith('apply'))).toEqual(['apply 1']);
    s.begin(4);
    expect(s.state).toEqual(['open', 2, true]);
    s.begin(5);
    expect(s.nack).toBe(FAULT.STATE_INVALID);
  });

  it('refuses a fourth transaction in flight when three were agreed', () => {
    const s = new StandbyEnd();
    for (const id of [1, 2, 3]) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
    }
    s.begin(4);
    expect(s.nack).toBe(FAULT.LIMITS);
  });

  it('refuses what is stale, missing, repeated or builds on another state, and stands', () => {
    const cases: [(s: StandbyEnd) => void, FaultCode][] = [
      [(s) => s.begin(2), FAULT.ID_STALE],
      [(s) => s.begin(4), FAULT.ID_GAP],
      [(s) => s.begin(3, 1), FAULT.BASE_UNKNOWN],
      [(s) => s.part(3, 0), FAULT.STATE_INVALID],
      [(s) => s.commit(3), FAULT.STATE_INVALID],
      [
        (s) => {
          s.begin(3);
          s.part(3, 1);
        },
        FAULT.SEQ_WRONG,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(3, 0);
          s.part(3, 0);
        },
        FAULT.SEQ_WRONG,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(2, 0);
        },
        FAULT.ID_STALE,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(4, 0);
        },
        FAULT.ID_GAP,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(3, 0);
          s.commit(3, 2);
        },
        FAULT.SEQ_WRONG,
      ],
      [
        (s) => {
          s.begin(3);
          s.part(3, 0);
          s.part(3, 1);
          s.commit(3, 2);
        },
        FAULT.MANIFEST_MISMATCH,
      ],
      [
        (s) => {
          s.begin(3);
          s.begin(3);
        },
        FAULT.STATE_INVALID,
      ],
    ];
    for (const [act, code] of cases) {
      const s = new StandbyEnd();
      s.whole(1);
      s.whole(2);
      act(s);
      expect(s.nack).toBe(code);
      expect(s.state).toEqual(['reject', 2, true]);
      s.begin(3); // ignored until the sender has confirmed
      expect(s.state[0]).toBe('reject');
      s.say({ cmd: 'CANCEL', id: 3, code: FAULT.CANCELLED });
      s.whole(3);
      expect(s.state).toEqual(['idle', 3, true]);
    }
  });

  it('drops a transaction that does not validate, and all behind it', () => {
    const s = new StandbyEnd();
    s.whole(1);
    for (const id of [2, 3]) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
    }
    s.validated(2, FAULT.PAGE_CHECKSUM);
    expect(s.nack).toBe(FAULT.PAGE_CHECKSUM);
    expect(s.did.at(-1)).toBe('discard 2');
    s.validated(3);
    expect(s.state).toEqual(['reject', 1, true]);
    expect(s.receiver.stagedBytes).toBe(0);
  });

  it('refuses an oversized transaction before its bytes are buffered', () => {
    const s = new StandbyEnd();
    s.begin(1);
    const header = { cmd: 'CONTINUE' as const, generation: 5, id: 1, seq: 0, payloadCrc: 0 };
    expect(s.receiver.admit({ ...header, payloadBytes: 4096 })).toBe(0);
    expect(s.receiver.admit({ ...header, payloadBytes: 4097 })).toBe(FAULT.TRANSACTION_TOO_LARGE);
  });

  it('answers a damaged payload with NACK, lost framing by closing', () => {
    const s = new StandbyEnd();
    s.whole(1);
    s.begin(2);
    s.receiver.fault({ ...fault(FAULT.PAYLOAD_CHECKSUM), fatal: false, generation: 5, id: 2 });
    s.drain();
    expect([s.nack, s.said.at(-1)?.id, s.state[0]]).toEqual([FAULT.PAYLOAD_CHECKSUM, 2, 'reject']);
    s.receiver.fault({ ...fault(FAULT.BAD_MAGIC), fatal: true, generation: 0, id: 0 });
    s.drain();
    expect([s.nack, s.did.at(-1), s.state]).toEqual([FAULT.BAD_MAGIC, 'close', ['down', 1, true]]);
  });

  it('takes CANCEL in every state, and never for what is acknowledged', () => {
    const cancel = (s: StandbyEnd, id: number): void =>
      s.say({ cmd: 'CANCEL', id, code: FAULT.CANCELLED });
    const idle = new StandbyEnd();
    idle.whole(1);
    cancel(idle, 2);
    expect(idle.state).toEqual(['idle', 1, true]);
    const open = new StandbyEnd();
    open.begin(1);
    open.part(1, 0);
    cancel(open, 1);
    expect([open.state[0], open.did.at(-1)]).toEqual(['idle', 'discard 1']);
    open.whole(1);
    expect(open.state).toEqual(['idle', 1, true]);
    cancel(open, 1);
    expect([open.nack, open.state]).toEqual([FAULT.STATE_INVALID, ['down', 1, true]]);
    const validating = new StandbyEnd();
    validating.begin(1);
    validating.part(1, 0);
    validating.commit(1);
    cancel(validating, 1);
    expect(validating.nack).toBe(FAULT.STATE_INVALID);
    expect(validating.state[0]).toBe('down');
  });

  it('takes nothing of an attempt that is over for the one that has begun', () => {
    const s = new StandbyEnd();
    const cancel = (seq: number): void =>
      s.say({ cmd: 'CANCEL', id: 1, seq, code: FAULT.CANCELLED });
    const begin = (seq: number): void =>
      s.say({ cmd: 'BEGIN', id: 1, seq, baseId: 0, syncFrames: 0 });
    begin(0);
    cancel(0);
    begin(1);
    s.part(1, 0);
    s.part(1, 0);
    expect([s.nack, s.said.at(-1)?.seq, s.state[0]]).toEqual([FAULT.SEQ_WRONG, 1, 'reject']);
    // Once more, from before: it does not confirm that.
    cancel(0);
    expect(s.state[0]).toBe('reject');
    s.part(1, 1);
    s.commit(1, 2);
    expect(s.state).toEqual(['reject', 0, false]);
    cancel(1);
    expect(s.state[0]).toBe('idle');
    begin(1);
    expect([s.nack, s.said.at(-1)?.seq, s.state[0]]).toEqual([FAULT.ID_STALE, 2, 'reject']);
    cancel(2);
    begin(3);
    cancel(2);
    s.part(1, 0);
    s.commit(1);
    s.validated(1);
    expect(s.state).toEqual(['idle', 1, true]);
  });

  it('keeps the committed state when cut anywhere, and resumes from it', () => {
    for (let cut = 0; cut < 4; cut++) {
      const s = new StandbyEnd();
      s.whole(1);
      if (cut > 0) s.begin(2);
      if (cut > 1) s.part(2, 0);
      if (cut > 2) s.commit(2);
      s.receiver.disconnected();
      s.drain();
      s.validated(2);
      expect(s.state).toEqual(['down', 1, true]);
      s.open('resume', 1);
      expect(s.said.at(-1)).toMatchObject({ cmd: 'ACK', of: 'init', id: 1 });
      s.whole(2);
      expect(s.state).toEqual(['idle', 2, true]);
    }
  });

  it('refuses to resume from what it does not hold', () => {
    const s = new StandbyEnd();
    s.whole(1);
    s.open('resume', 7);
    expect([s.nack, s.state]).toEqual([FAULT.BASE_UNKNOWN, ['down', 1, true]]);
  });

  it('forgets its state at a full start and is complete only after the first COMMIT', () => {
    const s = new StandbyEnd();
    s.whole(1);
    s.open('full', 1);
    expect(s.state).toEqual(['sync', 1, false]);
    s.say({ cmd: 'SYNC', seq: 0, payload: PAYLOAD });
    s.say({ cmd: 'BEGIN', id: 2, baseId: 1, syncFrames: 2 });
    expect([s.nack, s.state[0]]).toEqual([FAULT.SEQ_WRONG, 'down']);
    s.open('full', 1);
    s.say({ cmd: 'SYNC', seq: 1, payload: PAYLOAD });
    expect(s.nack).toBe(FAULT.SEQ_WRONG);
  });

  it('turns away another guest, machine, CPU, generation, and frames before HELLO', () => {
    const cases: [Partial<Hello>, FaultCode][] = [
      [{ vm: '99'.repeat(16) }, FAULT.OTHER_VM],
      [{ machineDigest: '99'.repeat(32) }, FAULT.OTHER_MACHINE],
      [{ cpuDigest: '99'.repeat(32) }, FAULT.OTHER_CPU],
      [{ generation: 4 }, FAULT.GENERATION_WRONG],
      [{ role: ROLE.standby }, FAULT.ROLE_CONFLICT],
    ];
    for (const [primary, code] of cases) {
      const s = new StandbyEnd();
      s.receiver.connected();
      s.say({ cmd: 'HELLO', hello: hello(primary) });
      expect([s.nack, s.state[0]]).toEqual([code, 'down']);
    }
    const s = new StandbyEnd();
    s.receiver.connected();
    s.begin(1);
    expect([s.nack, s.state[0]]).toEqual([FAULT.STATE_INVALID, 'down']);
  });

  it('refuses frames of another generation in the middle of a stream', () => {
    const s = new StandbyEnd();
    s.say({ cmd: 'BEGIN', generation: 6, id: 1, baseId: 0, syncFrames: 0 });
    expect([s.nack, s.state[0]]).toEqual([FAULT.GENERATION_WRONG, 'down']);
  });

  it('ends only when nothing is open, and remembers it', () => {
    const s = new StandbyEnd();
    s.whole(1);
    s.say({ cmd: 'END', id: 1, reason: 1 });
    expect([s.receiver.ended, s.said.at(-1)]).toMatchObject([true, { cmd: 'ACK', of: 'end' }]);
    const t = new StandbyEnd();
    t.begin(1);
    t.say({ cmd: 'END', id: 0, reason: 1 });
    expect([t.receiver.ended, t.nack]).toEqual([false, FAULT.STATE_INVALID]);
  });

  it('stops reading while what waits to be applied fills the room, and goes on after', () => {
    const s = new StandbyEnd();
    for (let id = 1; id <= 5; id++) {
      s.begin(id);
      s.part(id, 0);
      s.commit(id);
      s.validated(id);
    }
    s.begin(6);
    s.part(6, 0);
    expect(s.did).toContain('read-pause');
    for (let id = 1; id <= 5; id++) {
      s.receiver.applied(id, false);
      s.drain();
    }
    expect(s.did.filter((d) => d.startsWith('read'))).toEqual(['read-pause', 'read-on']);
  });
});
