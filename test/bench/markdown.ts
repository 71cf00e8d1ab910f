/**
 * Results as Markdown for docs/benchmarks.md. A file that has the marks keeps what stands around them; any other file is written
 * anew. `npm run bench -- --markdown FILE`.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { MachineFacts } from './machine-facts.ts';
import { aimText, short } from './report.ts';
import type { ExperimentResult, MetricResult, SideResult } from './runner.ts';
import type { Summary } from './stats.ts';

/** Between these a page holds the figures. */
export const MARKS = ['<!-- figures -->', '<!-- end of figures -->'] as const;

/** A measure's results. */
export interface MeasureFigures {
  readonly name: string;
  readonly title: string;
  readonly results: readonly ExperimentResult[];
  /** Why there are none. */
  readonly skipped?: string;
}

function range({ count, min, max }: Summary, digits: (value: number) => string): string {
  return count === 1 ? '' : ` [${digits(min)}..${digits(max)}]`;
}

const withUnit = ({ metric }: MetricResult): string =>
  metric.unit === '' ? metric.name : `${metric.name}, ${metric.unit}`;
const value = ({ summary }: SideResult): string =>
  `${short(summary.median)}${range(summary, short)}`;
const ratio = ({ ratio: of }: SideResult): string =>
  of === undefined ? '' : `${of.median.toFixed(2)}${range(of, (each) => each.toFixed(2))}`;
const row = (cells: readonly string[]): string =>
  `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;

function aimCell(result: MetricResult, side: SideResult): string {
  const said = aimText(result.metric, side.side, side.ratio);
  if (!said.endsWith('missed')) return said.replace('aim ', '');
  const { atMost, atLeast } = result.metric.aim!;
  const by = Math.abs(side.ratio!.median - (atMost ?? atLeast)!);
  return `${said.replace('aim ', '')} by ${by.toFixed(2)}`;
}

/** Experiments of two sides share a table; those of more have one each, with a column for each side. */
function tables({ results }: MeasureFigures): string[] {
  const lines: string[] = [];
  const pairs = results.filter(({ metrics }) => metrics.every(({ sides }) => sides.length <= 2));
  const measured = pairs.filter(({ metrics }) => metrics.length > 0);
  if (measured.length > 0) {
    const beside = measured.some(({ metrics }) => metrics.some(({ sides }) => sides.length === 2));
    lines.push(row(beside ? ['', 'tsvmm', 'beside it', 'ratio', 'aim'] : ['', 'tsvmm']));
    lines.push(beside ? '| --- | --- | --- | --- | --- |' : '| --- | --- |');
    for (const { name, metrics } of measured) {
      for (const [i, metric] of metrics.entries()) {
        const [first, second] = metric.sides;
        const what = `${i === 0 ? `${name}: ` : ''}${withUnit(metric)}`;
        if (!beside) lines.push(row([what, value(first!)]));
        else if (second === undefined) lines.push(row([what, value(first!), '', '', '']));
        else {
          const cells = [value(first!), `${second.side} ${value(second)}`, ratio(second)];
          lines.push(row([what, ...cells, aimCell(metric, second)]));
        }
      }
    }
    lines.push('');
  }
  for (const { name, metrics } of results.filter((each) => !pairs.includes(each))) {
    const names = [...new Set(metrics.flatMap(({ sides }) => sides.map(({ side }) => side)))];
    lines.push(row([name, ...names]), `|${' --- |'.repeat(names.length + 1)}`);
    for (const metric of metrics) {
      const cells = names.map((each) => {
        const found = metric.sides.find(({ side }) => side === each);
        if (found === undefined) return '';
        if (found.ratio === undefined) return value(found);
        const aim = aimCell(metric, found);
        return `${value(found)}; ratio ${ratio(found)}${aim === '' ? '' : `, aim ${aim}`}`;
      });
      lines.push(row([withUnit(metric), ...cells]));
    }
    lines.push('');
  }
  return lines;
}

/** All results, headed by the machine and its load. */
export function markdown(facts: MachineFacts, measures: readonly MeasureFigures[]): string {
  const { cpu, cpus, virtualized, kernel, node, qemu, commit, startedAt } = facts;
  const loads = [facts.loadAtStart, ...(facts.loadAtEnd === undefined ? [] : [facts.loadAtEnd])];
  const lines = [
    `${cpu}, ${cpus} CPUs${virtualized ? ' of a virtual machine' : ''}; Linux ${kernel}, Node ${node}, ${qemu}; commit ${commit}, ` +
      `${startedAt.slice(0, 10)}, load average ${loads.map((load) => load.toFixed(1)).join(' to ')}. Medians [least..greatest].`,
  ];
  for (const measure of measures) {
    lines.push('', `### ${measure.title}`, `\`npm run bench -- --only ${measure.name}\``, '');
    if (measure.skipped !== undefined) lines.push(`Not measured: ${measure.skipped}.`, '');
    lines.push(...tables(measure));
    for (const { name, remarks } of measure.results) {
      for (const remark of remarks) lines.push(`- ${name}: ${remark}`);
    }
  }
  return `${lines
    .join('\n')
    .replaceAll(/\n{3,}/g, '\n\n')
    .trim()}\n`;
}

/** Puts the text between the marks of a page. */
export function refreshed(page: string, figures: string): string {
  const [from, to] = MARKS.map((mark) => page.indexOf(mark)) as [number, number];
  if (from < 0 || to < from) return figures;
  return `${page.slice(0, from + MARKS[0].length)}\n${figures}${page.slice(to)}`;
}

/** Writes the figures to a file, or into the page that it holds. */
export function writeMarkdown(path: string, figures: string): void {
  const page = existsSync(path) ? readFileSync(path, 'utf8') : '';
  writeFileSync(path, refreshed(page, figures));
}
