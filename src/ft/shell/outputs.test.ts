// What outputs tell their backends about the lease.
import { describe, expect, it } from 'vitest';
import { MemoryDisk } from '../../block/memory.ts';
import { GuestMemory } from '../../memory/guest-memory.ts';
import { Lease } from './lease.ts';
import { Outputs } from './outputs.ts';

describe('outputs', () => {
  it('tell a disk at once that its writes no longer depend on the lease, or do', () => {
    const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(4096) }]);
    const deadlines: number[] = [];
    const disk = Object.assign(new MemoryDisk(memory, { sizeBytes: 4096 }), {
      setLeaseDeadlineNs: (ns: number) => deadlines.push(ns),
    });
    const outputs = new Outputs({ consoles: [], nets: [], disks: [disk] }, 1);
    const lease = new Lease(() => 10);
    outputs.setShared(0, true);
    expect(deadlines).toEqual([]);
    outputs.setLease(lease);
    lease.set(5);
    outputs.leaseChanged();
    expect(deadlines.at(-1)).toBe(5);
    // The lease is over, and nobody tells of another change.
    outputs.setShared(0, false);
    expect([outputs.disks[0]!.isOutput, deadlines.at(-1)]).toEqual([
      false,
      Number.POSITIVE_INFINITY,
    ]);
    outputs.setShared(0, true);
    expect([outputs.disks[0]!.isOutput, deadlines.at(-1)]).toEqual([true, 5]);
  });
});
