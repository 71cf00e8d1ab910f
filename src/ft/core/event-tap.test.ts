import { describe, expect, it } from 'vitest';
import { TapLogReader, TRIGGER_SPACE } from '../wire/tap-log.ts';
import { EventTap, HELD_BLOCK, type TapConfig, type TapSink } from './event-tap.ts';
import { TapReplay } from './tap-replay.ts';

const text = (bytes: Uint8Array, start: number, end: number): string =>
  new TextDecoder().decode(bytes.subarray(start, end));
const bytesOf = (s: string): Uint8Array => new TextEncoder().encode(s);

class Outside implements TapSink {
  readonly seen: string[] = [];
  batches = 0;
  frame(device: number, b: Uint8Array, start: number, end: number): void {
    this.seen.push(`net${device} ${text(b, start, end)}`);
  }
  console(device: number, b: Uint8Array, start: number, end: number): void {
    this.seen.push(`con${device} ${text(b, start, end)}`);
  }
  block(device: number, tag: number): void {
    this.seen.push(`disk${device} #${tag}`);
  }
  released(): void {
    this.batches++;
  }
}

const CONFIG: TapConfig = { bytesMax: 64, entriesMax: 8, blockMax: 6, triggersMax: 4 };

function setup(change: Partial<TapConfig> = {}) {
  const outside = new Outside();
  let held = 0;
  const tap = new EventTap({ ...CONFIG, ...change }, outside, () => held++);
  tap.holding = true;
  const frame = (s: string, device = 0): boolean =>
    tap.holdFrame(device, bytesOf(s), 0, bytesOf(s).length);
  const log = (): { seqs: [number, number]; outputs: string[]; triggers: number[][] } => {
    const out = new Uint8Array(512);
    const end = tap.writeLog(out, 3);
    expect(end).toBe(3 + tap.logBytes);
    const r = new TapLogReader().reset(out, 3, end);
    const outputs: string[] = [];
    while (r.nextOutput())
      outputs.push(`${r.kind}/${r.device} ${text(out, r.dataStart, r.dataEnd)}`);
    const triggers: number[][] = [];
    while (r.nextTrigger()) triggers.push([r.space, r.size, r.address, r.valueLo, r.valueHi]);
    expect(r.malformed).toBe(false);
    return { seqs: [r.releasedThrough, r.firstSeq], outputs, triggers };
  };
  return { outside, tap, frame, log, held: () => held };
}

