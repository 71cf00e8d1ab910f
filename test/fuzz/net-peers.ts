/**
 * Fuzzers of what networks take from outside. The stream backend: frames behind their lengths in any splits, lengths beyond
 * any frame, half frames and hang-ups, while the device turns receiving on and off and the peer stops reading. What must
 * hold: exactly the sound frames come out, in order; what was taken for sending reaches the peer as it was; buffers stay
 * within their bounds. The capture file: odd frames and odd clocks; what the file holds is what passed.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AssertionError, assert } from '../../src/base/assert.ts';
import { MemoryLog, silentLog } from '../../src/base/log.ts';
import { Prng } from '../../src/base/prng.ts';
import { FrameBatch, MAX_FRAME_BYTES, VNET_HEADER_BYTES } from '../../src/net/backend.ts';
import { openCapture } from '../../src/net/pcap.ts';
import { openStream, type StreamBackend } from '../../src/net/stream.ts';
import { TestNet } from '../support/test-net.ts';
import type { Coverage } from './coverage.ts';
import { PeerSocket, turns } from './peer-socket.ts';

const MIN_FRAME_BYTES = 14;
/** What a backend may keep from one peer: its buffer, and what is on the way. */
const PEER_BUFFER_MAX = 2 ** 20;
const FRAME_SIZES = [0, 1, 13, 14, 60, 1514, 9000, MAX_FRAME_BYTES];
/** All of a frame has one value, and frames follow each other in a pattern: a shift by a byte shows. */
const filled = (bytes: number, value: number): Uint8Array => new Uint8Array(bytes).fill(value);

function framed(frame: Uint8Array, length = frame.length): Uint8Array {
  const out = Buffer.alloc(4 + frame.length);
  out.writeUInt32BE(length >>> 0);
  out.set(frame, 4);
  return out;
}

/** A mistake made on purpose in the path between peer and device. */
export type StreamPlant = 'loses a frame' | 'changes a byte';

class StreamRun {
  readonly #random: Prng;
  readonly #seen: Coverage;
  readonly #batch = new FrameBatch(8, 100_000);
  readonly #plant: StreamPlant | undefined;
  backend!: StreamBackend;
  #peer!: PeerSocket;
  /** Frames that must come out, and how many frames came out in all. */
  #expected: Uint8Array[] = [];
  #out = 0;
  /** What the peer must have got on this connection. */
  #sent = Buffer.alloc(0);
  /** The peer broke the protocol: its connection ends, and nothing more is taken. */
  #broken = false;
  #value = 0;
  #maxFrames = 8;
  #failure: unknown;

  constructor(random: Prng, seen: Coverage, plant?: StreamPlant) {
    this.#random = random;
    this.#seen = seen;
    this.#plant = plant;
  }

