/** Accesses of every size at every offset, as a guest without manners makes them. */
import fc from 'fast-check';
import { expect } from 'vitest';
import { sizeMask } from '../../src/base/bits.ts';
import { type AccessSize, IoBus, type IoRegion } from '../../src/bus/io-bus.ts';

/** One access to a region. */
export interface RegionAccess {
  readonly write: boolean;
  readonly offset: number;
  readonly size: AccessSize;
  readonly value: number;
}

/** Random accesses that start inside [0, length), some of them reaching past its end. */
export function anyAccess(length: number): fc.Arbitrary<RegionAccess> {
  return fc.record({
    write: fc.boolean(),
    offset: fc.nat(length - 1),
    size: fc.constantFrom<AccessSize>(1, 2, 4),
    value: fc.oneof(fc.nat(0xff), fc.nat(0xffffffff), fc.constantFrom(0, 0xffff, 0xffffffff)),
  });
}

/** Puts `region` on a bus of its own at 0, as the board does; accesses then have any size and place. */
export function alone(region: IoRegion, length: number): IoBus {
  const bus = new IoBus('test');
  bus.map(0, length, region);
  return bus;
}

/** Performs `access` on `bus`; a read must fit its size. */
export function access(bus: IoBus, { write, offset, size, value }: RegionAccess): number {
  if (write) {
    bus.write(offset, size, value);
    return 0;
  }
  const read = bus.read(offset, size);
  expect(Number.isInteger(read) && read >= 0 && read <= sizeMask(size)).toBe(true);
  return read;
}
