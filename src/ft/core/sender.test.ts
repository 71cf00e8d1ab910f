import { describe, expect, it } from 'vitest';
import { MANIFEST, PrimaryEnd, StandbyEnd } from '../../../test/support/protocol-ends.ts';
import { FAULT, fault } from '../wire/fault.ts';

describe('Sender', () => {
  it('opens a full stream, then has several epochs in flight, acknowledged in order', () => {
    const p = new PrimaryEnd();
    p.open();
    expect(p.take()).toEqual(['agreed', 'opened']);
    expect(p.sender.state).toBe('sync');
    p.epoch();
    p.epoch();
    p.epoch(true);
    expect(p.sender.canOpen).toBe(false);
    expect(p.said.map((m) => `${m.cmd} ${m.id}`).slice(2)).toEqual([
      'BEGIN 1',
      'CONTINUE 1',
      'COMMIT 1',
      'BEGIN 2',
      'CONTINUE 2',
      'COMMIT 2',
      'BEGIN 3',
      'CONTINUE 3',
      'ATOMIC 3',
    ]);
    p.take();
    p.ack(1);
    p.ack(2);
    p.ack(3);
    expect(p.take()).toEqual(['acked 1=1', 'acked 2=2', 'acked 3=3!']);
  });

  it('believes no ACK that is stale, early, or of another generation', () => {
    for (const [id, generation] of [
      [1, 5],
      [3, 5],
      [2, 4],
    ] as const) {
      const p = new PrimaryEnd();
      p.open();
      p.epoch();
      p.ack(1);
      p.epoch();
      p.take();
      p.hear({ cmd: 'ACK', of: 'commit', id, generation, degraded: false });
      expect(p.take()).toEqual(['close']);
      expect(p.sender.state).toBe('down');
    }
  });

  it('counts the committed id of a HELLO as the lost ACK, and returns the rest', () => {
    const p = new PrimaryEnd();
    p.open();
    for (let i = 0; i < 3; i++) p.epoch();
    p.sender.disconnected();
    p.take();
    p.open({ generation: 5, complete: true, committedId: 2 });
    expect(p.take()).toEqual(['agreed', 'acked 1=1', 'acked 2=2', 'returned 3', 'opened']);
    const q = new PrimaryEnd();
    q.open();
    q.epoch();
    q.ack(1);
    for (let i = 0; i < 3; i++) q.epoch();
    q.sender.disconnected();
    q.take();
    q.open({ generation: 5, complete: true, committedId: 3 });
    expect(q.take()).toEqual(['agreed', 'acked 2=2', 'acked 3=3', 'returned 4', 'opened']);
    expect(q.said.find((m) => m.cmd === 'INIT' && m.mode === 'resume')).toMatchObject({ id: 3 });
    q.epoch();
    expect(q.said.at(-1)).toMatchObject({ cmd: 'COMMIT', id: 4 });
  });

  it('begins a later copy behind an id that no earlier standby has', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.epoch();
    p.ack(1);
    p.ack(2);
    // Another process: it gets a copy of its own. The first one may come back with transaction 2 on its disks.
    for (const base of [3, 4]) {
      p.sender.disconnected();
      p.open();
      expect(p.said.findLast((m) => m.cmd === 'INIT')).toMatchObject({ id: base, mode: 'full' });
    }
    p.epoch();
    expect(p.said.at(-1)).toMatchObject({ cmd: 'COMMIT', id: 5 });
  });

  it('does not take the state of another generation, or one it never sent, for its own', () => {
    for (const theirs of [
      { generation: 4, complete: true, committedId: 2 },
      { generation: 5, complete: true, committedId: 9 },
      { generation: 5, complete: false, committedId: 2 },
      { generation: 5, complete: true, committedId: 0 },
    ]) {
      const p = new PrimaryEnd();
      p.open();
      p.epoch();
      p.ack(1);
      p.epoch();
      p.sender.disconnected();
      p.take();
      p.open(theirs);
      expect(p.take()).toEqual(['agreed', 'returned 2', 'opened']);
      expect(p.sender.state).toBe('sync');
    }
  });

  it('rolls back on NACK: confirms with CANCEL and uses the id again', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.epoch();
    p.take();
    p.hear({ cmd: 'NACK', id: 1, seq: 0, code: FAULT.PAGE_CHECKSUM, sentence: '' });
    expect(p.take()).toEqual(['returned 1']);
    expect(p.said.at(-1)).toMatchObject({ cmd: 'CANCEL', id: 1 });
    p.hear({ cmd: 'NACK', id: 1, seq: 0, code: FAULT.PAGE_CHECKSUM, sentence: '' });
    expect(p.take()).toEqual([]);
    expect(p.epoch()).toBe(3);
    expect(p.said.at(-1)).toMatchObject({ cmd: 'COMMIT', id: 1 });
  });

  it('rolls nothing back when the connection is refused as a whole', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.take();
    // The transaction may be committed and its ACK lost, so its id is not free.
    p.hear({ cmd: 'NACK', id: 0, seq: 0, code: FAULT.HEADER_CHECKSUM, sentence: '' });
    expect(p.take()).toEqual(['close']);
    p.open({ generation: 5, complete: true, committedId: 1 });
    expect(p.take()).toEqual(['agreed', 'acked 1=1', 'opened']);
    const s = new StandbyEnd();
    s.whole(1);
    s.receiver.fault({ ...fault(FAULT.BAD_MAGIC), fatal: true, generation: 0, id: 0 });
    s.drain();
    expect(s.said.at(-1)).toMatchObject({ cmd: 'NACK', id: 0 });
  });

  it('cancels what is open, not what is on its way', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    const open = p.sender.open(3, false);
    p.drain();
    p.take();
    p.sender.cancel(1, FAULT.CANCELLED);
    p.drain();
    expect(p.take()).toEqual([`returned ${open}`]);
    expect(p.said.at(-1)).toMatchObject({ cmd: 'CANCEL', id: 2 });
    expect(p.sender.chunk(open, 1)).toBe(false);
    p.ack(1);
    expect(p.take()).toEqual(['acked 1=1']);
  });

  it('does not resume on a state from before the last first copy', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.ack(1);
    p.sender.disconnected();
    p.open({ instance: '44'.repeat(8) });
    p.sender.disconnected();
    p.take();
    // The dirty set was started anew for the other standby.
    p.open({ generation: 5, complete: true, committedId: 1 });
    expect(p.sender.state).toBe('sync');
  });

  it('starts over when a transaction is too large for the peer', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch();
    p.ack(1);
    p.epoch();
    p.hear({ cmd: 'NACK', id: 2, seq: 0, code: FAULT.TRANSACTION_TOO_LARGE, sentence: '' });
    p.take();
    p.open({ generation: 5, complete: true, committedId: 1 });
    expect(p.sender.state).toBe('sync');
  });

  it('fences itself before a higher generation', () => {
    const p = new PrimaryEnd();
    p.open({ generation: 6, complete: true });
    expect(p.take()[0]).toBe('superseded');
    const q = new PrimaryEnd();
    q.sender.connected();
    q.hear({ cmd: 'NACK', generation: 6, code: FAULT.TAKEN_OVER, sentence: '' });
    expect(q.take()).toEqual(['superseded', 'close']);
  });

  it('hands over, ends, and recognises an END whose ACK was lost', () => {
    const p = new PrimaryEnd();
    p.open();
    p.epoch(true);
    p.ack(1);
    p.sender.handOver(6);
    p.drain();
    expect(p.said.at(-1)).toMatchObject({ cmd: 'HANDOVER', id: 1, newGeneration: 6 });
    p.take();
    p.hear({ cmd: 'ACK', of: 'handover', id: 1, degraded: false });
    expect(p.take()).toEqual(['handed-over']);
    const q = new PrimaryEnd();
    q.open();
    q.epoch(true);
    q.ack(1);
    q.sender.end(1);
    q.sender.disconnected();
    q.drain();
    q.take();
    q.open({ generation: 5, complete: true, committedId: 1, ended: true });
    expect(q.take()).toEqual(['agreed', 'ended', 'close']);
  });

  describe('ahead of a capture', () => {
    const said = (p: PrimaryEnd): string[] =>
      p.said.splice(0).map((m) => `${m.cmd} ${m.id}/${m.seq}`);

    function open(): PrimaryEnd {
      const p = new PrimaryEnd();
      p.open();
      expect(p.sender.canSendAhead).toBe(false); // the first transaction ends the first copy
      p.epoch();
      p.ack(1);
      p.take();
      said(p);
      return p;
    }

    it('begins the next transaction, and the capture goes on in it', () => {
      const p = open();
      expect(p.sender.sendAhead()).toBe(2);
      expect([p.sender.nextEpoch, p.sender.nextId, p.sender.inFlight]).toEqual([2, 2, 0]);
      expect([p.sender.canSendAhead, p.sender.canOpen]).toEqual([false, true]);
      expect([p.sender.chunk(2, 7), p.sender.chunk(3, 7)]).toEqual([true, false]);
      expect(p.sender.sealed(2, MANIFEST)).toBe(false); // nothing was captured yet
      expect(p.sender.open(3, true)).toBe(2);
      p.drain();
      expect([p.take(), p.sender.inFlight]).toEqual([['encode 2'], 1]);
      expect(p.sender.chunk(2, 8)).toBe(true);
      expect(p.sender.sealed(2, MANIFEST)).toBe(true);
      p.drain();
      expect(said(p)).toEqual(['BEGIN 2/0', 'CONTINUE 2/0', 'CONTINUE 2/1', 'ATOMIC 2/2']);
      p.ack(2);
      expect(p.take()).toEqual(['acked 2=2!']);
    });

    it('waits until what was captured before is on its way', () => {
      const p = open();
      const epoch = p.sender.open(3, false);
      expect(p.sender.canSendAhead).toBe(false);
      p.sender.sealed(epoch, MANIFEST);
      expect(p.sender.canSendAhead).toBe(true);
      p.sender.sendAhead();
      p.drain();
      p.take();
      p.ack(2);
      expect(p.take()).toEqual(['acked 2=2']);
      expect(p.sender.chunk(3, 1)).toBe(true);
      const q = open();
      q.epoch(true);
      expect(q.sender.canSendAhead).toBe(false); // the guest stands still
    });

    it('counts against what may be in flight, and leaves room for its own capture', () => {
      const p = open();
      p.epoch();
      p.epoch();
      p.sender.sendAhead();
      expect([p.sender.inFlight, p.sender.canOpen]).toEqual([2, true]);
      p.sender.open(3, false);
      expect([p.sender.inFlight, p.sender.canOpen]).toEqual([3, false]);
    });

    it('is cancelled, refused, cut off and abandoned like any other', () => {
      const cancelled = open();
      cancelled.sender.sendAhead();
      cancelled.sender.chunk(2, 1);
      cancelled.sender.cancel(2, FAULT.CANCELLED);
      cancelled.drain();
      expect(cancelled.take()).toEqual(['returned 2']);
      expect(said(cancelled)).toEqual(['BEGIN 2/0', 'CONTINUE 2/0', 'CANCEL 2/0']);
      expect(cancelled.sender.chunk(2, 1)).toBe(false);
      expect(cancelled.epoch()).toBe(2);
      expect(said(cancelled)).toEqual(['BEGIN 2/1', 'CONTINUE 2/0', 'COMMIT 2/1']);

      const refused = open();
      refused.epoch();
      refused.sender.sendAhead();
      refused.drain();
      refused.take();
      refused.hear({ cmd: 'NACK', id: 2, seq: 0, code: FAULT.PAGE_CHECKSUM, sentence: '' });
      expect(refused.take()).toEqual(['returned 2']);
      expect(said(refused).at(-1)).toBe('CANCEL 2/0');
      const itself = open();
      itself.sender.sendAhead();
      itself.hear({ cmd: 'NACK', id: 2, seq: 0, code: FAULT.PAYLOAD_CHECKSUM, sentence: '' });
      expect(itself.take()).toEqual(['returned 2']);

      const cut = open();
      cut.sender.sendAhead();
      cut.sender.disconnected();
      expect([cut.sender.chunk(2, 1), cut.sender.canOpen]).toEqual([false, false]);
      cut.drain();
      cut.open({ generation: 5, complete: true, committedId: 1 });
      expect(cut.take()).toEqual(['agreed', 'returned 2', 'opened']);

      const alone = open();
      alone.sender.sendAhead();
      alone.sender.abandonPeer();
      alone.drain();
      expect(alone.take()).toEqual(['returned 2', 'close']);
    });

    it('believes no ACK of it', () => {
      const p = open();
      p.sender.sendAhead();
      p.drain();
      p.ack(2);
      expect([p.take(), p.sender.state]).toEqual([['close'], 'down']);
      p.open({ generation: 5, complete: true, committedId: 2 });
      expect(p.sender.state).toBe('sync'); // nor a HELLO that claims it
    });

    it('is nothing to the standby before its COMMIT, whatever cuts it short', () => {
      const s = new StandbyEnd();
      s.whole(1);
      s.begin(2);
      s.part(2, 0);
      s.say({ cmd: 'HEARTBEAT', appliedId: 1, degraded: false });
      expect(s.state).toEqual(['open', 1, true]);
      s.say({ cmd: 'END', id: 1, reason: 1 });
      expect([s.nack, s.receiver.ended, s.receiver.committedId]).toEqual([
        FAULT.STATE_INVALID,
        false,
        1,
      ]);
      s.open('resume', 1);
      s.begin(2);
      s.part(2, 0);
      s.receiver.detach(FAULT.SUPERSEDED);
      s.drain();
      expect(s.did.filter((d) => d.startsWith('discard') || d.startsWith('apply'))).toEqual([
        'apply 1',
        'discard 2',
        'discard 2',
      ]);
      expect(s.receiver.stagedBytes).toBe(0);
    });
  });
});