  readonly #dial = () => {
    this.#peer = new PeerSocket();
    this.#expected = [];
    this.#sent = Buffer.alloc(0);
    this.#broken = false;
    return this.#peer.socket;
  };

  async open(): Promise<void> {
    const address = { path: '/nowhere' };
    this.backend = await openStream(silentLog, { address, retryMs: 0.1, dial: this.#dial });
    this.backend.setHandler({
      receivable: () => {
        try {
          this.#receive();
        } catch (error) {
          // A callback has nobody to throw to.
          this.#failure ??= error;
          this.backend.setReceiveEnabled(false);
        }
      },
      writable: () => this.#seen.hit('writable again'),
      linkChanged: (up) => this.#seen.hit(up ? 'link up' : 'link down'),
    });
  }

  async step(): Promise<void> {
    const random = this.#random;
    switch (random.below(8)) {
      case 0:
      case 1:
      case 2:
        this.#frames();
        break;
      case 3:
        for (let n = this.#peer.stalled ? 12 : 1; n > 0; n--) this.#send();
        break;
      case 4:
        this.#maxFrames = random.pick([1, 3, 8]);
        this.backend.setReceiveEnabled(random.chance(0.6));
        break;
      case 5:
        if (this.#peer.stalled) this.#peer.unstall();
        else this.#peer.stalled = random.chance(0.3);
        break;
      case 6:
        if (random.chance(0.2)) {
          this.#seen.hit('hung up');
          this.#peer.hangUp(random);
          this.#expected = [];
        }
        break;
      default:
        await turns(random.between(1, 4));
    }
    // The backend's pause before it connects again.
    if (!this.backend.linkUp && random.chance(0.3)) await new Promise((go) => setTimeout(go, 2));
    this.#mustHold();
    if (!this.#peer.destroyed) {
      const got = this.#peer.received;
      assert(this.#sent.subarray(0, got.length).equals(got), 'the peer gets what was sent');
    }
  }

  #mustHold(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** The peer sends some. */
  #frames(): void {
    const random = this.#random;
    const peer = this.#peer;
    if (peer.destroyed || this.#broken || peer.readableLength > PEER_BUFFER_MAX) return;
    const parts: Uint8Array[] = [];
    for (let n = random.between(1, 12); n > 0; n--) {
      const size = random.chance(0.7) ? random.pick(FRAME_SIZES) : random.below(2000);
      const frame = filled(size, this.#value++ & 0xff);
      if (random.chance(0.01)) {
        this.#seen.hit('absurd length');
        parts.push(framed(frame, random.pick([MAX_FRAME_BYTES + 1, 2 ** 31, 2 ** 32 - 1])));
        this.#broken = true;
        break;
      }
      parts.push(framed(frame));
      if (size < MIN_FRAME_BYTES) this.#seen.hit('short frame');
      else this.#expected.push(frame);
    }
    let bytes: Uint8Array = Buffer.concat(parts);
    if (this.#plant === 'changes a byte' && random.chance(0.1)) {
      bytes = bytes.slice();
      bytes[bytes.length - 1]! ^= 1;
    }
    peer.say(random, bytes);
  }

  #receive(): void {
    const batch = this.#batch;
    batch.clear();
    const added = this.backend.receive(batch, this.#maxFrames);
    assert(added === batch.count && added <= this.#maxFrames, `${added} of ${batch.count} frames`);
    if (this.#plant === 'loses a frame' && this.#out % 50 === 49) this.#expected.shift();
    for (let i = 0; i < added; i++) {
      const frame = this.#expected.shift();
      if (frame === undefined) throw new AssertionError('a frame that nobody sent');
      assert(Buffer.compare(frame, batch.frame(i)) === 0, `frame of ${frame.length} bytes differs`);
      this.#out++;
      this.#seen.hit(frame.length === MAX_FRAME_BYTES ? 'largest frame' : 'frame');
    }
  }

  /** The device sends some. */
  #send(): void {
    const random = this.#random;
    const batch = this.#batch;
    batch.clear();
    for (let n = random.between(1, 8); n > 0; n--) {
      if (!batch.addFrame(filled(random.pick(FRAME_SIZES), this.#value++ & 0xff))) break;
    }
    const connected = this.backend.linkUp;
    const taken = this.backend.send(batch, 0);
    assert(taken >= 0 && taken <= batch.count, `took ${taken} of ${batch.count}`);
    if (taken < batch.count) this.#seen.hit('takes no more');
    if (!connected) {
      assert(taken === batch.count, 'what goes to nobody is lost');
      return;
    }
    const parts = Array.from({ length: taken }, (_, i) => framed(batch.frame(i)));
    this.#sent = Buffer.concat([this.#sent, ...parts]);
    const ahead = this.#sent.length - this.#peer.received.length;
    assert(ahead <= PEER_BUFFER_MAX, `${ahead} bytes are kept for the peer`);
  }

  /** All that waits comes through, or the connection has ended. */
  async end(): Promise<void> {
    this.backend.setReceiveEnabled(true);
    this.#peer.unstall();
    for (let turn = 0; this.#expected.length > 0 && !this.#peer.destroyed; turn++) {
      await turns();
      this.#mustHold();
      if (turn > 5000) throw new AssertionError(`${this.#expected.length} frames do not arrive`);
    }
    await turns(3);
    this.#mustHold();
    if (this.#broken) assert(this.#peer.destroyed, 'who sends no frames is cut off');
    await this.backend.close();
  }
}

/** Runs `rounds` networks from `seed`. */
export async function fuzzStream(
  seed: number,
  rounds: number,
  seen: Coverage,
  plant?: StreamPlant,
): Promise<void> {
  const random = new Prng(seed);
  const alive = setInterval(() => {}, 1000);
  try {
    for (let round = 0; round < rounds; round++) {
      const run = new StreamRun(random.fork(), seen, plant);
      await run.open();
      try {
        for (let step = random.between(10, 80); step > 0; step--, seen.cases++) await run.step();
        await run.end();
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        throw new Error(`seed ${seed}, network ${round}: ${why}`, { cause: error });
      } finally {
        await run.backend.close();
      }
    }
  } finally {
    clearInterval(alive);
  }
}

const CLOCKS = [0, 1e9 - 1, 1.7e18, 1.7e18 + 256, -1, -1.7e18, 2 ** 62, 1e30, Number.NaN];

/** A mistake made on purpose: what the capture is compared with. */
export type CapturePlant = 'misses an end';

/** Runs `rounds` captures from `seed`. */
export async function fuzzCapture(
  seed: number,
  rounds: number,
  seen: Coverage,
  plant?: CapturePlant,
): Promise<void> {
  const random = new Prng(seed);
  const folder = mkdtempSync(join(tmpdir(), 'tsvmm-fuzz-'));
  try {
    for (let round = 0; round < rounds; round++) await capture(random, seen, folder, plant);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(`seed ${seed}: ${why}`, { cause: error });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function capture(
  random: Prng,
  seen: Coverage,
  folder: string,
  plant: CapturePlant | undefined,
): Promise<void> {
  // A full disk, now and then.
  const full = random.chance(0.1);
  const path = full ? '/dev/full' : join(folder, 'capture');
  const inner = new TestNet();
  const log = new MemoryLog();
  let now = 0;
  const filter = openCapture(inner, log, { path, wallNs: () => now });
  const batch = new FrameBatch(16, 2 * (MAX_FRAME_BYTES + 100));
  const passed: Uint8Array[] = [];
  for (let step = random.between(1, 12); step > 0; step--, seen.cases++) {
    now = random.pick(CLOCKS);
    batch.clear();
    const frames = Array.from({ length: random.between(0, 8) }, () =>
      filled(random.pick(FRAME_SIZES), random.below(256)),
    );
    if (random.chance(0.5)) {
      for (const frame of frames) batch.addFrame(frame);
      inner.room = random.pick([0, 1, 100]);
      const from = random.below(batch.count + 1);
      const taken = filter.send(batch, from);
      for (let i = from; i < from + taken; i++) passed.push(batch.frame(i).slice());
      seen.hit(taken < batch.count - from ? 'some are sent' : 'all are sent');
    } else {
      for (const frame of frames) inner.arrive(frame);
      if (random.chance(0.3)) batch.addFrame(filled(60, 1));
      const from = batch.count;
      const added = filter.receive(batch, random.between(1, 16));
      for (let i = from; i < from + added; i++) passed.push(batch.frame(i).slice());
      seen.hit(added < frames.length ? 'some are received' : 'all are received');
    }
    inner.sent.length = 0;
  }
  await filter.close();
  if (full) {
    assert(log.lines.length <= 1, 'a full disk is told once');
    seen.hit('full disk');
    return;
  }
  assert(log.lines.length === 0, log.lines.join());
  if (plant === 'misses an end') passed[0] = passed[0]?.subarray(1) ?? new Uint8Array(0);
  compare(readFileSync(path), passed);
}

/** The file must hold exactly `passed`, as any reader of pcap sees it. */
function compare(file: Buffer, passed: readonly Uint8Array[]): void {
  assert(file.readUInt32LE(0) === 0xa1b23c4d && file.readUInt32LE(20) === 1, 'a capture file');
  let at = 24;
  for (const [i, frame] of passed.entries()) {
    const [nanoseconds, kept, length] = [4, 8, 12].map((o) => file.readUInt32LE(at + o));
    assert(nanoseconds! < 1e9, `${nanoseconds} ns in a second`);
    assert(kept === frame.length && length === frame.length, `record ${i} has ${kept} bytes`);
    at += 16;
    assert(file.subarray(at, at + kept).equals(frame), `record ${i} differs`);
    at += kept;
  }
  assert(at === file.length, 'nothing behind the last record');
  assert(VNET_HEADER_BYTES === 12, 'headers are left out');
}
