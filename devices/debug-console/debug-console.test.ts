import { expect, it } from 'vitest';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { access, alone, anyAccess } from '../../test/support/region-access.ts';
import { DebugConsole } from './debug-console.ts';

it('passes bytes on and shows that it is there', () => {
  const bytes: number[] = [];
  const bus = alone(new DebugConsole({ id: 'debug', onByte: (byte) => bytes.push(byte) }), 1);
  expect(bus.read(0, 1)).toBe(0xe9);
  bus.write(0, 1, 0x48);
  bus.write(0, 1, 0x69);
  expect(String.fromCharCode(...bytes)).toBe('Hi');
});

deviceConformance('debug-console', {
  world: () => ({ bytes: [] as number[] }),
  attach: ({ bytes }) => new DebugConsole({ id: 'debug', onByte: (byte) => bytes.push(byte) }),
  steps: anyAccess(1),
  perform: (_world, device, step) => access(alone(device, 1), step),
  observe: ({ bytes }) => bytes,
  impossible: () => [],
});
