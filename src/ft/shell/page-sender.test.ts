import { describe, expect, it } from 'vitest';
import type { NativeIo } from '../../kvm/native-io.ts';
import { Epoch } from './epoch.ts';
import type { ReplicatedGuest } from './guest.ts';
import { PageSender } from './page-sender.ts';
import { BLOCK_PAGES, Staging } from './staging.ts';

/** Notes which pages it is given, and takes up to `PER_CHUNK` of them at a time. */
const PER_CHUNK = 100;
class Encoder {
  readonly encoded: number[] = [];
  readonly forgotten: number[] = [];
  encode(
    pages: Uint32Array,
    first: number,
    count: number,
    _src: Uint8Array,
    srcOffset: number,
    _out: Uint8Array,
    outOffset: number,
    stats: Uint32Array,
  ): number {
    if (srcOffset < 0) throw new RangeError('outside of staging');
    const taken = Math.min(count, PER_CHUNK);
    this.encoded.push(...pages.subarray(first, first + taken));
    stats[4] = outOffset + 16;
    return taken;
  }
  forget(pages: Uint32Array, first: number, count: number): void {
    this.forgotten.push(...pages.subarray(first, first + count));
  }
  clear(): void {}
}

function ground(blocks: number) {
  const encoders: Encoder[] = [];
  class PageEncoder extends Encoder {
    constructor() {
      super();
      encoders.push(this);
    }
  }
  const io = { PageEncoder, crc32c: () => 0 } as unknown as NativeIo;
  const sender = new PageSender(io, 16);
  const staging = new Staging(blocks);
  const map = { gather: () => {}, beginGather: () => {}, endGather: () => {} };
  const guest = { map } as unknown as ReplicatedGuest;
  const epoch = (number: number, pages: number): Epoch =>
    new Epoch(
      number,
      Uint32Array.from({ length: pages }, (_, i) => i),
      staging,
      guest,
    );
  return { sender, staging, epoch, encoder: encoders[0]! };
}

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((done) => setImmediate(done));
};

describe('PageSender', () => {
  it('encodes pages, state and log, in order, and gives staging back', async () => {
    const { sender, staging, epoch, encoder } = ground(2);
    const one = epoch(1, BLOCK_PAGES + 50);
    expect(one.beginCopy()).toBe(true);
    const sealed: unknown[] = [];
    let chunks = 0;
    sender.sendEpoch(one, staging.bytes, {
      chunk(_epoch, chunk) {
        chunks++;
        setImmediate(() => sender.pool.release(chunk));
        return true;
      },
      sealed(number, manifest) {
        sealed.push([number, manifest.pages, manifest.frames]);
        return true;
      },
    });
    await turns(40);
    expect(encoder.encoded).toEqual([...one.pages]);
    expect(sealed).toEqual([[1, BLOCK_PAGES + 50, chunks]]);
    expect(staging.freePages).toBe(2 * BLOCK_PAGES);
  });

  it('encodes no page of an epoch that was returned while it waited', async () => {
    const { sender, staging, epoch, encoder } = ground(2);
    const one = epoch(1, 2 * BLOCK_PAGES);
    one.beginCopy();
    const held: number[] = [];
    sender.sendEpoch(one, staging.bytes, {
      chunk(_epoch, chunk) {
        held.push(chunk);
        return true;
      },
      sealed: () => true,
    });
    // All chunk buffers are with a network that takes none.
    await turns(20);
    const before = encoder.encoded.length;
    expect(before).toBe(one.done);
    expect(before).toBeLessThan(one.pages.length);
    sender.forget(one.pages, one.done);
    one.dispose();
    for (const chunk of held) sender.pool.release(chunk);
    await turns(20);
    expect(encoder.encoded.length).toBe(before);
    expect(encoder.forgotten).toEqual(encoder.encoded);
    expect(staging.freePages).toBe(2 * BLOCK_PAGES);
  });

  it('streams what does not fit into staging', async () => {
    const { sender, staging, epoch, encoder } = ground(1);
    const one = epoch(1, 3 * BLOCK_PAGES);
    expect(one.beginCopy()).toBe(false);
    let sealed = 0;
    sender.sendEpoch(one, staging.bytes, {
      chunk(_epoch, chunk) {
        setImmediate(() => sender.pool.release(chunk));
        return true;
      },
      sealed: () => ++sealed > 0,
    });
    await turns(100);
    expect([encoder.encoded.length, sealed]).toEqual([3 * BLOCK_PAGES, 1]);
    expect(staging.freePages).toBe(BLOCK_PAGES);
  });
});
