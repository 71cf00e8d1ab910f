import { describe, expect, it } from 'vitest';
import { BLOCK_OP, type BlockBackend, type BlockHandler, ERRNO } from '../../block/backend.ts';
import type { ConsoleBackend } from '../../console/backend.ts';
import { FrameBatch, type NetBackend } from '../../net/backend.ts';
import { Lease } from './lease.ts';
import { Outputs } from './outputs.ts';

/** Backends that note what reaches them. */
function bench() {
  const seen: string[] = [];
  let handler: BlockHandler | undefined;
  let deadlineNs = Number.NaN;
  const queued: number[] = [];
  const disk = {
    info: { maxRequests: 4 },
    inFlight: 0,
    setHandler: (h: BlockHandler) => {
      handler = h;
    },
    queue: (tag: number) => {
      queued.push(tag);
    },
    submit: () => {
      for (const tag of queued.splice(0)) seen.push(`disk ${tag}`);
    },
    setLeaseDeadlineNs: (ns: number) => {
      deadlineNs = ns;
    },
  } as unknown as BlockBackend;
  const net = {
    setHandler: () => {},
    send: (batch: FrameBatch, from: number) => {
      for (let i = from; i < batch.count; i++) seen.push(`frame ${batch.bytes[batch.offsets[i]!]}`);
      return batch.count - from;
    },
  } as unknown as NetBackend;
  const console = {
    setHandler: () => {},
    write: (byte: number) => seen.push(`byte ${byte}`) > 0,
  } as unknown as ConsoleBackend;
  const outputs = new Outputs({ consoles: [console], nets: [net], disks: [disk] }, 1);
  const clock = { now: 100 };
  const lease = new Lease(() => clock.now);
  lease.set(200);
  outputs.setLease(lease);
  lease.setEvents({ changed: () => outputs.leaseChanged(), superseded: () => {} });
  const told: string[] = [];
  outputs.disks[0]!.setHandler({
    complete: (tag, result) => told.push(`${tag}: ${result}`),
    batchEnd: () => {},
  });
  const woken: string[] = [];
  outputs.nets[0]!.setHandler({
    receivable: () => {},
    linkChanged: () => {},
    writable: () => woken.push('net'),
  });
  outputs.consoles[0]!.setHandler({ readable: () => {}, writable: () => woken.push('console') });
  const write = (tag: number): void => {
    const part = outputs.disks[0]!;
    part.queue(tag, BLOCK_OP.write, 0, 512, Float64Array.of(0), Uint32Array.of(512), 0, 1);
    part.submit();
  };
  const frame = (byte: number): number => {
    const batch = new FrameBatch(1, 70_000);
    batch.bytes[batch.add(20)] = byte;
    return outputs.nets[0]!.send(batch, 0);
  };
  return {
    ...{ seen, told, woken, outputs, clock, lease, write, frame },
    complete: (tag: number, result: number) => handler!.complete(tag, result),
    deadline: () => deadlineNs,
  };
}

describe('outputs under a lease', () => {
  it('pass while it runs; after its end none leaves, and each leaves once when it is back', () => {
    const b = bench();
    b.write(0);
    expect([b.frame(1), b.outputs.consoles[0]!.write(2)]).toEqual([1, true]);
    expect(b.seen).toEqual(['disk 0', 'frame 1', 'byte 2']);
    expect(b.deadline()).toBe(200);
    b.complete(0, 0);
    // Nobody told this process that time has passed: it was stopped, say.
    b.clock.now = 200;
    b.seen.length = 0;
    b.write(1);
    expect([b.frame(3), b.outputs.consoles[0]!.write(4)]).toEqual([0, false]);
    expect(b.seen).toEqual([]);
    expect(b.outputs.disks[0]!.inFlight).toBe(1);
    b.lease.set(400);
    expect(b.seen).toEqual(['disk 1']);
    expect(b.woken.sort()).toEqual(['console', 'net']);
    expect([b.frame(3), b.outputs.consoles[0]!.write(4)]).toEqual([1, true]);
    expect(b.told).toEqual(['0: 0']);
  });

  it('held ones stay held when they are released too late', () => {
    const b = bench();
    const { tap } = b.outputs;
    tap.holding = true;
    b.write(0);
    expect([b.frame(1), b.outputs.consoles[0]!.write(2)]).toEqual([1, true]);
    tap.seal(1);
    b.clock.now = 250;
    tap.release(1);
    expect(b.seen).toEqual([]);
    b.lease.set(Number.NEGATIVE_INFINITY);
    expect([b.seen.length, b.deadline()]).toEqual([0, 0]);
    b.lease.set(400);
    expect(b.seen.sort()).toEqual(['byte 2', 'disk 0', 'frame 1']);
  });

  it('a write that the disk refused for the end of the lease is given to it again, and the guest hears of it once', () => {
    const b = bench();
    b.write(2);
    b.complete(2, ERRNO.EKEYEXPIRED);
    expect(b.told).toEqual([]);
    expect(b.outputs.disks[0]!.inFlight).toBe(1);
    b.lease.set(300);
    expect(b.seen).toEqual(['disk 2', 'disk 2']);
    b.complete(2, 0);
    expect(b.told).toEqual(['2: 0']);
  });

  it('do not bind a disk of this host alone', () => {
    const b = bench();
    b.outputs.disks[0]!.isOutput = false;
    b.lease.set(250);
    expect(b.deadline()).toBe(Number.POSITIVE_INFINITY);
    b.clock.now = 300;
    b.write(0);
    expect(b.seen).toEqual(['disk 0']);
  });

  it('that is lost for good is told to whoever listens later', () => {
    const lease = new Lease(() => 0);
    lease.superseded(7);
    const heard: number[] = [];
    lease.setEvents({ changed: () => {}, superseded: (generation) => heard.push(generation) });
    expect(heard).toEqual([7]);
  });
});
