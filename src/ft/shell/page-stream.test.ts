// What a primary encodes and a standby decodes, with the native code at both ends: memory must be the same after each commit,
// whatever was returned or damaged in between, and a damaged transaction must change nothing.
import { describe, expect, it } from 'vitest';
import { Prng } from '../../base/prng.ts';
import { loadAddon } from '../../kvm/addon.ts';
import { MemoryMapHandle } from '../../kvm/memory-map.ts';
import type { NativeKvm } from '../../kvm/native.ts';
import { loadNativeIo } from '../../kvm/native-io.ts';
import { GuestMemory } from '../../memory/guest-memory.ts';
import { requireState } from '../../snapshot/schema.ts';
import type { EventTap } from '../core/event-tap.ts';
import { EventTap as Tap } from '../core/event-tap.ts';
import { FAULT } from '../wire/fault.ts';
import type { Manifest } from '../wire/message.ts';
import { Ahead, type AheadTotals, harvestAhead, markDirty, Repeats } from './ahead.ts';
import { Epoch } from './epoch.ts';
import type { ReplicatedGuest } from './guest.ts';
import { PageSender } from './page-sender.ts';
import { Staging } from './staging.ts';
import { StandbyStore } from './standby-store.ts';

const PAGES = 512;
const io = loadNativeIo();
const addon = loadAddon() as NativeKvm;

interface Side {
  readonly bytes: Uint8Array;
  readonly guest: ReplicatedGuest;
}

function side(check: (container: Uint8Array) => void = () => {}): Side {
  const buffer = new ArrayBuffer(PAGES * 4096);
  const map = new MemoryMapHandle(new addon.MemoryMap());
  map.addRange(0, buffer);
  const memory = new GuestMemory([{ base: 0, buffer }]);
  const guest = {
    memory,
    map,
    checkContainer: check,
    harvest: (list: Uint32Array) => memory.dirty.takeInto(list),
  } as unknown as ReplicatedGuest;
  return { bytes: new Uint8Array(buffer), guest };
}

/** A log with one frame in it, or none. */
function logOf(entry?: Uint8Array): Uint8Array {
  const tap: EventTap = new Tap(
    { bytesMax: 1024, entriesMax: 8, blockMax: 1, triggersMax: 1 },
    { frame: () => {}, console: () => {}, block: () => {}, released: () => {} },
    () => {},
  );
  if (entry !== undefined) tap.holdFrame(0, entry, 0, entry.length);
  tap.seal(1);
  const log = new Uint8Array(tap.logBytes);
  tap.writeLog(log, 0);
  return log;
}

class Stream {
  readonly primary = side();
  readonly standby = side();
  readonly sender = new PageSender(io, 256);
  readonly staging = new Staging(4);
  readonly store = new StandbyStore(this.standby.guest, io, 4096);
  readonly #list = new Uint32Array(PAGES);
  readonly #repeats = new Repeats(PAGES);
  #epoch = 0;
  #ahead: Ahead | undefined;
  #aheadFrames: Uint8Array[] = [];
  aheadPages = 0;

  write(page: number, fill: (page: Uint8Array) => void): void {
    fill(this.primary.bytes.subarray(page * 4096, (page + 1) * 4096));
    this.primary.guest.memory.dirty.mark(page * 4096, 4096);
  }

