/**
 * Curves as SVG: medians with their ranges over a number (dirty pages, a link's round trip) or over names (policies), on logarithmic
 * axes, because what is compared differs by orders of magnitude. Written by `--plots DIR`; no styles, scripts or fonts from outside.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExperimentResult } from './runner.ts';

/** What is drawn into one file. */
export interface Plot {
  /** The file's name without `.svg`; experiments name it in their `plot`. */
  readonly name: string;
  readonly title: string;
  /** Undefined: the sides stand there by name, and each metric is a series. Else: each side is. */
  readonly xLabel?: string;
  readonly yLabel: string;
  readonly metrics: readonly string[];
}

/** All plots. */
export const PLOTS: readonly Plot[] = [
  {
    name: 'pause-by-pages',
    title: 'Pause of a checkpoint against dirty pages (random content)',
    xLabel: 'dirty pages',
    yLabel: 'ms',
    metrics: ['pause', 'capture to ACK'],
  },
  {
    name: 'delay-by-policy',
    title: 'UDP echo round trip at rest by policy',
    yLabel: 'ms',
    metrics: ['p50', 'p99'],
  },
  {
    name: 'delay-by-link',
    title: 'UDP echo round trip at rest against the round trip between the hosts',
    xLabel: 'round trip between the hosts, ms',
    yLabel: 'ms, p50',
    metrics: ['p50'],
  },
];

/** A median and its range. */
export interface Point {
  readonly x: number;
  readonly y: number;
  readonly low: number;
  readonly high: number;
}

/** Points of one colour. */
export interface Series {
  readonly name: string;
  readonly points: readonly Point[];
}

const WIDTH = 760;
const HEIGHT = 430;
const LEFT = 70;
const RIGHT = 210;
const TOP = 60;
const BOTTOM = 60;
/** Told apart by people who do not see red and green as different, too. */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'];

const escaped = (text: string): string => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

