/**
 * The virtio entropy device (VIRTIO 1.2, 5.4): one queue of buffers that are filled with random bytes, at a bounded
 * rate, so that a guest in a loop does not take the host's time.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock, Timer } from '../../src/base/clock.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import { type Codec, struct, u32, u53 } from '../../src/snapshot/codec.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { Chain } from '../../src/virtio/chain.ts';
import type { VirtioDevice, VirtioTransport } from '../../src/virtio/device.ts';
import { featureSet, VIRTIO_TYPE } from '../../src/virtio/spec.ts';

/** Where random bytes come from: fills `bytes[start, end)`. */
export type EntropySource = (bytes: Uint8Array, start: number, end: number) => void;

/** What a {@link VirtioRng} is made of. */
export interface VirtioRngOptions {
  readonly id: string;
  readonly memory: GuestMemory;
  readonly clock: Clock;
  readonly entropy: EntropySource;
  /** Default 1 MiB. */
  readonly bytesPerSecond?: number;
}

/** The device's own saved state: what is left of the allowance, and since when it grows. */
export interface VirtioRngState {
  allowanceBytes: number;
  sinceNs: number;
}

/** Most bytes of one buffer that are filled; a driver asks again for more. */
const REQUEST_BYTES = 4096;
const BURST_BYTES = 64 * 1024;
const DEFAULT_BYTES_PER_SECOND = 1024 * 1024;
const SECOND_NS = 1e9;

export class VirtioRng implements VirtioDevice<VirtioRngState> {
  readonly id: string;
  readonly kind = 'virtio-rng';
  readonly version = 1;
  readonly codec: Codec<VirtioRngState> = struct<VirtioRngState>({
    allowanceBytes: u32,
    sinceNs: u53,
  });
  readonly type = VIRTIO_TYPE.entropy;
  readonly classCode = 0x00ff00;
  readonly queueSizes = [64];
  readonly features = featureSet();
  readonly config = new Uint8Array(0);
  readonly #memory: GuestMemory;
  readonly #clock: Clock;
  readonly #entropy: EntropySource;
  readonly #bytesPerSecond: number;
  readonly #chain = new Chain();
  readonly #scratch = new Uint8Array(REQUEST_BYTES);
  readonly #more: Timer;
  #transport: VirtioTransport | undefined;
  #allowance = BURST_BYTES;
  #since = 0;
  #paused = true;

  constructor(options: VirtioRngOptions) {
    this.id = options.id;
    this.#memory = options.memory;
    this.#clock = options.clock;
    this.#entropy = options.entropy;
    this.#bytesPerSecond = options.bytesPerSecond ?? DEFAULT_BYTES_PER_SECOND;
    this.#more = options.clock.timer(() => this.notify());
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  start(): void {}

  notify(): void {
    const transport = this.#transport;
    assert(transport !== undefined, 'the device has a transport');
    if (!transport.running) return;
    const queue = transport.queues[0]!;
    // Without an allowance also for nobody: notifications are off then, and only the timer would turn them on again.
    if (this.#allowance === 0 || queue.hasAvailable()) this.#refill();
    do {
      queue.disableNotify();
      while (this.#allowance > 0 && queue.pop(this.#chain)) this.#fill(this.#chain);
    } while (this.#allowance > 0 && queue.enableNotify());
    transport.publish(0);
    if (this.#allowance === 0) {
      this.#more.arm(this.#since + (REQUEST_BYTES / this.#bytesPerSecond) * SECOND_NS);
    }
  }

  stop(): boolean {
    this.#more.cancel();
    return true;
  }

  reset(): void {
    this.stop();
    this.#allowance = BURST_BYTES;
    this.#since = 0;
  }

  pause(): void {
    this.#paused = true;
    this.#more.cancel();
  }

  resume(): void {
    this.#paused = false;
  }

  save(): VirtioRngState {
    assert(this.#paused, 'state is taken while paused');
    return { allowanceBytes: this.#allowance, sinceNs: this.#since };
  }

  check(state: VirtioRngState): void {
    requireState(state.allowanceBytes <= BURST_BYTES, `${this.id}: allowance`);
  }

  load(state: VirtioRngState): void {
    this.#allowance = state.allowanceBytes;
    this.#since = state.sinceNs;
  }

  #fill(chain: Chain): void {
    const length = Math.min(chain.writableBytes, REQUEST_BYTES, this.#allowance);
    this.#entropy(this.#scratch, 0, length);
    chain.write(this.#memory, 0, this.#scratch, 0, length);
    this.#scratch.fill(0, 0, length);
    // A buffer without room costs something too: it must not turn the queue into a loop.
    this.#allowance -= Math.max(length, Math.min(16, this.#allowance));
    this.#transport!.queues[0]!.push(chain.head, length);
  }

  #refill(): void {
    const now = Math.floor(this.#clock.nowNs());
    const elapsed = now - this.#since;
    if (elapsed < 0) this.#since = now;
    const grown = Math.floor((elapsed / SECOND_NS) * this.#bytesPerSecond);
    if (grown <= 0) return;
    this.#allowance = Math.min(BURST_BYTES, this.#allowance + grown);
    this.#since = now;
  }
}