  #take(chunk: number, frames: Uint8Array[]): boolean {
    frames.push(this.sender.pool.content(chunk).slice());
    this.sender.pool.release(chunk);
    return true;
  }

  /** Begins to send what is dirty; it goes on with each turn of the event loop. */
  sendAhead(): void {
    const { guest } = this.primary;
    const frames: Uint8Array[] = [];
    const pages = harvestAhead(guest, this.#list);
    this.#ahead = new Ahead(this.#epoch + 1, pages, guest, this.staging, this.sender, (chunk) =>
      this.#take(chunk, frames),
    );
    this.#aheadFrames = frames;
    this.#ahead.run();
  }

  capture(container: Uint8Array, log = logOf()): Epoch {
    const { staging, primary, sender } = this;
    const ahead: AheadTotals | undefined = this.#ahead?.stop();
    this.#ahead = undefined;
    this.aheadPages += ahead?.pages.length ?? 0;
    const count = primary.guest.harvest(this.#list);
    const pages = this.#list.slice(0, count);
    if (ahead !== undefined) {
      const again = this.#repeats.of(ahead.pages, pages);
      sender.forget(again, again.length);
    }
    const epoch = new Epoch(++this.#epoch, pages, staging, primary.guest, ahead);
    expect(epoch.beginCopy()).toBe(true);
    epoch.container = container;
    epoch.log = log;
    epoch.endCopy();
    return epoch;
  }

  /** Encodes an epoch whole; what was sent ahead of it comes first. */
  async encode(epoch: Epoch): Promise<{ frames: Uint8Array[]; manifest: Manifest }> {
    const frames = this.#aheadFrames.splice(0);
    return new Promise((resolve) => {
      this.sender.sendEpoch(epoch, this.staging.bytes, {
        chunk: (_number, chunk) => this.#take(chunk, frames),
        sealed: (_number, manifest) => {
          resolve({ frames, manifest });
          return true;
        },
      });
    });
  }

  /** The epoch never committed. */
  giveBack(epoch: Epoch): void {
    const { pages, ahead } = epoch;
    for (const list of [pages, ahead.pages]) markDirty(this.primary.guest, list);
    this.sender.forget(pages, epoch.done);
    this.sender.forget(ahead.pages, ahead.pages.length);
    epoch.dispose();
  }
}

describe('the stream of pages', () => {
  it('makes the standby equal after each commit, through returns and damage', async () => {
    const seed = Date.now() % 1e9;
    const random = new Prng(seed);
    const stream = new Stream();
    const { standby, store } = stream;
    const fills: ((page: Uint8Array) => void)[] = [
      (page) => page.fill(0),
      (page) => page.fill(random.below(256)),
      (page) => {
        for (let i = 0; i < 4096; i++) page[i] = random.below(256);
      },
      (page) => {
        for (let i = 0; i < 5; i++) page[random.below(4096)] = random.below(256);
      },
      () => {},
    ];
    for (let id = 1; id <= 30; ) {
      for (let i = random.below(60); i > 0; i--) {
        stream.write(random.below(PAGES), random.pick(fills));
      }
      // Some of it goes ahead, and the guest goes on writing, also what has gone.
      if (random.below(2) === 0) {
        stream.sendAhead();
        for (let turn = random.below(4); turn > 0; turn--) {
          for (let i = random.below(15); i > 0; i--) {
            stream.write(random.below(PAGES), random.pick(fills));
          }
          await new Promise((done) => setImmediate(done));
        }
      }
      const container = Uint8Array.from({ length: random.between(1, 3000) }, (_, i) => i + id);
      const wanted = stream.primary.bytes.slice();
      const epoch = stream.capture(container);
      // The guest runs on while the epoch is encoded.
      for (let i = random.below(10); i > 0; i--) {
        stream.write(random.below(PAGES), random.pick(fills));
      }
      const { frames, manifest } = await stream.encode(epoch);
      const fate = random.below(4);
      if (fate === 0) {
        stream.giveBack(epoch);
        continue;
      }
      const before = standby.bytes.slice();
      if (fate === 1) {
        const frame = random.pick(frames);
        frame[random.below(frame.length)]! ^= 1 << random.below(8);
        for (const each of frames) store.stage(id, each);
        expect(store.validate(id, manifest), `seed ${seed}`).toBeDefined();
        store.discard(id);
        expect(Buffer.compare(standby.bytes, before)).toBe(0);
        stream.giveBack(epoch);
        continue;
      }
      for (const each of frames) store.stage(id, each);
      expect(store.validate(id, manifest), `seed ${seed}`).toBeUndefined();
      expect(Buffer.compare(standby.bytes, before)).toBe(0);
      store.committed(id, 0);
      void store.apply(id);
      epoch.dispose();
      expect(Buffer.compare(standby.bytes, wanted), `seed ${seed}, transaction ${id}`).toBe(0);
      expect(Buffer.compare(store.container!, container)).toBe(0);
      id++;
    }
    expect(stream.staging.freePages).toBe(4 * 512);
    expect(stream.aheadPages).toBeGreaterThan(0);
  });

  it('takes no transaction that lacks a part, repeats one, or whose state cannot be loaded', async () => {
    const stream = new Stream();
    stream.write(3, (page) => page.fill(7));
    const { frames, manifest } = await stream.encode(stream.capture(new Uint8Array(100)));
    const { store } = stream;
    const tryFrames = (given: readonly Uint8Array[], more: Partial<Manifest> = {}): unknown => {
      const crc = given.reduce((sum, frame) => io.crc32c(frame, 0, frame.length, sum), 0);
      for (const frame of given) store.stage(1, frame);
      const wrong = store.validate(1, { ...manifest, crc, sections: given.length, ...more });
      store.discard(1);
      return wrong;
    };
    expect(tryFrames(frames)).toBeUndefined();
    for (let i = 0; i < frames.length; i++) {
      const without = frames.filter((_, at) => at !== i);
      expect(tryFrames(without), `without ${i}`).toBeDefined();
      expect(tryFrames([...frames.slice(0, i + 1), ...frames.slice(i)])).toBeDefined();
    }
    expect(tryFrames(frames, { pages: 2 })).toBeDefined();
    expect(tryFrames(frames, { pages: PAGES * 1.25 + 1 })).toBeDefined();
    expect(store.validate(9, manifest)).toBeDefined();
    const strict = new StandbyStore(
      side(() => {
        throw new Error('no such device');
      }).guest,
      io,
      4096,
    );
    for (const frame of frames) strict.stage(1, frame);
    expect(strict.validate(1, manifest)?.sentence).toMatch(/no such device/);
    // What this host's machine lacks, no retry mends.
    const poor = new StandbyStore(
      side(() => requireState(false, 'net0: no such offload')).guest,
      io,
      4096,
    );
    for (const frame of frames) poor.stage(1, frame);
    const wrong = poor.validate(1, manifest)!;
    expect(wrong.code).toBe(FAULT.RESOURCE_MISSING);
    expect(wrong.sentence).toMatch(/net0: no such offload/);
  });

  it('learns where the guest is from what it commits', async () => {
    const stream = new Stream();
    const entry = new Uint8Array(12 + 42);
    const from = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const arp = [0, 1, 8, 0, 6, 4, 0, 2, ...from, 10, 0, 2, 15];
    entry.set([255, 255, 255, 255, 255, 255, ...from, 8, 6, ...arp], 12);
    const { store } = stream;
    const epoch = stream.capture(new Uint8Array(10), logOf(entry));
    const { frames, manifest } = await stream.encode(epoch);
    for (const frame of frames) store.stage(1, frame);
    expect(store.validate(1, manifest)).toBeUndefined();
    expect(store.addresses.of(0)).toEqual([]);
    store.committed(1, 0);
    expect(store.addresses.of(0).map(({ ip }) => [...ip])).toEqual([[10, 0, 2, 15]]);
    epoch.dispose();
  });
});
