import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { crc32c } from '../../base/crc32c.ts';
import { encodedBytesMax, encodeMessage } from './codec.ts';
import { type DecodeFault, Decoder } from './decoder.ts';
import { FAULT, type FaultCode, faultSentence } from './fault.ts';
import { fuzzDecoder } from './fuzz.ts';
import type { Hello, Message } from './message.ts';
import { negotiate } from './negotiate.ts';
import { decodePages, PAGE_ERROR, PAGES_VERSION, PageEncoder } from './page-stream.ts';
import { SectionReader, writeSectionHeader } from './sections.ts';
import { ARBITER, CMD, HEADER, ON_PEER_LOSS, ROLE, SECTION } from './spec.ts';
import {
  LOGGED,
  TapLogReader,
  TRIGGER_SPACE,
  writeLoggedHeader,
  writeTapLogHeader,
  writeTrigger,
} from './tap-log.ts';
import { type Line, transcript } from './transcript.ts';

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

function hello(change: Partial<Hello> = {}): Hello {
  return {
    protocolMin: 1,
    protocolMax: 1,
    role: ROLE.primary,
    onPeerLoss: ON_PEER_LOSS.wait,
    arbiter: ARBITER.lock,
    vm: '00112233445566778899aabbccddeeff',
    instance: '0123456789abcdef',
    generation: 3,
    committedId: 0,
    complete: false,
    ended: false,
    machineDigest: 'aa'.repeat(32),
    cpuDigest: 'bb'.repeat(32),
    pageBytes: 4096,
    tscKhz: 2_400_000,
    compression: 3,
    limits: {
      frameBytesMax: 1 << 20,
      transactionBytesMax: 2 ** 33,
      epochsInFlightMax: 4,
      tapBytesMax: 1 << 22,
    },
    host: 'host-a',
    ...change,
  };
}

const E = { generation: 3, id: 0, seq: 0 };
const manifest = { frames: 2, sections: 3, bytes: 9, pages: 1, crc: 0xdeadbeef };

const EVERY: readonly Message[] = [
  { ...E, cmd: 'HELLO', hello: hello({ host: 'häuschen', complete: true, committedId: 2 ** 52 }) },
  { ...E, cmd: 'INIT', mode: 'full' },
  { ...E, cmd: 'INIT', id: 2 ** 40 + 7, mode: 'resume' },
  { ...E, cmd: 'SYNC', seq: 9, payload: bytesOf('some pages') },
  { ...E, cmd: 'BEGIN', id: 8, baseId: 7, syncFrames: 0 },
  { ...E, cmd: 'CONTINUE', id: 8, seq: 0, payload: bytesOf('part') },
  { ...E, cmd: 'CONTINUE', id: 8, seq: 1, payload: bytesOf('') },
  { ...E, cmd: 'COMMIT', id: 8, seq: 2, manifest },
  { ...E, cmd: 'ATOMIC', id: 8, seq: 2, manifest: { ...manifest, bytes: 2 ** 50 } },
  { ...E, cmd: 'CANCEL', id: 8, code: FAULT.CANCELLED },
  { ...E, cmd: 'ACK', id: 8, of: 'commit', degraded: true },
  { ...E, cmd: 'NACK', id: 9, code: FAULT.SEQ_WRONG, sentence: faultSentence(FAULT.SEQ_WRONG) },
  { ...E, cmd: 'HANDOVER', id: 8, newGeneration: 4 },
  { ...E, cmd: 'END', id: 8, reason: 1 },
  { ...E, cmd: 'HEARTBEAT', appliedId: 7, degraded: false },
];

