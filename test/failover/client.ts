/**
 * A client of the demo guest (formats: firmware/README.md): finds it by ARP, sends numbered UDP requests, sends one again until it
 * is answered, and writes down every reply it ever saw. What it saw is the outside's truth that a failover must not contradict.
 */
import { crc32c } from '../../src/base/crc32c.ts';

const MY_MAC = Uint8Array.of(0x02, 0, 0, 0, 0, 0x01);
const MY_IP = Uint8Array.of(10, 0, 2, 1);
const GUEST_IP = Uint8Array.of(10, 0, 2, 15);
const GUEST_PORT = 7777;
const MY_PORT = 40000;
const REPLY_MAGIC = 0x7076736d;
const REPLY_BYTES = 48;
/** A request that is not answered is sent again after this. */
const RESEND_MS = 100;
/** Requests that may be unanswered at a time. */
const WINDOW = 4;

/** One reply as it arrived. */
export interface Reply {
  readonly atMs: number;
  readonly number: number;
  readonly count: number;
  readonly sequence: number;
  readonly bootId: number;
  readonly ok: boolean;
}

function sum16(bytes: Uint8Array, start: number, end: number, seed = 0): number {
  let sum = seed;
  for (let i = start; i < end; i += 2) sum += (bytes[i]! << 8) | (i + 1 < end ? bytes[i + 1]! : 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
}

/** See the module's head. */
export class DemoClient {
  readonly replies: Reply[] = [];
  /** Replies that were damaged or impossible. */
  readonly oddities: string[] = [];
  readonly #send: (frame: Uint8Array) => void;
  readonly #waiting = new Map<number, number>();
  #guestMac: Uint8Array | undefined;
  #next = 1;
  #timer: NodeJS.Timeout | undefined;
  #lastArpMs = 0;
  #stopping = false;

  /** @param send puts a frame on the network */
  constructor(send: (frame: Uint8Array) => void) {
    this.#send = send;
  }

  /** Begins to send requests. */
  start(): void {
    this.#timer = setInterval(() => this.#tick(), 5);
  }

  /** Sends no new requests; unanswered ones are still repeated. */
  finish(): void {
    this.#stopping = true;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** Requests without an answer. */
  get unanswered(): number {
    return this.#waiting.size;
  }

  get asked(): number {
    return this.#next - 1;
  }

  #tick(): void {
    const now = performance.now();
    if (this.#guestMac === undefined) {
      if (now - this.#lastArpMs > RESEND_MS) {
        this.#lastArpMs = now;
        this.#arp();
      }
      return;
    }
    for (const [number, sentMs] of this.#waiting) {
      if (now - sentMs < RESEND_MS) continue;
      this.#waiting.set(number, now);
      this.#request(number);
    }
    if (!this.#stopping && this.#waiting.size < WINDOW) {
      const number = this.#next++;
      this.#waiting.set(number, now);
      this.#request(number);
    }
  }

  #arp(): void {
    const frame = new Uint8Array(60);
    frame.fill(0xff, 0, 6);
    frame.set(MY_MAC, 6);
    frame.set([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], 12);
    frame.set(MY_MAC, 22);
    frame.set(MY_IP, 28);
    frame.set(GUEST_IP, 38);
    this.#send(frame);
  }

  #request(number: number): void {
    const payload = 8;
    const frame = new Uint8Array(60);
    const view = new DataView(frame.buffer);
    frame.set(this.#guestMac!, 0);
    frame.set(MY_MAC, 6);
    view.setUint16(12, 0x0800);
    frame[14] = 0x45;
    view.setUint16(16, 20 + 8 + payload);
    frame[22] = 64;
    frame[23] = 17;
    frame.set(MY_IP, 26);
    frame.set(GUEST_IP, 30);
    view.setUint16(24, ~sum16(frame, 14, 34) & 0xffff);
    view.setUint16(34, MY_PORT);
    view.setUint16(36, GUEST_PORT);
    view.setUint16(38, 8 + payload);
    view.setUint32(42, number, true);
    this.#send(frame);
  }

  /** A frame from the network. */
  receive(frame: Uint8Array): void {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
    if (frame.length < 42) return;
    const type = view.getUint16(12);
    if (type === 0x0806) {
      this.#arpReceived(frame, view);
      return;
    }
    if (type !== 0x0800 || frame[23] !== 17 || view.getUint16(36) !== MY_PORT) return;
    if (frame.length < 42 + REPLY_BYTES) return;
    const at = 42;
    if (view.getUint32(at, true) !== REPLY_MAGIC) return;
    if (crc32c(frame, at, at + 44) !== view.getUint32(at + 44, true)) {
      this.oddities.push('a reply fails its checksum');
      return;
    }
    const u64 = (offset: number): number =>
      view.getUint32(at + offset + 4, true) * 2 ** 32 + view.getUint32(at + offset, true);
    const number = u64(8);
    this.#waiting.delete(number);
    this.replies.push({
      atMs: performance.now(),
      number,
      count: u64(16),
      sequence: u64(32),
      bootId: view.getUint32(at + 40, true),
      ok: view.getUint32(at + 4, true) === 0,
    });
  }

  #arpReceived(frame: Uint8Array, view: DataView): void {
    const operation = view.getUint16(20);
    const forMe = MY_IP.every((byte, i) => frame[38 + i] === byte);
    if (!forMe) return;
    if (operation === 2) {
      this.#guestMac = frame.slice(22, 28);
    } else if (operation === 1) {
      const reply = new Uint8Array(60);
      reply.set(frame.subarray(6, 12), 0);
      reply.set(MY_MAC, 6);
      reply.set([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2], 12);
      reply.set(MY_MAC, 22);
      reply.set(MY_IP, 28);
      reply.set(frame.subarray(22, 32), 32);
      this.#send(reply);
    }
  }
}
