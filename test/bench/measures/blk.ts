/** Measure 2: virtio-blk from doorbell to completion, against QEMU on the same file with the same cache mode. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { benchLines, commandText, field, finish, qemuCommand, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Side } from '../measure.ts';

const DISK_BYTES = 64 * 2 ** 20;
const CASES = [
  { op: 'read', size: '4K', depth: 1, count: 8000 },
  { op: 'write', size: '4K', depth: 1, count: 8000 },
  { op: 'read', size: '4K', depth: 32, count: 40000 },
  { op: 'write', size: '4K', depth: 32, count: 40000 },
  { op: 'read', size: '1M', depth: 4, count: 1500 },
  { op: 'write', size: '1M', depth: 4, count: 1500 },
] as const;

function side(name: string, command: readonly string[]): Side {
  return {
    name,
    command: commandText(command),
    run: async () => {
      const line = benchLines(await finish(command), 'blk')[0];
      return {
        throughput: field(line, 'iops'),
        'median latency': field(line, 'p50_ns') / 1000,
        'doorbells/request': field(line, 'doorbells') / field(line, 'count'),
        'interrupts/request': field(line, 'interrupts') / field(line, 'count'),
      };
    },
  };
}

/** A file with every block written, so that no run pays for allocation. */
function makeDisk(path: string): void {
  const fd = openSync(path, 'w');
  const block = Buffer.alloc(2 ** 20, 0x5a);
  for (let at = 0; at < DISK_BYTES; at += block.length) writeSync(fd, block, 0, block.length, at);
  closeSync(fd);
}

export const blk: Measure = {
  name: 'blk',
  title: '2. virtio-blk, doorbell to completion',
  missing: kvmMissing,
  async experiments({ quick, qemu, folder }: BenchContext): Promise<Experiment[]> {
    const disk = join(folder, 'disk.img');
    makeDisk(disk);
    return CASES.map(({ op, size, depth, count }) => {
      const order = size === '4K' ? 'random' : 'seq';
      const requests = quick ? Math.ceil(count / 10) : count;
      const spec = {
        guest: 'blk',
        append: `op=${op} size=${size} depth=${depth} count=${requests} order=${order}`,
      };
      return {
        name: `blk, ${op} ${size} ${order}, queue depth ${depth}`,
        metrics: [
          { name: 'throughput', unit: '/s', aim: { side: 'qemu', atLeast: 1 } },
          { name: 'median latency', unit: 'µs' },
          { name: 'doorbells/request', unit: '' },
          { name: 'interrupts/request', unit: '' },
        ],
        sides: [
          side('tsvmm', tsvmmCommand(spec, ['--disk', `${disk},cache=none`])),
          ...(qemu
            ? [
                side(
                  'qemu',
                  qemuCommand(qemu, spec, [
                    ...['-drive', `file=${disk},format=raw,if=none,id=d0,cache=none,aio=io_uring`],
                    ...['-device', 'virtio-blk-pci,drive=d0,disable-legacy=on'],
                  ]),
                ),
              ]
            : []),
        ],
      };
    });
  },
};
