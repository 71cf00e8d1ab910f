/**
 * Messages to bytes and back. Encoding is one call per frame; for bulk payloads only the header is written
 * ({@link encodeBulkHeader}), so that the shell can send payload straight from its staging buffer.
 * Decoding of whole payloads is here, assembling them from a stream in decoder.ts.
 */
import { assert } from '../../base/assert.ts';
import { hi32, lo32, u64 } from '../../base/bits.ts';
import { crc32c } from '../../base/crc32c.ts';
import { FieldReader, FieldWriter, readU32, writeU32 } from './cursor.ts';
import type { AckMessage, Hello, InitMessage, Message } from './message.ts';
import {
  CMD,
  CMD_NAME,
  type CmdName,
  CONTROL_PAYLOAD_MAX,
  HEADER,
  HEADER_BYTES,
  HOST_NAME_MAX_BYTES,
  SENTENCE_MAX_BYTES,
  WIRE_MAGIC,
  WIRE_VERSION,
} from './spec.ts';

const ACK_OF: readonly AckMessage['of'][] = ['init', 'commit', 'handover', 'end'];
const INIT_MODE: readonly InitMessage['mode'][] = ['full', 'resume'];

/** A decoded header. The decoder reuses one object: copy what must be kept. */
export interface FrameHeader {
  cmd: CmdName;
  generation: number;
  id: number;
  seq: number;
  payloadBytes: number;
  payloadCrc: number;
}

/**
 * Writes the header of a frame whose payload of `payloadBytes` with CRC-32C `payloadCrc` follows.
 * @returns the offset behind the header
 */
export function encodeHeader(
  out: Uint8Array,
  at: number,
  cmd: CmdName,
  generation: number,
  id: number,
  seq: number,
  payloadBytes: number,
  payloadCrc: number,
): number {
  assert(at + HEADER_BYTES <= out.length, 'room for a frame header');
  writeU32(out, at + HEADER.magic, WIRE_MAGIC);
  out[at + HEADER.version] = WIRE_VERSION;
  out[at + HEADER.flags] = 0;
  const code = CMD[cmd];
  out[at + HEADER.cmd] = code;
  out[at + HEADER.cmd + 1] = code >>> 8;
  writeU32(out, at + HEADER.id, lo32(id));
  writeU32(out, at + HEADER.id + 4, hi32(id));
  writeU32(out, at + HEADER.seq, seq);
  writeU32(out, at + HEADER.payloadBytes, payloadBytes);
  writeU32(out, at + HEADER.generation, generation);
  writeU32(out, at + HEADER.payloadCrc, payloadCrc);
  writeU32(out, at + HEADER.reserved, 0);
  writeU32(out, at + HEADER.headerCrc, crc32c(out, at, at + HEADER.headerCrc));
  return at + HEADER_BYTES;
}

/** The header of a CONTINUE or SYNC frame, for a payload that is sent from where it lies. */
export function encodeBulkHeader(
  out: Uint8Array,
  at: number,
  message: { cmd: 'CONTINUE' | 'SYNC'; generation: number; id: number; seq: number },
  payloadBytes: number,
  payloadCrc: number,
): number {
  const { cmd, generation, id, seq } = message;
  return encodeHeader(out, at, cmd, generation, id, seq, payloadBytes, payloadCrc);
}

/** An upper bound of the bytes {@link encodeMessage} writes for `message`. */
export function encodedBytesMax(message: Message): number {
  return (
    HEADER_BYTES +
    (message.cmd === 'CONTINUE' || message.cmd === 'SYNC'
      ? message.payload.length
      : CONTROL_PAYLOAD_MAX)
  );
}

/**
 * Encodes a whole frame.
 * @param out with room for {@link encodedBytesMax} bytes from `at`
 * @returns the offset behind the frame
 */
export function encodeMessage(out: Uint8Array, at: number, message: Message): number {
  const start = at + HEADER_BYTES;
  const end = encodePayload(out, start, message);
  const crc = crc32c(out, start, end);
  const { cmd, generation, id, seq } = message;
  encodeHeader(out, at, cmd, generation, id, seq, end - start, crc);
  return end;
}

