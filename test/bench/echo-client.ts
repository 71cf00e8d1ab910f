/**
 * Sends small UDP datagrams to the demo guest's echo port (firmware/README.md) at a fixed pace and times the answers: the delay that
 * replication adds to an output, seen from outside.
 */
const MY_MAC = Uint8Array.of(0x02, 0, 0, 0, 0, 0x02);
const MY_IP = Uint8Array.of(10, 0, 2, 1);
const GUEST_IP = Uint8Array.of(10, 0, 2, 15);
const MY_PORT = 40001;
const ECHO_PORT = 7;
const FRAME_BYTES = 60;
const NUMBER_AT = 42;
/** Requests remembered; older ones are lost. */
const WINDOW = 4096;

function checksum(frame: Uint8Array, start: number, end: number): number {
  let sum = 0;
  for (let i = start; i < end; i += 2) sum += (frame[i]! << 8) | frame[i + 1]!;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** See the module's head. */
export class EchoClient {
  /** Round trips, ms. */
  readonly trips: number[] = [];
  /** When the last answers came, ms on performance.now(). */
  readonly arrivals: number[] = [];
  readonly #send: (frame: Uint8Array) => void;
  readonly #sentMs = new Float64Array(WINDOW);
  #guestMac: Uint8Array | undefined;
  #number = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(send: (frame: Uint8Array) => void) {
    this.#send = send;
  }

  /** Sends a request every `everyMs`. */
  start(everyMs: number): void {
    clearInterval(this.#timer);
    this.#timer = setInterval(
      () => (this.#guestMac === undefined ? this.#arp() : this.#ask()),
      everyMs,
    );
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #arp(): void {
    const frame = new Uint8Array(FRAME_BYTES).fill(0xff, 0, 6);
    frame.set(MY_MAC, 6);
    frame.set([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], 12);
    frame.set(MY_MAC, 22);
    frame.set(MY_IP, 28);
    frame.set(GUEST_IP, 38);
    this.#send(frame);
  }

  #ask(): void {
    const frame = new Uint8Array(FRAME_BYTES);
    const view = new DataView(frame.buffer);
    frame.set(this.#guestMac!, 0);
    frame.set(MY_MAC, 6);
    view.setUint16(12, 0x0800);
    frame[14] = 0x45;
    view.setUint16(16, 46);
    frame[22] = 64;
    frame[23] = 17;
    frame.set(MY_IP, 26);
    frame.set(GUEST_IP, 30);
    view.setUint16(24, checksum(frame, 14, 34));
    view.setUint16(34, MY_PORT);
    view.setUint16(36, ECHO_PORT);
    view.setUint16(38, 26);
    view.setUint32(NUMBER_AT, ++this.#number);
    this.#sentMs[this.#number % WINDOW] = performance.now();
    this.#send(frame);
  }

  /** A frame from the network. */
  receive(frame: Uint8Array): void {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
    if (frame.length < NUMBER_AT + 4) return;
    if (view.getUint16(12) === 0x0806) {
      if (view.getUint16(20) === 2) this.#guestMac = frame.slice(22, 28);
      return;
    }
    if (view.getUint16(12) !== 0x0800 || frame[23] !== 17 || view.getUint16(36) !== MY_PORT) return;
    const now = performance.now();
    const sent = this.#sentMs[view.getUint32(NUMBER_AT) % WINDOW]!;
    if (sent === 0) return;
    this.#sentMs[view.getUint32(NUMBER_AT) % WINDOW] = 0;
    this.trips.push(now - sent);
    this.arrivals.push(now);
  }
}
