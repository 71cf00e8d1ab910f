/**
 * Measure 13: a stock Linux, from the start of the process to the first prompt of its shell. In the lab (test/lab), whose KVM runs stock
 * kernels; there one process boots the guest under tsvmm and QEMU in turn and prints the times, so that one start of the lab serves all.
 */
import { join } from 'node:path';
import { image } from '../../lab/images.ts';
import { kernel } from '../../lab/kernels.ts';
import { insideLab, LabError, whyNoLab } from '../../lab/tools.ts';
import { finish, ROOT } from '../guest-run.ts';
import type { BenchContext, Experiment, Measure, Sample } from '../measure.ts';

/** Rounds that count, after one that does not. */
const ROUNDS = 3;
/** The lab's own start, and twelve boots of a few seconds each. */
const TIMEOUT_S = 240;
const SIDES = ['tsvmm', 'qemu pc', 'qemu microvm'] as const;

interface Line {
  readonly round: number;
  readonly side: string;
  readonly ms?: number;
  readonly why?: string;
}

/** What start-times.ts printed. */
export function startLines(output: string): Line[] {
  return [...output.matchAll(/^start-lab: (\{.*\})\r?$/gm)].map(([, json]) => JSON.parse(json!));
}

/** Boots all sides in a lab of their own. */
async function inLab(rounds: number): Promise<Line[]> {
  const lab = ['--timeout', String(TIMEOUT_S), '--memory', '3072M', '--tsc-reliable'];
  const program = join(ROOT, 'dist/test/lab/start-times.js');
  const command = [process.execPath, join(ROOT, 'dist/test/lab/main.js'), ...lab];
  const output = await finish(
    [...command, 'node', program, String(rounds)],
    (TIMEOUT_S + 60) * 1000,
  );
  return startLines(output);
}

/** See the module's head. */
export const linux: Measure = {
  name: 'linux',
  title: '13. Start of a stock Linux, in the lab',
  missing() {
    if (insideLab()) return 'this is the lab already';
    const why = whyNoLab();
    if (why !== undefined) return why;
    try {
      // Made here once, because the lab would make them slowly.
      kernel('generic');
      image('shell');
      return undefined;
    } catch (error) {
      if (error instanceof LabError) return error.message;
      throw error;
    }
  },
  async experiments({ quick }: BenchContext): Promise<Experiment[]> {
    const rounds = quick ? 1 : ROUNDS;
    let lines: Promise<Line[]> | undefined;
    return [
      {
        name: 'linux, Debian cloud kernel and busybox, process start to the prompt of the shell',
        metrics: [{ name: 'prompt', unit: 'ms' }],
        sides: SIDES.map((side) => {
          let round = 0;
          return {
            name: side,
            command: `node dist/test/lab/main.js node dist/test/lab/start-times.js ${rounds}`,
            run: async (): Promise<Sample> => {
              // The first that asks starts the lab for all of them.
              lines ??= inLab(rounds);
              round++;
              const line = (await lines).find((each) => each.side === side && each.round === round);
              if (line?.ms === undefined) throw new Error(line?.why ?? 'the lab gave no time');
              return { prompt: line.ms };
            },
          };
        }),
        rounds,
        seconds: 110,
        warmUp: false,
      },
    ];
  },
};