function encode(message: Message): Uint8Array {
  const out = new Uint8Array(encodedBytesMax(message));
  return out.subarray(0, encodeMessage(out, 0, message));
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

class Collector {
  readonly messages: Message[] = [];
  readonly faults: DecodeFault[] = [];
  refuse: FaultCode | 0 = 0;
  readonly decoder = new Decoder({
    admit: (h) => (h.cmd === 'CONTINUE' ? this.refuse : 0),
    message: (m) => this.messages.push('payload' in m ? { ...m, payload: m.payload.slice() } : m),
    fault: (f) => this.faults.push(f),
  });

  constructor(bulkBytesMax = 64) {
    this.decoder.setBulkBytesMax(bulkBytesMax);
  }
}

/** `frame` with its header checksum made right again after a change. */
function reseal(frame: Uint8Array): Uint8Array {
  const sum = crc32c(frame, 0, HEADER.headerCrc);
  new DataView(frame.buffer, frame.byteOffset).setUint32(HEADER.headerCrc, sum, true);
  return frame;
}

describe('codec and decoder', () => {
  it('returns every message as it was, whatever the split', () => {
    const stream = concat(EVERY.map(encode));
    fc.assert(
      fc.property(fc.array(fc.nat(stream.length), { maxLength: 40 }), (cuts) => {
        const c = new Collector();
        let at = 0;
        for (const cut of [...cuts.sort((a, b) => a - b), stream.length]) {
          c.decoder.push(stream, at, cut);
          at = cut;
        }
        expect(c.faults).toEqual([]);
        expect(c.messages).toEqual(EVERY);
      }),
    );
  });

  it('keeps the numbers of the vocabulary', () => {
    expect([CMD.INIT, CMD.BEGIN, CMD.CONTINUE, CMD.COMMIT]).toEqual([0, 1, 2, 3]);
    expect([CMD.CANCEL, CMD.ATOMIC, CMD.ACK, CMD.NACK]).toEqual([4, 5, 6, 0xffff]);
  });

  it('notices every flipped bit, and none makes a message', () => {
    for (const message of EVERY) {
      const frame = encode(message);
      for (let bit = 0; bit < frame.length * 8; bit++) {
        const bad = frame.slice();
        bad[bit >> 3]! ^= 1 << (bit & 7);
        const c = new Collector();
        c.decoder.push(bad);
        expect([c.messages.length, c.faults.length]).toEqual([0, 1]);
      }
    }
  });

  it('refuses an oversized payload on its header alone', () => {
    const c = new Collector(64);
    const frame = encode({ ...E, cmd: 'CONTINUE', payload: new Uint8Array(65) });
    c.decoder.push(frame, 0, 40);
    expect(c.faults).toMatchObject([{ code: FAULT.PAYLOAD_TOO_LARGE, fatal: true }]);
    expect(c.decoder.bufferedBytes).toBe(0);
    const huge = encode(EVERY[1]!);
    new DataView(huge.buffer).setUint32(HEADER.payloadBytes, 0xffffffff, true);
    const d = new Collector();
    d.decoder.push(reseal(huge));
    expect(d.faults).toMatchObject([{ code: FAULT.PAYLOAD_TOO_LARGE, fatal: true }]);
  });

  it('takes no bulk frame before limits are agreed', () => {
    const c = new Collector(0);
    c.decoder.push(encode({ ...E, cmd: 'SYNC', payload: bytesOf('x') }));
    expect(c.faults).toMatchObject([{ code: FAULT.PAYLOAD_TOO_LARGE, fatal: true }]);
  });

  it('skips what admission refuses and goes on behind it', () => {
    const c = new Collector();
    c.refuse = FAULT.TRANSACTION_TOO_LARGE;
    const stream = concat([encode(EVERY[5]!), encode(EVERY[9]!)]);
    for (const byte of stream) c.decoder.push(Uint8Array.of(byte));
    expect(c.faults).toMatchObject([{ code: FAULT.TRANSACTION_TOO_LARGE, fatal: false, id: 8 }]);
    expect(c.messages).toEqual([EVERY[9]]);
  });

  it('tells a damaged payload from lost framing', () => {
    const c = new Collector();
    const bad = encode(EVERY[5]!);
    bad[bad.length - 1]! ^= 1;
    c.decoder.push(concat([bad, encode(EVERY[9]!), bytesOf('garbage, as long as a header is')]));
    c.decoder.push(bytesOf('garbage, as long as a header is'));
    expect(c.messages).toEqual([EVERY[9]]);
    expect(c.faults.map((f) => [f.code, f.fatal, f.id])).toEqual([
      [FAULT.PAYLOAD_CHECKSUM, false, 8],
      [FAULT.BAD_MAGIC, true, 0],
    ]);
    expect(c.decoder.dead).toBe(true);
  });

  it('names an unknown command, another framing version and a value above 2^53', () => {
    const change = (at: number, value: number): FaultCode | undefined => {
      const frame = encode(EVERY[1]!);
      frame[at] = value;
      const c = new Collector();
      c.decoder.push(reseal(frame));
      return c.faults[0]?.code;
    };
    expect(change(HEADER.cmd, 99)).toBe(FAULT.COMMAND_UNKNOWN);
    expect(change(HEADER.version, 2)).toBe(FAULT.BAD_VERSION);
    expect(change(HEADER.id + 6, 0x20)).toBe(FAULT.MALFORMED);
    expect(change(HEADER.flags, 1)).toBe(FAULT.MALFORMED);
  });

  it('survives the fuzzer', () => {
    const report = fuzzDecoder(0x5eed, 3000);
    expect(report.failure).toBeUndefined();
    expect(report.messages).toBeGreaterThan(1000);
    expect(report.faults).toBeGreaterThan(1000);
  });
});

describe('golden transcripts', () => {
  it('opens, synchronises and commits', async () => {
    const standby = hello({ role: ROLE.standby, host: 'host-b', generation: 0 });
    const lines: Line[] = [
      { from: 'primary', message: { ...E, cmd: 'HELLO', hello: hello() } },
      { from: 'standby', message: { ...E, generation: 0, cmd: 'HELLO', hello: standby } },
      { from: 'primary', message: { ...E, cmd: 'INIT', mode: 'full' } },
      { from: 'standby', message: { ...E, cmd: 'ACK', of: 'init', degraded: false } },
      { from: 'primary', message: { ...E, cmd: 'SYNC', payload: bytesOf('pages') } },
      { from: 'primary', message: { ...E, cmd: 'BEGIN', id: 1, baseId: 0, syncFrames: 1 } },
      { from: 'primary', message: { ...E, cmd: 'CONTINUE', id: 1, payload: bytesOf('state') } },
      { from: 'primary', message: { ...E, cmd: 'COMMIT', id: 1, seq: 1, manifest } },
      { from: 'standby', message: { ...E, cmd: 'ACK', id: 1, of: 'commit', degraded: false } },
    ];
    await expect(transcript(lines)).toMatchFileSnapshot('golden/first-commit.txt');
  });

  it('refuses, cancels, hands over and ends', async () => {
    const lines: Line[] = EVERY.slice(9).map((message) => ({
      from: message.cmd === 'ACK' || message.cmd === 'NACK' ? 'standby' : 'primary',
      message,
    }));
    await expect(transcript(lines)).toMatchFileSnapshot('golden/other-messages.txt');
  });

  it('sends pages ahead of a capture, gives that up, and does it again', async () => {
    const from = 'primary' as const;
    const record = (page: number, byte: number): Uint8Array => {
      const out = new Uint8Array(64);
      const stats = new Uint32Array(5);
      const content = new Uint8Array(16).fill(byte);
      new PageEncoder(0, 16).encode(Uint32Array.of(page), 0, 1, content, 0, out, 12, stats);
      writeSectionHeader(out, 0, SECTION.pages, PAGES_VERSION, 0, stats[4]! - 12);
      return out.subarray(0, stats[4]);
    };
    const parts = [record(7, 1), record(8, 0), record(7, 2)];
    const part = (seq: number): Line => ({
      from,
      message: { ...E, cmd: 'CONTINUE', id: 2, seq, payload: parts[seq]! },
    });
    const all = concat(parts);
    const counted = { frames: 3, sections: 3, bytes: all.length, pages: 3, crc: crc32c(all) };
    const lines: Line[] = [
      { from, message: { ...E, cmd: 'BEGIN', id: 2, baseId: 1, syncFrames: 1 } },
      part(0),
      { from, message: { ...E, cmd: 'CANCEL', id: 2, code: FAULT.CANCELLED } },
      { from, message: { ...E, cmd: 'BEGIN', id: 2, seq: 1, baseId: 1, syncFrames: 1 } },
      part(0),
      part(1),
      { from, message: { ...E, cmd: 'HEARTBEAT', id: 1, appliedId: 1, degraded: false } },
      // The capture: page 7 was written again.
      part(2),
      { from, message: { ...E, cmd: 'COMMIT', id: 2, seq: 3, manifest: counted } },
      { from: 'standby', message: { ...E, cmd: 'ACK', id: 2, of: 'commit', degraded: false } },
    ];
    await expect(transcript(lines)).toMatchFileSnapshot('golden/ahead.txt');
  });

  it('lists every fault with its sentence', async () => {
    const text = Object.entries(FAULT).map(
      ([name, code]) => `${code} ${name}: ${faultSentence(code)}\n`,
    );
    await expect(text.join('')).toMatchFileSnapshot('golden/faults.txt');
    expect(faultSentence(999)).toContain('999');
  });
});

describe('negotiate', () => {
  const standby = (change: Partial<Hello> = {}): Hello => hello({ role: ROLE.standby, ...change });

  it('agrees on the smaller limits and the common methods', () => {
    const limits = { ...hello().limits, frameBytesMax: 4096 };
    const agreed = negotiate(hello(), standby({ limits, compression: 2, protocolMax: 9 }));
    expect(agreed).toEqual({ protocol: 1, compression: 2, limits });
  });

  it('names what does not fit', () => {
    const cases: [Partial<Hello>, Partial<Hello>, FaultCode][] = [
      [{}, { protocolMin: 2, protocolMax: 3 }, FAULT.PROTOCOL_VERSION],
      [{}, { role: ROLE.primary }, FAULT.ROLE_CONFLICT],
      [{}, { vm: '00'.repeat(16) }, FAULT.OTHER_VM],
      [{}, { machineDigest: '00'.repeat(32) }, FAULT.OTHER_MACHINE],
      [{}, { cpuDigest: '00'.repeat(32) }, FAULT.OTHER_CPU],
      [{}, { tscKhz: 2_401_000 }, FAULT.OTHER_CPU],
      [{}, { pageBytes: 16384 }, FAULT.PAGE_SIZE],
      [{}, { arbiter: ARBITER.none }, FAULT.POLICY_CONFLICT],
      [
        { arbiter: ARBITER.none, onPeerLoss: ON_PEER_LOSS.goOn },
        { arbiter: ARBITER.none, onPeerLoss: ON_PEER_LOSS.takeover },
        FAULT.POLICY_CONFLICT,
      ],
      [{}, { limits: { ...hello().limits, epochsInFlightMax: 0 } }, FAULT.LIMITS],
    ];
    for (const [mine, theirs, code] of cases) {
      expect(negotiate(hello(mine), standby(theirs))).toMatchObject({ code });
      expect(negotiate(standby(theirs), hello(mine))).toMatchObject({ code });
    }
    expect(negotiate(hello(), standby({ tscKhz: 2_400_100 }))).toHaveProperty('protocol');
  });
});

describe('sections', () => {
  it('are walked without copying, and garbage ends the walk', () => {
    const out = new Uint8Array(64);
    let at = writeSectionHeader(out, 0, SECTION.vcpu, 1, 3, 4);
    at = writeSectionHeader(out, at + 4, SECTION.tapLog, 2, 0x01020304, 0);
    const r = new SectionReader().reset(out, 0, at);
    expect(r.next()).toBe(true);
    expect([r.type, r.version, r.instance, r.bodyStart, r.bodyEnd]).toEqual([2, 1, 3, 12, 16]);
    expect(r.next()).toBe(true);
    expect([r.type, r.version, r.instance]).toEqual([5, 2, 0x01020304]);
    expect([r.next(), r.error]).toEqual([false, undefined]);
    expect([r.reset(out, 0, at - 1).next(), r.next(), r.error]).toEqual([true, false, 'malformed']);
    out[0] = 200;
    expect([r.reset(out, 0, at).next(), r.error]).toEqual([false, 'unknown']);
  });

  it('hold pages as records: zero, raw, delta and same', () => {
    const encoder = new PageEncoder(4, 32);
    const out = new Uint8Array(256);
    const stats = new Uint32Array(5);
    const contents = new Uint8Array(4 * 32);
    contents.fill(7, 32);
    contents[64 + 9] = 1;
    // Page 3 three times: raw, one word changed, and the same again.
    expect(encoder.encode(Uint32Array.of(2, 3, 3), 0, 3, contents, 0, out, 0, stats)).toBe(3);
    const again = Uint32Array.of(3);
    expect(encoder.encode(again, 0, 1, contents, 64, out, stats[4]!, stats)).toBe(1);
    expect([...stats]).toEqual([1, 1, 1, 1, 12 + 44 + 22 + 12]);
    const hex = (start: number, end: number): string =>
      Array.from(out.subarray(start, end), (b) => b.toString(16).padStart(2, '0')).join('');
    expect(hex(0, 8)).toBe('0200000000000000');
    expect(hex(12, 20)).toBe('0300000003002000');
    expect(hex(56, 64)).toBe('0300000002000a00');
    expect(hex(68, 78)).toBe('01010701070707070707');
    expect(hex(78, 86)).toBe('0300000001000000');
    const list = new Uint32Array(4);
    const staging = new Uint8Array(4 * 32);
    const before = new Uint8Array(32).fill(7);
    const decode = (start: number, end: number): number =>
      decodePages(out, start, end, (n) => (n < 4 ? before : undefined), list, 0, staging, 0, 32);
    expect(decode(0, 78)).toBe(3);
    expect([[...list.subarray(0, 3)], staging.subarray(0, 96)]).toEqual([
      [2, 3, 3],
      contents.subarray(0, 96),
    ]);
    expect(decode(78, 90)).toBe(PAGE_ERROR.checksum);
    expect(decode(78, 89)).toBe(PAGE_ERROR.malformed);
    out[0] = 9;
    expect(decode(0, 12)).toBe(PAGE_ERROR.notMemory);
    expect(decode(12, 12)).toBe(0);
  });

  it('hold the tap log: outputs with their bytes, triggers with their full width', () => {
    const out = new Uint8Array(256);
    let at = writeTapLogHeader(out, 0, 41, 42, 1, 2);
    at = writeLoggedHeader(out, at, LOGGED.frame, 1, 5);
    out.set(bytesOf('frame'), at);
    at = writeTrigger(out, at + 5, TRIGGER_SPACE.pio, 4, 0xcf8, 0x80001234, 0);
    at = writeTrigger(out, at, TRIGGER_SPACE.mmio, 8, 2 ** 33 + 16, 0xffffffff, 0x89abcdef);
    const r = new TapLogReader().reset(out, 0, at);
    expect([r.releasedThrough, r.firstSeq]).toEqual([41, 42]);
    expect(r.nextOutput()).toBe(true);
    expect(new TextDecoder().decode(out.subarray(r.dataStart, r.dataEnd))).toBe('frame');
    expect(r.nextOutput()).toBe(false);
    expect(r.nextTrigger()).toBe(true);
    expect([r.space, r.size, r.address, r.valueLo]).toEqual([1, 4, 0xcf8, 0x80001234]);
    expect(r.nextTrigger()).toBe(true);
    expect([r.size, r.address, r.valueLo, r.valueHi]).toEqual([
      8,
      2 ** 33 + 16,
      0xffffffff,
      0x89abcdef,
    ]);
    expect([r.nextTrigger(), r.malformed]).toEqual([false, false]);
    for (let end = 0; end < at; end++) expect(r.reset(out, 0, end).check()).toBe(false);
    expect(r.reset(out, 0, at).check()).toBe(true);
  });
});
