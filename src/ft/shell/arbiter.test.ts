import { describe, expect, it } from 'vitest';
import { MemoryLog } from '../../base/log.ts';
import { type Arbiter, ArbiterTrouble } from './arbiter.ts';

describe('trouble with an arbiter', () => {
  const lock = { lease: undefined } as Arbiter;

  it('is said once until it is over, though members fail in turn', () => {
    const log = new MemoryLog();
    const trouble = new ArbiterTrouble(log);
    for (let i = 0; i < 100; i++) trouble.tell(i % 2 === 0 ? 'no route' : 'reset');
    expect(log.lines).toEqual(['warn arbiter: no route', 'warn arbiter: reset']);
    expect(trouble.told).toBe(true);
    trouble.tell('');
    expect(trouble.told).toBe(false);
    trouble.tell('reset');
    expect(log.lines.length).toBe(3);
    for (let i = 0; i < 1000; i++) trouble.tell(`reset ${i}`);
    expect(log.lines.length).toBeLessThan(20);
  });

  it('is a refusal to whoever runs the guest, and what a lease says by itself to nobody', () => {
    const log = new MemoryLog();
    const trouble = new ArbiterTrouble(log);
    const refused = { result: 'refused', generation: 1, sentence: 'no' } as const;
    const unreachable = { result: 'unreachable', generation: 0, sentence: 'gone' } as const;
    trouble.answered(lock, refused, false);
    trouble.answered({ lease: {} } as Arbiter, unreachable, true);
    expect(log.lines).toEqual([]);
    for (let i = 0; i < 10; i++) trouble.answered(lock, refused, true);
    trouble.answered(lock, unreachable, true);
    trouble.answered(lock, { result: 'ok', generation: 1, sentence: '' }, true);
    trouble.answered(lock, unreachable, true);
    expect(log.lines).toEqual(['warn arbiter: no', 'warn arbiter: gone', 'warn arbiter: gone']);
  });
});
