import { describe, expect, it } from 'vitest';
import { IoBus } from '../bus/io-bus.ts';
import { EXIT, type ExitSlot, SLOT_WORD } from '../kvm/api.ts';
import { FakeKvmVm } from '../kvm/fake.ts';
import { describeTerminalExit, ExitDispatcher } from './exit-dispatch.ts';

/** A VM whose accesses to port 0x100 and address 0x1000 (16 bytes each) are written down. */
function world() {
  const vm = new FakeKvmVm({ vcpus: 2 });
  const ports = new IoBus('ports');
  const mmio = new IoBus('mmio');
  const log: string[] = [];
  let next = 0x11223344;
  for (const bus of [ports, mmio]) {
    bus.map(bus === ports ? 0x100 : 0x1000, 16, {
      name: bus.name,
      read(offset, size) {
        log.push(`${bus.name} read ${offset} ${size}`);
        return next++;
      },
      write(offset, size, value) {
        log.push(`${bus.name} write ${offset} ${size} ${value.toString(16)}`);
      },
    });
  }
  const owner = {
    deaf: false,
    terminalExit(vcpu: number, slot: ExitSlot) {
      log.push(`terminal ${vcpu} ${slot.words[SLOT_WORD.kind]}`);
    },
  };
  const dispatcher = new ExitDispatcher(vm, ports, mmio, owner);
  vm.start({
    onExit: (vcpu) => dispatcher.dispatch(vcpu),
    onCoalesced: (count) => dispatcher.coalesced(count),
  });
  return { vm, owner, log };
}

describe('exits become bus accesses', () => {
  it.each([1, 2, 4])('ports, %i bytes', (size) => {
    const { vm, log } = world();
    vm.out(0x102, size, 0xa1b2c3d4);
    expect(vm.in(0x104, size)).toBe(0x11223344 % 2 ** (8 * size));
    const value = (0xa1b2c3d4 % 2 ** (8 * size)).toString(16);
    expect(log).toEqual([`ports write 2 ${size} ${value}`, `ports read 4 ${size}`]);
  });

  it.each([
    [1, [1]],
    [2, [2]],
    [3, [2, 1]],
    [4, [4]],
    [5, [4, 1]],
    [6, [4, 2]],
    [7, [4, 2, 1]],
    [8, [4, 4]],
  ])('memory, %i bytes in parts of %j', (size, parts) => {
    const { vm, log } = world();
    const data = Array.from({ length: size }, (_, i) => 0x10 + i);
    vm.exit(0, { kind: EXIT.mmioWrite, address: 0x1004, size, data });
    const writes: string[] = [];
    const reads: string[] = [];
    let at = 0;
    for (const part of parts) {
      const bytes = data.slice(at, at + part).reverse();
      const hex = bytes.map((byte) => byte.toString(16)).join('');
      writes.push(`mmio write ${4 + at} ${part} ${hex}`);
      reads.push(`mmio read ${4 + at} ${part}`);
      at += part;
    }
    expect(log.splice(0)).toEqual(writes);
    vm.exit(0, { kind: EXIT.mmioRead, address: 0x1004, size });
    expect(log).toEqual(reads);
  });

  it('puts the parts of a wide read together, low part first', () => {
    const { vm } = world();
    vm.exit(0, { kind: EXIT.mmioRead, address: 0x1000, size: 8 });
    expect([...vm.slots[0]!.data.subarray(0, 8)]).toEqual([
      0x44, 0x33, 0x22, 0x11, 0x45, 0x33, 0x22, 0x11,
    ]);
  });

  it('string output and input, item by item on one port', () => {
    const { vm, log } = world();
    const data = [1, 0, 2, 0, 3, 0];
    vm.exit(1, { kind: EXIT.pioOut, address: 0x106, size: 2, count: 3, data });
    vm.exit(1, { kind: EXIT.pioIn, address: 0x108, size: 2, count: 2 });
    expect(log).toEqual([
      'ports write 6 2 1',
      'ports write 6 2 2',
      'ports write 6 2 3',
      'ports read 8 2',
      'ports read 8 2',
    ]);
    expect([...vm.slots[1]!.data.subarray(0, 4)]).toEqual([0x44, 0x33, 0x45, 0x33]);
  });

  it("nobody's address reads as all ones and takes writes", () => {
    const { vm, log } = world();
    expect(vm.in(0x300, 4)).toBe(0xffff_ffff);
    expect(vm.mmioRead(0x9000, 8)).toBe(2 ** 64 - 1);
    expect(vm.mmioRead(2 ** 40, 4)).toBe(0xffff_ffff);
    expect(vm.out(0x300, 4, 1)).toBe(true);
    expect(vm.mmioWrite(2 ** 40, 8, 1)).toBe(true);
    expect(log).toEqual([]);
  });

  it('coalesced writes, in order and before the exit behind them', () => {
    const { vm, log } = world();
    vm.coalesce(EXIT.mmioWrite, 0x1000, 8, 0x2_0000_0001);
    vm.coalesce(EXIT.pioOut, 0x101, 1, 7);
    vm.out(0x100, 1, 9);
    expect(log).toEqual([
      'mmio write 0 4 1',
      'mmio write 4 4 2',
      'ports write 1 1 7',
      'ports write 0 1 9',
    ]);
  });

  it('reach nothing while deaf: reads are all ones', () => {
    const { vm, owner, log } = world();
    owner.deaf = true;
    expect(vm.in(0x100, 4)).toBe(0xffff_ffff);
    expect(vm.mmioRead(0x1000, 8)).toBe(2 ** 64 - 1);
    expect(vm.out(0x100, 1, 1)).toBe(true);
    vm.coalesce(EXIT.pioOut, 0x101, 1, 7);
    vm.drainCoalesced();
    expect(log).toEqual([]);
  });
});

describe('terminal exits', () => {
  it.each([
    [EXIT.shutdown, {}, /triple fault/],
    [EXIT.systemEvent, { detail: 3 }, /system event 3/],
    [EXIT.internalError, { detail: 1, size: 2, data: [0x0f, 0x0b] }, /cannot emulate.*bytes 0f0b/],
    [EXIT.internalError, { detail: 2 }, /suberror 2/],
    [EXIT.failEntry, {}, /refused the guest's state/],
    [EXIT.runError, { detail: 14 }, /errno 14/],
    [EXIT.unknown, { detail: 99 }, /reason 99/],
  ])('%i goes to the owner, stays open and has words', (kind, more, text) => {
    const { vm, log } = world();
    expect(vm.exit(1, { kind, ...more })).toBe(false);
    expect(log).toEqual([`terminal 1 ${kind}`]);
    expect(describeTerminalExit(vm.slots[1]!)).toMatch(text);
  });

  it('others let the guest go on', () => {
    const { vm, log } = world();
    for (const kind of [EXIT.debug, EXIT.hypercall, EXIT.halt])
      expect(vm.exit(0, { kind })).toBe(true);
    expect(log).toEqual([]);
  });
});
