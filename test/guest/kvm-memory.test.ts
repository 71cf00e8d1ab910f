import { afterEach, describe, expect, it } from 'vitest';
import { EXIT, type KvmVm } from '../../src/kvm/api.ts';
import {
  DONE,
  hex,
  host,
  MMIO,
  makeGuest,
  PORT,
  RAM_BYTES,
  runToDone,
  type TestGuest,
} from './kvm-guest.ts';

const vms: KvmVm[] = [];
function guest(...args: Parameters<typeof makeGuest>): TestGuest {
  const made = makeGuest(...args);
  vms.push(made.vm);
  return made;
}
function bare(): KvmVm {
  const vm = host.createVm({ vcpus: 1 });
  vms.push(vm);
  return vm;
}
afterEach(() => {
  for (const vm of vms.splice(0)) vm.destroy();
});

const u32 = (value: number) => [
  value & 0xff,
  (value >> 8) & 0xff,
  (value >> 16) & 0xff,
  (value >>> 24) & 0xff,
];
/** mov byte [address], value (long mode) */
const poke = (address: number, value: number) => [0xc6, 0x04, 0x25, ...u32(address), value];

const code = (value: string) => expect.objectContaining({ code: value });

function harvest(vm: KvmVm, capacity = 4096): number[] {
  const list = new Uint32Array(capacity);
  return [...list.subarray(0, vm.harvestDirty(list))].sort((a, b) => a - b);
}

describe('dirty log', () => {
  it('holds exactly the pages that the guest wrote', async () => {
    const pages = [0x20, 0x21, 0x3f, 0x40, 0x7f, 0xff];
    const { vm, memory } = guest(
      'long',
      [...pages.flatMap((p) => poke(p * 4096 + 7, 0x5a)), ...DONE],
      { log: true },
    );
    harvest(vm);
    memory[0x50 * 4096] = 1; // the host's own write is not logged
    await runToDone(vm);
    vm.pauseAllOpen();
    const dirty = harvest(vm);
    for (const page of pages) expect(dirty).toContain(page);
    // The processor sets accessed bits in its tables; nothing else is dirty.
    expect(dirty.filter((page) => page >= 0x10)).toEqual(pages);
    expect(harvest(vm)).toEqual([]);
  });

  it('gives what did not fit with the next call, each page once', async () => {
    const pages = Array.from({ length: 40 }, (_, i) => 0x20 + i * 3);
    const { vm } = guest('long', [...pages.flatMap((p) => poke(p * 4096, 1)), ...DONE], {
      log: true,
    });
    harvest(vm);
    await runToDone(vm);
    const list = new Uint32Array(7);
    const found: number[] = [];
    for (;;) {
      const count = vm.harvestDirty(list);
      found.push(...list.subarray(0, count));
      if (count < list.length) break;
    }
    const data = found.filter((page) => page >= 0x10).sort((a, b) => a - b);
    expect(data).toEqual(pages);
    expect(new Set(found).size).toBe(found.length);
  });

  it('as bits, into a set that has some already', async () => {
    const { vm } = guest('long', [...poke(0x45 * 4096, 1), ...poke(0x46 * 4096, 1), ...DONE], {
      log: true,
    });
    harvest(vm);
    await runToDone(vm);
    const words = new Uint32Array(RAM_BYTES / 4096 / 32);
    words[2] = 1 << 5; // page 0x45
    const before = vm.harvestDirtyBits(words.slice());
    expect(before).toBeGreaterThanOrEqual(1);
    expect(vm.harvestDirtyBits(words)).toBe(0);
    expect(() => vm.harvestDirtyBits(new Uint32Array(2))).toThrow(code('KVM_BITMAP_SHORT'));
  });

  it('switches on and off, and survives the unmapping of a slot', async () => {
    const { vm, buffer } = guest('long', [...poke(MMIO + 0x1000, 7), ...DONE]);
    expect(harvest(vm)).toEqual([]);
    const more = vm.addMemory({ slot: 1, guestPhys: MMIO, sizeBytes: 0x4000, firstPage: 1000 });
    vm.setDirtyLog(1, true);
    vm.setDirtyLog(0, true);
    vm.setDirtyLog(0, false);
    await runToDone(vm);
    vm.pauseAllOpen();
    vm.unmapSlot(1);
    expect(harvest(vm)).toEqual([1001]);
    expect(new Uint8Array(more)[0x1000]).toBe(7);
    expect(buffer.byteLength).toBe(RAM_BYTES);
    expect(() => vm.setDirtyLog(1, true)).toThrow(code('KVM_SLOT_FREE'));
    expect(() => vm.unmapSlot(1)).toThrow(code('KVM_SLOT_FREE'));
  });
});

