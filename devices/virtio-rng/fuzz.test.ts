import { describe, expect, it } from 'vitest';
import { fuzzVirtio } from '../../test/fuzz/virtio.ts';

describe('virtio-rng fuzzer', () => {
  it.each([1, 2, 3, 4])('finds nothing with seed %i', (seed) => {
    const report = fuzzVirtio('rng', seed, 4000);
    // It gets somewhere.
    expect(report.used).toBeGreaterThan(100);
    expect(report.interrupts).toBeGreaterThan(20);
    expect(report.resets).toBeGreaterThan(5);
    expect(report.restores).toBeGreaterThan(20);
  });
});
