/** Measure 1: what one exit costs, by kind, with one and two CPUs that exit at the same time. */
import { availableParallelism } from 'node:os';
import { benchLines, commandText, field, finish, qemuCommand, tsvmmCommand } from '../guest-run.ts';
import { kvmMissing } from '../machine-facts.ts';
import type { BenchContext, Experiment, Measure, Sample, Side } from '../measure.ts';

const KINDS = ['out', 'in', 'write', 'read', 'uart'] as const;
/** An address where neither program has anything. */
const NOTHING = '0xd0000000';

/** Median of the batches, mean over the CPUs; nanoseconds. */
function sampleOf(output: string): Sample {
  const sample: Record<string, number> = {};
  for (const kind of KINDS) {
    const lines = benchLines(output, 'exits').filter((line) => line.get('op') === kind);
    if (lines.length === 0) throw new Error(`the guest printed no line for ${kind}`);
    let sum = 0;
    for (const line of lines) sum += field(line, 'median_ns');
    sample[kind] = sum / lines.length;
  }
  return sample;
}

function side(name: string, command: readonly string[]): Side {
  return {
    name,
    command: commandText(command),
    run: async () => sampleOf(await finish(command)),
  };
}

export const exits: Measure = {
  name: 'exits',
  title: '1. Exit round trips',
  missing: kvmMissing,
  async experiments({ quick, qemu }: BenchContext): Promise<Experiment[]> {
    const count = quick ? 1000 : 4000;
    const aim = { side: 'qemu', atMost: 1.5 };
    return [1, 2].map((cpus) => {
      const enough = cpus === 1 || availableParallelism() > cpus;
      const spec = { guest: 'exits', append: `count=${count} cpus=${cpus} mmio=${NOTHING}`, cpus };
      return {
        name: `exits, ${cpus} vCPU${cpus > 1 ? 's' : ''}`,
        seconds: 18,
        metrics: KINDS.map((kind) => ({ name: kind, unit: 'ns', aim })),
        sides: [
          side('tsvmm', tsvmmCommand(spec)),
          ...(qemu ? [side('qemu', qemuCommand(qemu, spec))] : []),
        ],
        skipped: enough
          ? []
          : [
              `${cpus} vCPUs and their VMM share ${availableParallelism()} CPUs: threads wait for each other`,
            ],
      };
    });
  },
};