describe('EventTap', () => {
  it('lets all outputs held before a pause go together, in order, on its ACK', () => {
    const { outside, tap, frame } = setup();
    frame('a');
    tap.holdConsole(0, 0x62);
    tap.holdBlock(0, 5, HELD_BLOCK.write, 0, 512);
    frame('c');
    tap.seal(1);
    frame('later');
    expect(outside.seen).toEqual([]);
    expect(tap.release(1)).toBe(4);
    expect(outside.seen).toEqual(['net0 a', 'con0 b', 'net0 c', 'disk0 #5']);
    expect(outside.batches).toBe(1);
    expect(tap.release(1)).toBe(0);
    tap.seal(2);
    tap.release(2);
    expect(outside.seen.at(-1)).toBe('net0 later');
  });

  it('keeps every output of one doorbell', () => {
    const { tap, frame, log } = setup();
    frame('first');
    frame('second');
    tap.seal(1);
    expect(log().outputs).toEqual(['1/0 first', '1/0 second']);
  });

  it('logs each output once, in the epoch that covers it, and says what was released', () => {
    const { tap, frame, log } = setup();
    frame('a');
    tap.seal(1);
    expect(log()).toMatchObject({ seqs: [0, 1], outputs: ['1/0 a'] });
    frame('b');
    tap.seal(2);
    expect(log()).toMatchObject({ seqs: [0, 2], outputs: ['1/0 b'] });
    tap.release(1);
    tap.seal(3);
    expect(log()).toMatchObject({ seqs: [1, 3], outputs: [] });
    tap.release(3);
    expect(tap.nextSeq).toBe(3);
  });

  it('never logs a block request: it is popped again from the device', () => {
    const { tap, frame, log } = setup();
    tap.holdBlock(1, 9, HELD_BLOCK.write, 0, 8);
    frame('a');
    tap.seal(1);
    expect(log()).toMatchObject({ seqs: [0, 1], outputs: ['1/0 a'] });
  });

  it('gives returned epochs to the next one', () => {
    const { outside, tap, frame, log } = setup();
    frame('a');
    tap.seal(1);
    frame('b');
    tap.seal(2);
    frame('c');
    tap.returnFrom(2);
    tap.release(2);
    expect(outside.seen).toEqual(['net0 a']);
    tap.seal(3);
    expect(log()).toMatchObject({ seqs: [1, 2], outputs: ['1/0 b', '1/0 c'] });
    tap.release(3);
    expect(outside.seen).toEqual(['net0 a', 'net0 b', 'net0 c']);
  });

  it('keeps all bytes of a trigger, for one capture only, and none that it was not given', () => {
    const { tap, frame, log } = setup();
    frame('from a timer, caused by no write');
    tap.seal(1);
    tap.addTrigger(TRIGGER_SPACE.pio, 4, 0xcfc, 0xdeadbeef, 0);
    tap.addTrigger(TRIGGER_SPACE.mmio, 8, 2 ** 40, 1, 2);
    expect(log().triggers).toEqual([
      [1, 4, 0xcfc, 0xdeadbeef, 0],
      [2, 8, 2 ** 40, 1, 2],
    ]);
    tap.seal(2);
    expect(log().triggers).toEqual([]);
  });

  it('is bounded in entries and in bytes, and takes again once there is room', () => {
    const { tap, frame, outside } = setup();
    for (let i = 0; i < 8; i++) expect(frame(`${i}`)).toBe(true);
    expect([frame('x'), tap.holdConsole(0, 1), tap.holdBlock(0, 1, 0, 0, 8)]).toEqual([
      false,
      false,
      false,
    ]);
    tap.seal(1);
    tap.release(1);
    expect(frame('y'.repeat(60))).toBe(true);
    expect(frame('zzzzz')).toBe(false);
    tap.releaseAll();
    expect(outside.seen).toHaveLength(9);
    expect(tap.heldBytes).toBe(0);
  });

  it('wraps its byte ring without mixing frames', () => {
    const { tap, frame, outside } = setup({ bytesMax: 50, entriesMax: 64 });
    const sent: string[] = [];
    let epoch = 0;
    for (let i = 0; i < 200; i++) {
      const s = String.fromCharCode(97 + (i % 26)).repeat(1 + ((i * 7) % 13));
      if (!frame(s)) {
        tap.seal(++epoch);
        tap.release(i % 2 ? epoch : epoch - 1);
        if (!frame(s)) continue;
      }
      sent.push(`net0 ${s}`);
      expect(tap.heldBytes).toBeLessThanOrEqual(50);
    }
    tap.releaseAll();
    expect(outside.seen).toEqual(sent);
    expect(sent.length).toBeGreaterThan(150);
  });

  it('joins console bytes of one device into one output until an epoch covers them', () => {
    const { tap, log, held } = setup();
    for (const byte of bytesOf('boot')) tap.holdConsole(2, byte);
    tap.seal(1);
    for (const byte of bytesOf('ed')) tap.holdConsole(2, byte);
    expect(held()).toBe(2);
    expect(log().outputs).toEqual(['2/2 boot']);
    tap.seal(2);
    expect(log().outputs).toEqual(['2/2 ed']);
  });

  it('keeps overlapping writes in order and makes a flush a barrier, per disk', () => {
    const { tap, outside } = setup();
    tap.holdBlock(0, 1, HELD_BLOCK.write, 0, 8);
    tap.holdBlock(0, 2, HELD_BLOCK.write, 4, 8);
    tap.holdBlock(0, 3, HELD_BLOCK.write, 100, 8);
    tap.holdBlock(0, 4, HELD_BLOCK.flush, 0, 0);
    tap.holdBlock(0, 5, HELD_BLOCK.write, 200, 8);
    tap.holdBlock(1, 1, HELD_BLOCK.write, 0, 8);
    expect(tap.holdBlock(1, 2, HELD_BLOCK.write, 0, 8)).toBe(false);
    tap.seal(1);
    tap.release(1);
    expect(outside.seen).toEqual(['disk0 #1', 'disk0 #3', 'disk1 #1']);
    tap.blockDone(0, 3);
    expect(outside.seen).toHaveLength(3);
    tap.blockDone(0, 1);
    expect(outside.seen.at(-1)).toBe('disk0 #2');
    tap.blockDone(0, 2);
    expect(outside.seen.at(-1)).toBe('disk0 #4');
    tap.blockDone(0, 4);
    expect(outside.seen.at(-1)).toBe('disk0 #5');
    tap.blockDone(0, 5);
    tap.blockDone(1, 1);
    expect(tap.blockCount).toBe(0);
  });

  it('lets nothing out once it is dropped', () => {
    const { tap, frame, outside } = setup();
    frame('a');
    tap.holdBlock(0, 1, HELD_BLOCK.write, 0, 8);
    tap.seal(1);
    tap.drop();
    tap.release(1);
    expect([outside.seen, tap.heldCount, tap.blockCount, tap.heldBytes]).toEqual([[], 0, 0, 0]);
  });
});