function encodePayload(out: Uint8Array, start: number, m: Message): number {
  if (m.cmd === 'CONTINUE' || m.cmd === 'SYNC') {
    assert(start + m.payload.length <= out.length, 'room for a payload');
    out.set(m.payload, start);
    return start + m.payload.length;
  }
  assert(start + CONTROL_PAYLOAD_MAX <= out.length, 'room for a control payload');
  const w = new FieldWriter(out, start);
  switch (m.cmd) {
    case 'HELLO':
      encodeHello(w, m.hello);
      break;
    case 'INIT':
      w.u8(INIT_MODE.indexOf(m.mode));
      break;
    case 'BEGIN':
      w.u64(m.baseId);
      w.u32(m.syncFrames);
      break;
    case 'COMMIT':
    case 'ATOMIC':
      w.u32(m.manifest.frames);
      w.u32(m.manifest.sections);
      w.u64(m.manifest.bytes);
      w.u32(m.manifest.pages);
      w.u32(m.manifest.crc);
      break;
    case 'CANCEL':
      w.u16(m.code);
      break;
    case 'ACK':
      w.u8(ACK_OF.indexOf(m.of));
      w.u8(m.degraded ? 1 : 0);
      break;
    case 'NACK':
      w.u16(m.code);
      w.text(m.sentence, SENTENCE_MAX_BYTES);
      break;
    case 'HANDOVER':
      w.u32(m.newGeneration);
      break;
    case 'END':
      w.u8(m.reason);
      break;
    case 'HEARTBEAT':
      w.u64(m.appliedId);
      w.u8(m.degraded ? 1 : 0);
      break;
  }
  return w.offset;
}

function encodeHello(w: FieldWriter, h: Hello): void {
  w.u16(h.protocolMin);
  w.u16(h.protocolMax);
  w.u8(h.role);
  w.u8(h.onPeerLoss);
  w.u8(h.arbiter);
  w.u8((h.complete ? 1 : 0) | (h.ended ? 2 : 0));
  w.hexBytes(h.vm, 16);
  w.hexBytes(h.instance, 8);
  w.u32(h.generation);
  w.u64(h.committedId);
  w.hexBytes(h.machineDigest, 32);
  w.hexBytes(h.cpuDigest, 32);
  w.u32(h.pageBytes);
  w.u32(h.tscKhz);
  w.u32(h.compression);
  w.u32(h.limits.frameBytesMax);
  w.u64(h.limits.transactionBytesMax);
  w.u32(h.limits.epochsInFlightMax);
  w.u32(h.limits.tapBytesMax);
  w.text(h.host, HOST_NAME_MAX_BYTES);
}

/** What is wrong with a header: 0, or how far it could be read. */
export type HeaderVerdict = 'ok' | 'magic' | 'version' | 'checksum' | 'command' | 'value';

/** Reads the header at `bytes[at]` (HEADER_BYTES are there) into `into`. */
export function decodeHeader(bytes: Uint8Array, at: number, into: FrameHeader): HeaderVerdict {
  if (readU32(bytes, at + HEADER.magic) !== WIRE_MAGIC) return 'magic';
  if (bytes[at + HEADER.version] !== WIRE_VERSION) return 'version';
  if (readU32(bytes, at + HEADER.headerCrc) !== crc32c(bytes, at, at + HEADER.headerCrc)) {
    return 'checksum';
  }
  const cmd = CMD_NAME.get(bytes[at + HEADER.cmd]! | (bytes[at + HEADER.cmd + 1]! << 8));
  if (cmd === undefined) return 'command';
  const idHi = readU32(bytes, at + HEADER.id + 4);
  if (idHi >= 0x20_0000 || bytes[at + HEADER.flags] !== 0) return 'value';
  into.cmd = cmd;
  into.id = u64(readU32(bytes, at + HEADER.id), idHi);
  into.seq = readU32(bytes, at + HEADER.seq);
  into.payloadBytes = readU32(bytes, at + HEADER.payloadBytes);
  into.generation = readU32(bytes, at + HEADER.generation);
  into.payloadCrc = readU32(bytes, at + HEADER.payloadCrc);
  return 'ok';
}

