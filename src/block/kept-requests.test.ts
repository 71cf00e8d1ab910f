import { describe, expect, it } from 'vitest';
import { BLOCK_OP, type BlockBackend } from './backend.ts';
import { KeptRequests } from './kept-requests.ts';

describe('kept requests', () => {
  it('are queued as they came, whatever became of the arrays that they came in', () => {
    const queued: unknown[] = [];
    const disk = {
      queue(...[tag, op, offset, length, addresses, lengths, first, count]) {
        const to = first + count;
        queued.push([
          tag,
          op,
          offset,
          length,
          addresses.slice(first, to),
          lengths.slice(first, to),
        ]);
      },
    } as Pick<BlockBackend, 'queue'> as BlockBackend;
    const kept = new KeptRequests(4);
    const addresses = Float64Array.from({ length: 100 }, (_, i) => i * 0x1000);
    const lengths = new Uint32Array(100).fill(512);
    kept.keep(3, BLOCK_OP.write, 8192, 2 * 512, addresses, lengths, 5, 2);
    kept.keep(0, BLOCK_OP.read, 0, 90 * 512, addresses, lengths, 10, 90);
    kept.note(1, BLOCK_OP.flush, 0, 0);
    const expected = [
      [3, BLOCK_OP.write, 8192, 1024, addresses.slice(5, 7), lengths.slice(5, 7)],
      [0, BLOCK_OP.read, 0, 90 * 512, addresses.slice(10), lengths.slice(10)],
      [1, BLOCK_OP.flush, 0, 0, new Float64Array(0), new Uint32Array(0)],
    ];
    addresses.fill(-1);
    lengths.fill(0);
    for (const tag of [3, 0, 1]) kept.queueAt(disk, tag);
    expect(queued).toEqual(expected);
  });
});