describe('TapReplay', () => {
  const logOf = (tap: EventTap): Uint8Array => {
    const out = new Uint8Array(tap.logBytes);
    tap.writeLog(out, 0);
    return out;
  };

  it('sends what may not have been released, then the triggers of the last epoch only', () => {
    const { tap, frame } = setup();
    const replay = new TapReplay(64);
    const feed = (): void => {
      const body = logOf(tap);
      expect(replay.check(body, 0, body.length)).toBeUndefined();
      replay.accept(body, 0, body.length);
      replay.apply(body, 0, body.length);
    };
    frame('a');
    tap.seal(1);
    tap.addTrigger(1, 4, 0x60, 1, 0);
    feed();
    tap.release(1);
    frame('b');
    tap.seal(2);
    feed();
    frame('c');
    tap.seal(3);
    tap.addTrigger(2, 2, 0x1000, 0xabcd, 0);
    feed();
    const seen: string[] = [];
    expect([replay.count, replay.nextSeq]).toEqual([2, 4]);
    replay.replay({
      frame: (d, b, s, e) => seen.push(`net${d} ${text(b, s, e)}`),
      console: () => seen.push('console'),
      trigger: (space, size, address, lo) => seen.push(`${space} ${size} ${address} ${lo}`),
    });
    expect(seen).toEqual(['net0 b', 'net0 c', '2 2 4096 43981']);
    expect(replay.bytes).toBe(0);
  });

  it('finds a missing log, a malformed one and one that is too large', () => {
    const { tap, frame } = setup();
    const replay = new TapReplay(8);
    frame('a');
    tap.seal(1);
    const first = logOf(tap);
    replay.accept(first, 0, first.length);
    frame('b');
    tap.seal(2);
    frame('c');
    tap.seal(3);
    const third = logOf(tap);
    expect(replay.check(third, 0, third.length)).toBe('gap');
    expect(replay.check(third, 0, third.length - 1)).toBe('malformed');
    replay.reset();
    expect(replay.check(third, 0, third.length)).toBeUndefined();
    frame('d'.repeat(40));
    tap.seal(4);
    const fourth = logOf(tap);
    expect(replay.check(fourth, 0, fourth.length)).toBe('too large');
  });
});
