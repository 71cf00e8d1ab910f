import { describe, expect, it } from 'vitest';
import { fuzzE1000 } from '../../test/fuzz/e1000.ts';

describe('e1000 fuzzer', () => {
  it.each([1, 2, 3, 4])('finds nothing with seed %i', (seed) => {
    const report = fuzzE1000(seed, 4000);
    // It gets somewhere: traffic both ways, and interrupts.
    expect(report.sent).toBeGreaterThan(100);
    expect(report.received).toBeGreaterThan(5);
    expect(report.interrupts).toBeGreaterThan(10);
  });
});
