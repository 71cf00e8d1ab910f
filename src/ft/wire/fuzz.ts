/**
 * A seeded fuzzer of the decoder: sound frames, damaged frames and noise in random splits. What must hold:
 * nothing is thrown, no more is buffered than agreed, a dead decoder stays dead, and a message that comes
 * out says, encoded again, the same bytes. The unit test runs a few thousand rounds, `fuzz:wire` many.
 */
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { encodedBytesMax, encodeMessage } from './codec.ts';
import { writeU32 } from './cursor.ts';
import { Decoder } from './decoder.ts';
import type { Message } from './message.ts';
import { SectionReader } from './sections.ts';
import { CMD, CONTROL_PAYLOAD_MAX, HEADER, HEADER_BYTES } from './spec.ts';
import { TapLogReader } from './tap-log.ts';

/** What a fuzzing run saw. */
export interface FuzzReport {
  readonly rounds: number;
  readonly messages: number;
  readonly faults: number;
  /** What went wrong, and in which round; absent when nothing did. */
  readonly failure: string | undefined;
}

const BULK_MAX = 200;
const CODES = Object.values(CMD);
/** Payload sizes that fit their command, so that not nearly every control frame is malformed. */
const FITTING_BYTES: ReadonlyMap<number, number> = new Map([
  [CMD.INIT, 1],
  [CMD.BEGIN, 12],
  [CMD.COMMIT, 24],
  [CMD.ATOMIC, 24],
  [CMD.CANCEL, 2],
  [CMD.ACK, 2],
  [CMD.NACK, 4],
  [CMD.HANDOVER, 4],
  [CMD.END, 1],
  [CMD.HEARTBEAT, 9],
]);

/** Runs `rounds` rounds from `seed`; the same arguments give the same run. */
export function fuzzDecoder(seed: number, rounds: number): FuzzReport {
  const prng = new Prng(seed);
  let messages = 0;
  let faults = 0;
  for (let round = 0; round < rounds; round++) {
    const stream = makeStream(prng);
    let failure: string | undefined;
    let dead = false;
    const decoder = new Decoder({
      admit: () => (prng.chance(0.05) ? 1 : 0),
      message: (m) => {
        messages++;
        if (dead) failure = 'a message after a fatal fault';
        failure ??= checkMessage(m);
      },
      fault: (f) => {
        faults++;
        if (dead) failure = 'a fault after a fatal fault';
        dead = f.fatal;
      },
    });
    decoder.setBulkBytesMax(prng.chance(0.1) ? 0 : BULK_MAX);
    try {
      for (let at = 0; at < stream.length; ) {
        const end = Math.min(stream.length, at + 1 + prng.below(prng.chance(0.5) ? 8 : 400));
        decoder.push(stream, at, end);
        at = end;
        if (decoder.bufferedBytes > HEADER_BYTES + Math.max(BULK_MAX, CONTROL_PAYLOAD_MAX)) {
          failure = `${decoder.bufferedBytes} bytes buffered`;
        }
      }
    } catch (error) {
      failure = `thrown: ${String(error)}`;
    }
    if (failure !== undefined) {
      return {
        rounds: round,
        messages,
        faults,
        failure: `seed ${seed} round ${round}: ${failure}`,
      };
    }
  }
  return { rounds, messages, faults, failure: undefined };
}

function makeStream(prng: Prng): Uint8Array {
  const parts: number[] = [];
  const frames = 1 + prng.below(4);
  for (let i = 0; i < frames; i++) {
    const code = prng.pick(CODES);
    const fitting = prng.chance(0.7) ? FITTING_BYTES.get(code) : undefined;
    const size = fitting ?? prng.below(prng.chance(0.8) ? 60 : BULK_MAX + 20);
    const frame = new Uint8Array(HEADER_BYTES + size);
    prng.fill(frame);
    if (prng.chance(0.7)) frame.fill(prng.pick([0, 1, 2]), HEADER_BYTES);
    writeU32(frame, HEADER.magic, 0x54465354);
    frame[HEADER.version] = 1;
    frame[HEADER.flags] = 0;
    frame[HEADER.cmd] = code;
    frame[HEADER.cmd + 1] = code >>> 8;
    frame[HEADER.id + 7] = 0;
    frame[HEADER.id + 6] = 0;
    writeU32(frame, HEADER.payloadBytes, prng.chance(0.97) ? size : prng.u32());
    writeU32(frame, HEADER.payloadCrc, crc32c(frame, HEADER_BYTES));
    writeU32(frame, HEADER.headerCrc, crc32c(frame, 0, HEADER.headerCrc));
    if (prng.chance(0.1)) frame[prng.below(frame.length)]! ^= 1 << prng.below(8);
    for (const byte of frame) parts.push(byte);
    if (prng.chance(0.02)) parts.pop();
  }
  return Uint8Array.from(parts);
}

function checkMessage(m: Message): string | undefined {
  const once = new Uint8Array(encodedBytesMax(m));
  const end = encodeMessage(once, 0, m);
  if (m.cmd === 'CONTINUE' || m.cmd === 'SYNC') {
    const sections = new SectionReader().reset(m.payload);
    while (sections.next()) {
      new TapLogReader().reset(m.payload, sections.bodyStart, sections.bodyEnd).check();
    }
  }
  let again: string | undefined = 'an encoded message does not decode';
  const decoder = new Decoder({
    admit: () => 0,
    message: (other) => {
      const twice = new Uint8Array(encodedBytesMax(other));
      const same = encodeMessage(twice, 0, other) === end && crc32c(twice) === crc32c(once);
      again = same ? undefined : `${m.cmd} changes when decoded and encoded again`;
    },
    fault: () => {},
  });
  decoder.setBulkBytesMax(BULK_MAX);
  decoder.push(once, 0, end);
  return again;
}
