/** Measure 8: the inner loops alone, and the simulator's speed. No peer: these are to be compared with themselves, over time. */
import { join } from 'node:path';
import { type Command, commandText, finish, ROOT } from '../guest-run.ts';
import type { BenchContext, Experiment, Measure } from '../measure.ts';

const KERNELS: readonly (readonly [name: string, what: string])[] = [
  ['virtqueue', 'pop, push and publish of a chain of three descriptors'],
  ['e1000-transmit', 'a frame of 60 bytes from doorbell to back end'],
  ['gather', 'a scattered page of 4 KiB into staging'],
  ['zero', 'encoding a page of zeros'],
  ['delta-5', 'encoding a page with 5 % of its words changed'],
  ['delta-60', 'encoding a page with 60 % of its words changed'],
];

export const kernels: Measure = {
  name: 'kernels',
  title: '8. Unit kernels and simulator',
  missing: () => undefined,
  async experiments({ quick }: BenchContext): Promise<Experiment[]> {
    const program = join(ROOT, 'dist/test/bench/kernel-process.js');
    const flags = ['--expose-gc', '--max-semi-space-size=64'];
    const rounds = quick ? '200' : '1000';
    const loops = KERNELS.map(([name, what]): Experiment => {
      const command: Command = [process.execPath, ...flags, program, name, rounds];
      return {
        name: `${name}: ${what}`,
        seconds: 4,
        metrics: [
          { name: 'time', unit: 'ns/item' },
          { name: 'allocated', unit: 'bytes/item' },
        ],
        sides: [
          {
            name: 'tsvmm',
            command: commandText(command),
            run: async () => {
              const { ns, bytes } = JSON.parse(await finish(command)) as Record<string, number>;
              return { time: ns!, allocated: bytes! };
            },
          },
        ],
      };
    });
    const simulator: Command = [
      ...[process.execPath, join(ROOT, 'dist/test/sim/main.js'), '--seed', '1'],
      ...['--runs', quick ? '50' : '100'],
    ];
    return [
      ...loops,
      {
        name: 'simulator: whole runs of primary, standby, network and disk with faults',
        metrics: [
          { name: 'seeds', unit: '/min' },
          { name: 'seeds per minute of CPU', unit: '/min' },
        ],
        sides: [
          {
            name: 'tsvmm',
            command: commandText(simulator),
            run: async () => {
              const text = await finish(simulator, 300_000);
              const found = /(\d+) seeds a minute, (\d+) a minute of CPU/.exec(text);
              if (found === null) throw new Error(`the simulator said ${text.slice(-200)}`);
              return { seeds: Number(found[1]), 'seeds per minute of CPU': Number(found[2]) };
            },
          },
        ],
        seconds: 10,
      },
    ];
  },
};