function text(x: number, y: number, words: string, more = ''): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escaped(words)}</text>`;
}

/** A logarithmic axis: from a value to pixels, and where its marks are. */
function axis(values: readonly number[], from: number, to: number) {
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  const at = (value: number): number =>
    from + ((Math.log10(value) - low) / (high - low)) * (to - from);
  const marks: number[] = [];
  for (let power = low; power <= high; power++) marks.push(10 ** power);
  return { at, marks };
}

/**
 * One chart. Points without a positive value, which a logarithm cannot show, are left out.
 * @param names of x = 0, 1, 2 ...; undefined: x is a number, and the points of a series are joined
 * @returns SVG, or undefined when there is no point
 */
export function chart(
  plot: Plot,
  series: readonly Series[],
  names?: readonly string[],
): string | undefined {
  const shown = series
    .map(({ name, points }) => ({
      name,
      points: points
        .filter(({ x, y, low }) => y > 0 && low > 0 && (names !== undefined || x > 0))
        .sort((a, b) => a.x - b.x),
    }))
    .filter(({ points }) => points.length > 0);
  const all = shown.flatMap(({ points }) => points);
  if (all.length === 0) return undefined;
  const [bottom, right] = [HEIGHT - BOTTOM, WIDTH - RIGHT];
  const y = axis(
    all.flatMap(({ low, high }) => [low, high]),
    bottom,
    TOP,
  );
  const numbers = axis(names === undefined ? all.map(({ x }) => x) : [1], LEFT, right);
  const xAt = (x: number): number =>
    names === undefined ? numbers.at(x) : LEFT + ((x + 0.5) / names.length) * (right - LEFT);
  const parts: string[] = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" font-family="sans-serif" font-size="12">`,
    `<title>${escaped(plot.title)}</title>`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`,
    text(LEFT, 24, plot.title, 'font-size="15"'),
  ];
  for (const mark of y.marks) {
    const at = y.at(mark).toFixed(1);
    parts.push(`<path d="M${LEFT} ${at}H${right}" stroke="#ddd"/>`);
    parts.push(text(LEFT - 6, y.at(mark) + 4, String(mark), 'text-anchor="end"'));
  }
  const marks = names === undefined ? numbers.marks : names.map((_, i) => i);
  for (const mark of marks) {
    const label = names === undefined ? String(mark) : names[mark]!;
    if (names === undefined)
      parts.push(`<path d="M${xAt(mark).toFixed(1)} ${TOP}V${bottom}" stroke="#eee"/>`);
    for (const [line, word] of label.split(' ').entries())
      parts.push(text(xAt(mark), bottom + 18 + line * 14, word, 'text-anchor="middle"'));
  }
  parts.push(`<path d="M${LEFT} ${TOP}V${bottom}H${right}" fill="none" stroke="#444"/>`);
  parts.push(text((LEFT + right) / 2, HEIGHT - 16, plot.xLabel ?? '', 'text-anchor="middle"'));
  parts.push(text(LEFT - 6, TOP - 16, plot.yLabel, 'text-anchor="end"'));
  for (const [i, { name, points }] of shown.entries()) {
    const colour = COLOURS[i % COLOURS.length]!;
    // By name the series stand side by side.
    const aside = names === undefined ? 0 : (i - (shown.length - 1) / 2) * 10;
    const places = points.map((point) => ({
      x: (xAt(point.x) + aside).toFixed(1),
      y: y.at(point.y).toFixed(1),
      low: y.at(point.low).toFixed(1),
      high: y.at(point.high).toFixed(1),
    }));
    if (names === undefined) {
      const line = places.map((p) => `${p.x},${p.y}`).join(' ');
      parts.push(`<polyline points="${line}" fill="none" stroke="${colour}" stroke-width="1.5"/>`);
    }
    for (const p of places) {
      parts.push(`<path d="M${p.x} ${p.low}V${p.high}" stroke="${colour}"/>`);
      parts.push(`<circle cx="${p.x}" cy="${p.y}" r="3.5" fill="${colour}"/>`);
    }
    const legend = TOP + 14 + i * 20;
    parts.push(`<circle cx="${right + 18}" cy="${legend - 4}" r="4" fill="${colour}"/>`);
    parts.push(text(right + 28, legend, name));
  }
  return `${parts.join('\n')}\n</svg>\n`;
}

/** Series of a plot from the experiments that belong to it, and the names below the axis. */
export function seriesOf(
  plot: Plot,
  results: readonly ExperimentResult[],
): { series: Series[]; names: string[] | undefined } {
  const points = new Map<string, Point[]>();
  const names: string[] = [];
  for (const { plot: place, metrics } of results) {
    if (place?.name !== plot.name) continue;
    for (const { metric, sides } of metrics) {
      if (!plot.metrics.includes(metric.name)) continue;
      for (const { side, summary } of sides) {
        const { median: y, min: low, max: high } = summary;
        let key = plot.metrics.length > 1 ? `${side}, ${metric.name}` : side;
        let { x } = place;
        if (plot.xLabel === undefined) {
          key = metric.name;
          if (!names.includes(side)) names.push(side);
          x = names.indexOf(side);
        }
        const list = points.get(key) ?? [];
        points.set(key, list);
        list.push({ x: x ?? 0, y, low, high });
      }
    }
  }
  const series = [...points].map(([name, list]) => ({ name, points: list }));
  return { series, names: plot.xLabel === undefined ? names : undefined };
}

/** Writes every plot that has a point. @returns the files */
export function writePlots(folder: string, results: readonly ExperimentResult[]): string[] {
  mkdirSync(folder, { recursive: true });
  return PLOTS.flatMap((plot) => {
    const { series, names } = seriesOf(plot, results);
    const svg = chart(plot, series, names);
    if (svg === undefined) return [];
    const path = join(folder, `${plot.name}.svg`);
    writeFileSync(path, svg);
    return [path];
  });
}
