/** Results as a table for people. */
import type { Metric } from './measure.ts';
import type { ExperimentResult } from './runner.ts';
import type { Summary } from './stats.ts';

/** A number with about three digits that count. */
export function short(value: number): string {
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return Math.round(value).toString();
  return value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

function spread(summary: Summary): string {
  return summary.count === 1 ? '' : `[${short(summary.min)}..${short(summary.max)}]`;
}

/** Whether a ratio's median is what the project wants. */
export function met({ aim }: Metric, ratio: Summary): boolean {
  return ratio.median <= (aim?.atMost ?? Infinity) && ratio.median >= (aim?.atLeast ?? 0);
}

/** The aim beside the ratio, in words. */
export function aimText(metric: Metric, side: string, ratio: Summary | undefined): string {
  const { aim } = metric;
  if (aim === undefined || aim.side !== side || ratio === undefined) return '';
  const bound = aim.atMost === undefined ? `>= ${aim.atLeast}` : `<= ${aim.atMost}`;
  return `aim ${bound}: ${met(metric, ratio) ? 'met' : 'missed'}`;
}

/** Pads cells into columns. */
export function columns(rows: readonly (readonly string[])[]): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length);
  }
  return rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd(),
  );
}

/** Lines for one experiment: metric, side, median, spread, ratio with spread, aim. */
export function experimentLines(result: ExperimentResult): string[] {
  const rows: string[][] = [];
  for (const { metric, sides } of result.metrics) {
    for (const [i, { side, summary, ratio }] of sides.entries()) {
      rows.push([
        i === 0 ? `  ${metric.name}` : '',
        side,
        `${short(summary.median)} ${metric.unit}`,
        spread(summary),
        ratio === undefined ? '' : `ratio ${ratio.median.toFixed(2)} ${ratioSpread(ratio)}`,
        aimText(metric, side, ratio),
      ]);
    }
  }
  const commands = Object.entries(result.commands).map(
    ([side, command]) => `  ${side}: ${command}`,
  );
  const remarks = result.remarks.map((remark) => `  ! ${remark}`);
  const time = `  ${result.rounds} rounds, ${result.seconds.toFixed(1)} s`;
  return [result.name, ...columns(rows), ...commands, ...remarks, time, ''];
}

function ratioSpread(ratio: Summary): string {
  return ratio.count === 1 ? '' : `[${ratio.min.toFixed(2)}..${ratio.max.toFixed(2)}]`;
}