/**
 * The message of a frame whose payload lies complete in `bytes[start, end)` with its checksum already found
 * right, or undefined when the payload does not fit the command. Bulk messages borrow `bytes`.
 */
export function decodeMessage(
  header: FrameHeader,
  bytes: Uint8Array,
  start: number,
  end: number,
): Message | undefined {
  const { cmd, generation, id, seq } = header;
  if (cmd === 'CONTINUE' || cmd === 'SYNC') {
    return { cmd, generation, id, seq, payload: bytes.subarray(start, end) };
  }
  const r = new FieldReader(bytes, start, end);
  const message = decodeControl(r, cmd, generation, id, seq);
  return r.bad || r.remaining !== 0 ? undefined : message;
}

function decodeControl(
  r: FieldReader,
  cmd: Exclude<CmdName, 'CONTINUE' | 'SYNC'>,
  generation: number,
  id: number,
  seq: number,
): Message | undefined {
  switch (cmd) {
    case 'HELLO': {
      const hello = decodeHello(r);
      return hello && { cmd, generation, id, seq, hello };
    }
    case 'INIT': {
      const mode = INIT_MODE[r.u8()];
      return mode && { cmd, generation, id, seq, mode };
    }
    case 'BEGIN':
      return { cmd, generation, id, seq, baseId: r.u64(), syncFrames: r.u32() };
    case 'COMMIT':
    case 'ATOMIC': {
      const frames = r.u32();
      const sections = r.u32();
      const bytes = r.u64();
      const pages = r.u32();
      return {
        cmd,
        generation,
        id,
        seq,
        manifest: { frames, sections, bytes, pages, crc: r.u32() },
      };
    }
    case 'CANCEL':
      return { cmd, generation, id, seq, code: r.u16() };
    case 'ACK': {
      const of = ACK_OF[r.u8()];
      return of && { cmd, generation, id, seq, of, degraded: r.u8() !== 0 };
    }
    case 'NACK': {
      const code = r.u16();
      return { cmd, generation, id, seq, code, sentence: r.text(SENTENCE_MAX_BYTES) };
    }
    case 'HANDOVER':
      return { cmd, generation, id, seq, newGeneration: r.u32() };
    case 'END': {
      const reason = r.u8();
      if (reason !== 1 && reason !== 2 && reason !== 3) return undefined;
      return { cmd, generation, id, seq, reason };
    }
    case 'HEARTBEAT':
      return { cmd, generation, id, seq, appliedId: r.u64(), degraded: r.u8() !== 0 };
  }
}

function decodeHello(r: FieldReader): Hello | undefined {
  const protocolMin = r.u16();
  const protocolMax = r.u16();
  const role = r.u8();
  const onPeerLoss = r.u8();
  const arbiter = r.u8();
  const flags = r.u8();
  if ((role !== 0 && role !== 1) || flags > 3) return undefined;
  if (onPeerLoss !== 0 && onPeerLoss !== 1 && onPeerLoss !== 2) return undefined;
  if (arbiter !== 0 && arbiter !== 1 && arbiter !== 2) return undefined;
  return {
    protocolMin,
    protocolMax,
    role,
    onPeerLoss,
    arbiter,
    complete: (flags & 1) !== 0,
    ended: (flags & 2) !== 0,
    vm: r.hexBytes(16),
    instance: r.hexBytes(8),
    generation: r.u32(),
    committedId: r.u64(),
    machineDigest: r.hexBytes(32),
    cpuDigest: r.hexBytes(32),
    pageBytes: r.u32(),
    tscKhz: r.u32(),
    compression: r.u32(),
    limits: {
      frameBytesMax: r.u32(),
      transactionBytesMax: r.u64(),
      epochsInFlightMax: r.u32(),
      tapBytesMax: r.u32(),
    },
    host: r.text(HOST_NAME_MAX_BYTES),
  };
}
