/**
 * The incremental decoder: bytes in any split, whole messages out. It buffers at most one frame, never more
 * than the limits in force allow, decides on the header alone whether a payload may come at all, and never
 * throws on what the peer sends: a damaged stream yields a {@link DecodeFault} and, where the framing is
 * lost, the decoder takes nothing more.
 */
import { assert } from '../../base/assert.ts';
import { crc32c } from '../../base/crc32c.ts';
import { decodeHeader, decodeMessage, type FrameHeader } from './codec.ts';
import { FAULT, type Fault, type FaultCode, fault } from './fault.ts';
import type { Message } from './message.ts';
import { CONTROL_PAYLOAD_MAX, HEADER_BYTES } from './spec.ts';

/** CRC-32C of `bytes[start, end)`. */
export type Checksum = (bytes: Uint8Array, start: number, end: number) => number;

/** A fault found while decoding. */
export interface DecodeFault extends Fault {
  /** Whether the framing is lost: the connection must be closed. Otherwise only this frame was skipped. */
  readonly fatal: boolean;
  /** Generation and id of the damaged frame where its header was sound, else 0. */
  readonly generation: number;
  readonly id: number;
}

/** Receives what the decoder finds. Called inside {@link Decoder.push}. */
export interface DecoderHandler {
  /**
   * Asked once per frame before any of its payload is buffered (R5): 0 to take it, or the code with which to
   * refuse it. A refused bulk frame is skipped without being buffered; a refused control frame is fatal.
   * @param header borrowed until the call returns
   */
  admit(header: FrameHeader): FaultCode | 0;
  /** A sound message. Its payload, if bulk, is borrowed until the call returns. */
  message(message: Message): void;
  /** Something was wrong. After a fatal fault nothing more comes. */
  fault(fault: DecodeFault): void;
}

/** Decodes one direction of one connection. */
export class Decoder {
  readonly #handler: DecoderHandler;
  readonly #checksum: Checksum;
  readonly #header: FrameHeader = {
    cmd: 'HELLO',
    generation: 0,
    id: 0,
    seq: 0,
    payloadBytes: 0,
    payloadCrc: 0,
  };
  readonly #headerBytes = new Uint8Array(HEADER_BYTES);
  #headerFill = 0;
  #inPayload = false;
  #payload: Uint8Array = new Uint8Array(CONTROL_PAYLOAD_MAX);
  #payloadFill = 0;
  #skip = 0;
  #bulkBytesMax = 0;
  #dead = false;
  #busy = false;

  /** @param checksum CRC-32C of a range; the shell passes its native one */
  constructor(handler: DecoderHandler, checksum: Checksum = crc32c) {
    this.#handler = handler;
    this.#checksum = checksum;
  }

  /** Whether a fatal fault has ended the stream. */
  get dead(): boolean {
    return this.#dead;
  }

  /** Bytes held right now. */
  get bufferedBytes(): number {
    return this.#headerFill + this.#payloadFill;
  }

  /** Largest CONTINUE or SYNC payload taken; 0 (none) until HELLO has settled it. */
  setBulkBytesMax(bytes: number): void {
    this.#bulkBytesMax = bytes;
  }

  /** Takes nothing more; the rest of a push in progress is dropped too. */
  stop(): void {
    this.#dead = true;
  }

  /** Feeds `bytes[start, end)`; they are the caller's again when it returns. */
  push(bytes: Uint8Array, start = 0, end: number = bytes.length): void {
    assert(!this.#busy, 'a handler does not feed the decoder that called it');
    this.#busy = true;
    let at = start;
    while (at < end && !this.#dead) {
      if (this.#skip > 0) {
        const n = Math.min(this.#skip, end - at);
        this.#skip -= n;
        at += n;
      } else if (this.#inPayload) {
        at = this.#takePayload(bytes, at, end);
      } else {
        at = this.#takeHeader(bytes, at, end);
      }
    }
    this.#busy = false;
  }

  #takeHeader(bytes: Uint8Array, at: number, end: number): number {
    const n = Math.min(HEADER_BYTES - this.#headerFill, end - at);
    for (let i = 0; i < n; i++) this.#headerBytes[this.#headerFill + i] = bytes[at + i]!;
    this.#headerFill += n;
    if (this.#headerFill < HEADER_BYTES) return at + n;
    this.#headerFill = 0;
    switch (decodeHeader(this.#headerBytes, 0, this.#header)) {
      case 'ok':
        this.#headerDone();
        break;
      case 'magic':
        this.#fail(FAULT.BAD_MAGIC);
        break;
      case 'version':
        this.#fail(FAULT.BAD_VERSION);
        break;
      case 'checksum':
        this.#fail(FAULT.HEADER_CHECKSUM);
        break;
      case 'command':
        this.#fail(FAULT.COMMAND_UNKNOWN);
        break;
      case 'value':
        this.#fail(FAULT.MALFORMED, 'header');
        break;
    }
    return at + n;
  }

  #headerDone(): void {
    const h = this.#header;
    const bulk = h.cmd === 'CONTINUE' || h.cmd === 'SYNC';
    if (h.payloadBytes > (bulk ? this.#bulkBytesMax : CONTROL_PAYLOAD_MAX)) {
      this.#fail(FAULT.PAYLOAD_TOO_LARGE, `${h.cmd} of ${h.payloadBytes} bytes`);
      return;
    }
    const refused = this.#handler.admit(h);
    if (this.#dead) return;
    if (refused !== 0) {
      if (bulk) this.#skip = h.payloadBytes;
      this.#report(refused, h.cmd, !bulk, h.generation, h.id);
      return;
    }
    if (h.payloadBytes === 0) {
      this.#complete(this.#payload, 0, 0);
      return;
    }
    if (bulk && this.#payload.length < this.#bulkBytesMax) {
      // Grown once, to what both ends agreed on, never to what a frame claims.
      this.#payload = new Uint8Array(this.#bulkBytesMax);
    }
    this.#inPayload = true;
    this.#payloadFill = 0;
  }

  #takePayload(bytes: Uint8Array, at: number, end: number): number {
    const size = this.#header.payloadBytes;
    if (this.#payloadFill === 0 && end - at >= size) {
      this.#inPayload = false;
      this.#complete(bytes, at, at + size);
      return at + size;
    }
    const n = Math.min(size - this.#payloadFill, end - at);
    this.#payload.set(bytes.subarray(at, at + n), this.#payloadFill);
    this.#payloadFill += n;
    if (this.#payloadFill === size) {
      this.#inPayload = false;
      this.#payloadFill = 0;
      this.#complete(this.#payload, 0, size);
    }
    return at + n;
  }

  #complete(bytes: Uint8Array, start: number, end: number): void {
    const h = this.#header;
    if (this.#checksum(bytes, start, end) !== h.payloadCrc) {
      this.#report(FAULT.PAYLOAD_CHECKSUM, h.cmd, false, h.generation, h.id);
      return;
    }
    const message = decodeMessage(h, bytes, start, end);
    if (message === undefined) this.#fail(FAULT.MALFORMED, h.cmd);
    else this.#handler.message(message);
  }

  #fail(code: FaultCode, detail = ''): void {
    this.#report(code, detail, true, 0, 0);
  }

  #report(code: FaultCode, detail: string, fatal: boolean, generation: number, id: number): void {
    if (fatal) this.#dead = true;
    this.#handler.fault({ ...fault(code, detail), fatal, generation, id });
  }
}