describe('memory', () => {
  it('gathers and scatters pages of several slots', () => {
    const vm = bare();
    const low = new Uint8Array(vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: 0x4000 }));
    const high = new Uint8Array(vm.addMemory({ slot: 1, guestPhys: 2 ** 32, sizeBytes: 0x4000 }));
    for (let page = 0; page < 4; page++) {
      low.fill(page + 1, page * 4096, (page + 1) * 4096);
      high.fill(page + 0x81, page * 4096, (page + 1) * 4096);
    }
    const pages = Uint32Array.of(3, 2 ** 20 + 1, 0, 2 ** 20);
    const dst = new Uint8Array(4 * 4096);
    vm.memory.gather(pages, 4, dst);
    expect([0, 1, 2, 3].map((i) => [dst[i * 4096], dst[i * 4096 + 4095]])).toEqual([
      [4, 4],
      [0x82, 0x82],
      [1, 1],
      [0x81, 0x81],
    ]);
    vm.memory.scatter(Uint32Array.of(1, 2 ** 20 + 3), 2, dst);
    expect([low[4096], low[8191], low[8192], high[3 * 4096]]).toEqual([4, 4, 3, 0x82]);
    const untouched = dst.slice();
    expect(() => vm.memory.gather(Uint32Array.of(0, 99), 2, dst)).toThrow(
      /page 99 is not in the memory map/,
    );
    expect(dst).toEqual(untouched);
    expect(() => vm.memory.gather(pages, 4, new Uint8Array(4 * 4096 - 1))).toThrow(RangeError);
  });

  it('gathers many pages into memory of its own', () => {
    const vm = bare();
    const pages = 600;
    const ram = new Uint8Array(vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: pages * 4096 }));
    const view = new Uint32Array(ram.buffer);
    for (let i = 0; i < view.length; i++) view[i] = Math.imul(i, 0x9e3779b1);
    // Neither in order nor in runs of one direction.
    const list = Uint32Array.from({ length: pages }, (_, i) => (i * 7) % pages);
    const expected = new Uint8Array(pages * 4096);
    for (const [i, page] of list.entries()) {
      expected.set(ram.subarray(page * 4096, (page + 1) * 4096), i * 4096);
    }
    const area = vm.memory.allocate(4 * 2 ** 20);
    expect(area).toHaveLength(4 * 2 ** 20);
    expect(area.every((byte) => byte === 0)).toBe(true);
    // Below and above the number from which copies pass the caches, aligned and not.
    for (const [count, at] of [
      [255, 0],
      [256, 4096],
      [600, 2 ** 20],
      [512, 3],
    ] as const) {
      area.fill(0xee);
      vm.memory.gather(list, count, area.subarray(at, at + count * 4096));
      expect(
        Buffer.compare(area.subarray(at, at + count * 4096), expected.subarray(0, count * 4096)),
      ).toBe(0);
      expect([at === 0 ? 0xee : area[at - 1], area[at + count * 4096]]).toEqual([0xee, 0xee]);
    }
    // Beside this thread, into blocks in any order; again and again, for what the threads do to each other.
    const blocks = Uint32Array.of(2 ** 20, 0, 2 * 2 ** 20);
    for (let n = 0; n < 200; n++) {
      area.fill(n);
      const count = n % 2 === 0 ? pages : 257 + n;
      vm.memory.beginGather(list, count, area, blocks, 256);
      vm.memory.endGather();
      for (let i = 0; i < count; i++) {
        const at = blocks[Math.floor(i / 256)]! + (i % 256) * 4096;
        const same = Buffer.compare(
          area.subarray(at, at + 4096),
          expected.subarray(i * 4096, (i + 1) * 4096),
        );
        if (same !== 0) expect.unreachable(`page ${i} of round ${n} differs`);
      }
      expect(area[3 * 2 ** 20]).toBe(n);
    }
    vm.memory.endGather();
    const begin = (...args: Parameters<typeof vm.memory.beginGather>) =>
      expect(() => vm.memory.beginGather(...args)).toThrow(RangeError);
    begin(Uint32Array.of(0, pages), 2, area, blocks, 256);
    begin(list, 600, area, Uint32Array.of(0, 1), 256);
    begin(list, 2, area, Uint32Array.of(5), 256);
    begin(list, 2, area, Uint32Array.of(4 * 2 ** 20 - 4096), 256);
    begin(list, 2, area.subarray(8), blocks, 256);
    // What was begun may be left alone.
    vm.memory.beginGather(list, 600, area, blocks, 256);
    expect(() => vm.memory.allocate(4097)).toThrow(RangeError);
    expect(() => vm.memory.allocate(0)).toThrow(RangeError);
  });

  it('reads and writes across slots', () => {
    const vm = bare();
    vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: 0x1000 });
    const next = new Uint8Array(vm.addMemory({ slot: 1, guestPhys: 0x1000, sizeBytes: 0x1000 }));
    vm.memory.write(0xffe, Uint8Array.of(1, 2, 3, 4));
    expect([next[0], next[1]]).toEqual([3, 4]);
    const back = new Uint8Array(4);
    vm.memory.read(0xffe, back);
    expect([...back]).toEqual([1, 2, 3, 4]);
    expect(() => vm.memory.write(0x1ffe, back)).toThrow(code('KVM_MEMORY_RANGE'));
    expect([...next.subarray(0xffe)]).toEqual([0, 0]);
  });

  it('read-only memory: the guest reads it, its writes are exits', async () => {
    const { vm } = guest('long', [
      ...hex('8a 04 25'),
      ...u32(MMIO), // mov al, [MMIO]
      0xe6,
      PORT, // out PORT, al
      ...poke(MMIO, 9),
      ...DONE,
    ]);
    const rom = new Uint8Array(
      vm.addMemory({ slot: 1, guestPhys: MMIO, sizeBytes: 0x1000, readonly: true }),
    );
    rom[0] = 0x77;
    const exits = await runToDone(vm);
    expect(exits.map((e) => [e.kind, e.address, e.data[0]])).toEqual([
      [EXIT.pioOut, PORT, 0x77],
      [EXIT.mmioWrite, MMIO, 9],
    ]);
    expect(rom[0]).toBe(0x77);
  });

  it('aliases: shadowing a ROM with RAM while the guest runs', async () => {
    const read = [0x8a, 0x04, 0x25, ...u32(MMIO), 0xe6, PORT]; // mov al, [MMIO]; out PORT, al
    const { vm } = guest('long', [...read, ...read, ...poke(MMIO + 1, 5), ...DONE]);
    const rom = vm.createBuffer(0x1000);
    const ram = vm.createBuffer(0x3000);
    new Uint8Array(rom)[0] = 1;
    new Uint8Array(ram)[0x2000] = 2;
    vm.mapAlias({
      slot: 5,
      guestPhys: MMIO,
      sizeBytes: 0x1000,
      readonly: true,
      buffer: rom,
      offset: 0,
    });
    const seen: number[] = [];
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          const { words, data } = vm.slots[0]!;
          if (words[3] !== PORT) {
            resolve();
            return false;
          }
          seen.push(data[0]!);
          if (seen.length === 1) {
            vm.unmapSlot(5);
            vm.mapAlias({
              slot: 5,
              guestPhys: MMIO,
              sizeBytes: 0x1000,
              buffer: ram,
              offset: 0x2000,
              log: true,
              firstPage: 2,
            });
          }
          return true;
        },
      });
    });
    expect(seen).toEqual([1, 2]);
    expect(new Uint8Array(ram)[0x2001]).toBe(5);
    expect(harvest(vm)).toEqual([2]);
    const back = new Uint8Array(2);
    vm.memory.read(MMIO, back);
    expect([...back]).toEqual([2, 5]);
  });

  it('refuses overlaps, used slots, odd sizes and foreign buffers', () => {
    const vm = bare();
    const other = bare();
    const buffer = vm.addMemory({ slot: 0, guestPhys: 0x10000, sizeBytes: 0x2000 });
    const map = (options: object) => () =>
      vm.mapAlias({
        slot: 1,
        guestPhys: 0x20000,
        sizeBytes: 0x1000,
        buffer,
        offset: 0,
        ...options,
      });
    expect(map({ slot: 0 })).toThrow(code('KVM_SLOT_BUSY'));
    expect(map({ guestPhys: 0x11000 })).toThrow(code('KVM_MEMORY_OVERLAP'));
    expect(map({ guestPhys: 0xf000, sizeBytes: 0x2000 })).toThrow(code('KVM_MEMORY_OVERLAP'));
    expect(map({ guestPhys: 0x20001 })).toThrow(RangeError);
    expect(map({ offset: 1 })).toThrow(RangeError);
    expect(map({ offset: 0x2000 })).toThrow(RangeError);
    expect(map({ sizeBytes: 0x3000 })).toThrow(RangeError);
    expect(map({ sizeBytes: 0 })).toThrow(RangeError);
    expect(map({ guestPhys: 2 ** 53 })).toThrow(RangeError);
    expect(map({ guestPhys: -4096 })).toThrow(RangeError);
    expect(map({ buffer: new ArrayBuffer(4096) })).toThrow(/not memory of this VM/);
    expect(map({ buffer: other.createBuffer(0x1000) })).toThrow(/not memory of this VM/);
    expect(map({})).not.toThrow();
    expect(() => vm.createBuffer(2 ** 31 + 4096)).toThrow(/2 GiB/);
    expect(() => vm.createBuffer(100)).toThrow(/whole pages/);
  });

  it('a map of its own, over plain buffers', () => {
    const map = host.createMemoryMap();
    const buffer = new ArrayBuffer(0x3000);
    map.addRange(0x5000, buffer, 0x1000, 0x2000);
    map.addRange(0x7000, new ArrayBuffer(0x1000));
    expect(() => map.addRange(0x6000, new ArrayBuffer(0x1000))).toThrow(RangeError);
    expect(() => map.addRange(0x4000, new ArrayBuffer(0x2000))).toThrow(RangeError);
    expect(() => map.addRange(0x9000, buffer, 0x4000)).toThrow(RangeError);
    map.write(0x6fff, Uint8Array.of(7, 8));
    expect(new Uint8Array(buffer)[0x2fff]).toBe(7);
    const page = new Uint8Array(4096);
    map.gather(Uint32Array.of(7), 1, page);
    expect(page[0]).toBe(8);
    map.removeRange(0x7000);
    expect(() => map.gather(Uint32Array.of(7), 1, page)).toThrow(RangeError);
    expect(() => map.removeRange(0x7000)).toThrow(RangeError);
  });

  it('large memory costs nothing until it is touched', () => {
    const vm = bare();
    const before = process.memoryUsage.rss();
    const big = vm.addMemory({ slot: 0, guestPhys: 2 ** 32, sizeBytes: 2 ** 31 });
    const view = new DataView(big);
    view.setUint32(2 ** 31 - 4, 0xdead_beef, true);
    expect(view.getUint32(2 ** 31 - 4, true)).toBe(0xdead_beef);
    expect(process.memoryUsage.rss() - before).toBeLessThan(64 * 2 ** 20);
  });
});
