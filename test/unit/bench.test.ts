import { describe, expect, it } from 'vitest';
import { pausesOf } from '../bench/colo.ts';
import { linkTrip } from '../bench/delay-proxy.ts';
import { benchLines, field } from '../bench/guest-run.ts';
import type { Experiment } from '../bench/measure.ts';
import { startLines } from '../bench/measures/linux.ts';
import { residentBeyond } from '../bench/measures/start.ts';
import { chart, PLOTS, seriesOf } from '../bench/plots.ts';
import { aimText, experimentLines } from '../bench/report.ts';
import { part, runExperiment } from '../bench/runner.ts';
import { pairRatio, summarize } from '../bench/stats.ts';

describe('the benchmark harness', () => {
  it('takes the ratio pair by pair, not from the medians', () => {
    // The machine became ten times slower in the last pair: both sides did.
    expect(pairRatio([10, 12, 200], [5, 6, 100])!.median).toBe(2);
    expect(pairRatio([1], [0])).toBeUndefined();
    expect(summarize([4, 1, 3, 2])).toMatchObject({ median: 2.5, min: 1, max: 4, count: 4 });
  });

  it('runs the sides in turn, does not count the first round, and pairs only whole rounds', async () => {
    const order: string[] = [];
    let run = 0;
    const side = (name: string, values: (round: number) => number) => ({
      name,
      command: name,
      run: async () => {
        order.push(name);
        return { time: values(Math.floor(run++ / 2) - 1) };
      },
    });
    const experiment: Experiment = {
      name: 'e',
      metrics: [{ name: 'time', unit: 'ns', aim: { side: 'b', atMost: 1.5 } }],
      sides: [
        side('a', (round) => [1000, 20, 30, 40][round + 1]!),
        side('b', (round) => {
          if (round === 1) throw new Error('no luck');
          return [1000, 10, 0, 10][round + 1]!;
        }),
      ],
    };
    const result = await runExperiment(experiment, { least: 3, most: 3 });
    expect(order.join('')).toBe('abababab');
    const [a, b] = result.metrics[0]!.sides;
    expect(a!.values).toEqual([20, 30, 40]);
    expect(b!.values).toEqual([10, 10]);
    expect(b!.ratio).toMatchObject({ min: 2, max: 4, median: 3 });
    expect(result.remarks).toEqual(['b, run 2: no luck']);
    expect(aimText(result.metrics[0]!.metric, 'b', b!.ratio)).toBe('aim <= 1.5: missed');
    expect(experimentLines(result).join('\n')).toContain('ratio 3.00 [2.00..4.00]');
  });

  it('runs as many rounds as fit into the share of time', async () => {
    const experiment: Experiment = {
      name: 'e',
      metrics: [{ name: 'time', unit: 'ns' }],
      sides: [
        {
          name: 'a',
          command: 'a',
          run: async () => {
            await new Promise((done) => setTimeout(done, 20));
            return { time: 1 };
          },
        },
      ],
      seconds: 0.2,
      warmUp: false,
    };
    const some = await runExperiment(experiment, { least: 2, most: 50 });
    expect(some.rounds).toBeGreaterThanOrEqual(2);
    expect(some.rounds).toBeLessThanOrEqual(10);
    expect(some.metrics[0]!.sides[0]!.values).toHaveLength(some.rounds);
    const least = await runExperiment(experiment, { least: 2, most: 50, scale: 0.001 });
    expect(least.rounds).toBe(2);
    expect((await runExperiment(experiment, { least: 1, most: 3, scale: 9 })).rounds).toBe(3);
    const three = { ...experiment, rounds: 3 };
    expect((await runExperiment(three, { least: 2, most: 50, scale: 0.001 })).rounds).toBe(3);
    expect((await runExperiment(three, { least: 1, most: 1 })).rounds).toBe(1);
  });

  it('takes a part of an experiment, and counts a first run that needs no warming up', async () => {
    let runs = 0;
    const side = (name: string) => ({
      name,
      command: name,
      run: async () => ({ time: ++runs }),
    });
    const experiment: Experiment = {
      name: 'disk, depth 16',
      metrics: [{ name: 'time', unit: 'ms' }],
      sides: [side('off'), side('kemari'), side('adaptive')],
      warmUp: false,
    };
    expect(part(experiment, 'depth 1 ', undefined)).toBeUndefined();
    expect(part(experiment, undefined, 'none')).toBeUndefined();
    const some = part(experiment, 'depth 16', 'off,adaptive')!;
    expect(some.sides.map(({ name }) => name)).toEqual(['off', 'adaptive']);
    const result = await runExperiment(some, { least: 1, most: 1 });
    expect(result.metrics[0]!.sides.map(({ values }) => values[0])).toEqual([1, 2]);
  });

  it('delays a link by no less than it was told', async () => {
    expect(await linkTrip(3, 5)).toBeGreaterThanOrEqual(3);
  });

  it('takes a pause from each STOP to its RESUME', () => {
    const events = ['RESUME', 'STOP', 'X', 'RESUME', 'STOP', 'RESUME', 'STOP'];
    expect(pausesOf(events.map((event, i) => ({ event, ms: i * i })))).toEqual([8, 9]);
  });

  it('reads what bench guests print', () => {
    const text = 'x\r\nbench: exits op=out median_ns=12\r\nbench: blk iops=3\r\n';
    const lines = benchLines(text, 'exits');
    expect(lines).toHaveLength(1);
    expect(field(lines[0], 'median_ns')).toBe(12);
    expect(() => field(lines[0], 'iops')).toThrow('iops');
  });

  it('reads the starts of a stock Linux among other lines of the lab', () => {
    const text =
      'lab: x\nstart-lab: {"round":1,"side":"tsvmm","ms":9}\r\nstart-lab: {"round":1,"side":"q","why":"no"}\n';
    expect(startLines(text)).toEqual([
      { round: 1, side: 'tsvmm', ms: 9 },
      { round: 1, side: 'q', why: 'no' },
    ]);
  });

  it('draws curves over numbers and points over names', async () => {
    const side = (name: string, p50: number) => ({
      name,
      command: name,
      run: async () => ({ p50, p99: p50 * 10 }),
    });
    const of = (plot: Experiment['plot'], scale: number): Experiment => ({
      name: 'delay',
      metrics: ['p50', 'p99'].map((name) => ({ name, unit: 'ms' })),
      sides: [side('kemari', scale), side('a<b & "c"', 3 * scale), side('nothing', 0)],
      warmUp: false,
      plot: plot!,
    });
    const results = [];
    for (const experiment of [
      of({ name: 'delay-by-link', x: 0.1 }, 1),
      of({ name: 'delay-by-link', x: 10 }, 7),
      of({ name: 'delay-by-policy' }, 2),
    ]) {
      results.push(await runExperiment(experiment, { least: 1, most: 1 }));
    }
    const plot = (name: string) => PLOTS.find((each) => each.name === name)!;
    const link = seriesOf(plot('delay-by-link'), results);
    expect(link.names).toBeUndefined();
    expect(link.series[0]).toEqual({
      name: 'kemari',
      points: [
        { x: 0.1, y: 1, low: 1, high: 1 },
        { x: 10, y: 7, low: 7, high: 7 },
      ],
    });
    const svg = chart(plot('delay-by-link'), link.series)!;
    // Zero has no place on a logarithmic axis.
    expect(svg.match(/<polyline/g)).toHaveLength(2);
    expect(svg).toContain('a&#60;b &#38; &#34;c&#34;');
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    const policy = seriesOf(plot('delay-by-policy'), results);
    expect(policy.names).toEqual(['kemari', 'a<b & "c"', 'nothing']);
    expect(policy.series.map(({ name }) => name)).toEqual(['p50', 'p99']);
    expect(chart(plot('delay-by-policy'), policy.series, policy.names)).not.toContain('<polyline');
    expect(chart(plot('pause-by-pages'), [])).toBeUndefined();
  });

  it('leaves the guest out of the resident memory', () => {
    const smaps = [
      ...['7f00-7f10 rw-p 0', 'Size:             216064 kB', 'Rss:              102400 kB'],
      ...['7f20-7f30 rw-p 0', 'Size:               2048 kB', 'Rss:                1024 kB'],
    ].join('\n');
    expect(residentBeyond(smaps, 211)).toBe(1024);
  });
});
