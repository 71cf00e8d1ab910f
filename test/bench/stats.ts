/** Order statistics of small samples, and the pairwise ratio that every comparison of the harness is stated as. */
import { assert } from '../../src/base/assert.ts';

/** Median, extremes and quartiles of one sample. */
export interface Summary {
  readonly count: number;
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly lowerQuartile: number;
  readonly upperQuartile: number;
}

/** The value below which the fraction `q` of a sorted sample lies, with linear interpolation. */
export function quantile(sorted: readonly number[], q: number): number {
  assert(sorted.length > 0 && q >= 0 && q <= 1, 'a sample and a fraction');
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (at - low);
}

/** Summary of a sample of at least one value, in any order. */
export function summarize(values: readonly number[]): Summary {
  const sorted = [...values].sort((a, b) => a - b);
  return {
    count: sorted.length,
    median: quantile(sorted, 0.5),
    min: quantile(sorted, 0),
    max: quantile(sorted, 1),
    lowerQuartile: quantile(sorted, 0.25),
    upperQuartile: quantile(sorted, 0.75),
  };
}

/**
 * Summary of a[i] / b[i]. The two of one pair ran one after the other, so what the machine did to both at that time cancels;
 * the ratio of two medians would not have that. Undefined when no pair has a finite ratio.
 */
export function pairRatio(a: readonly number[], b: readonly number[]): Summary | undefined {
  const ratios: number[] = [];
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    const ratio = a[i]! / b[i]!;
    if (Number.isFinite(ratio)) ratios.push(ratio);
  }
  return ratios.length === 0 ? undefined : summarize(ratios);
}
