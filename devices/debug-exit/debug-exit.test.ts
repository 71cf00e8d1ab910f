import { describe, expect, it } from 'vitest';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { access, alone, anyAccess } from '../../test/support/region-access.ts';
import { DebugExit } from './debug-exit.ts';
import { DEBUG_EXIT_PORTS } from './spec.ts';

describe('DebugExit', () => {
  it.each([
    [0, 1],
    [1, 3],
    [0x10, 0x21],
    [0x7f, 0xff],
    [0xffffffff, 0xff],
  ])('turns %i into exit status %i', (value, status) => {
    const seen: number[] = [];
    new DebugExit({ id: 'debug-exit', onExit: (s) => seen.push(s) }).write(0, 4, value);
    expect(seen).toEqual([status]);
  });
});

deviceConformance('debug-exit', {
  world: () => ({ exits: [] as number[] }),
  attach: ({ exits }) => new DebugExit({ id: 'debug-exit', onExit: (s) => exits.push(s) }),
  steps: anyAccess(DEBUG_EXIT_PORTS),
  perform: (_world, device, step) => access(alone(device, DEBUG_EXIT_PORTS), step),
  observe: ({ exits }) => exits,
  impossible: () => [],
});
