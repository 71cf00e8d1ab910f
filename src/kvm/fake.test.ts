import { describe, expect, it } from 'vitest';
import { COALESCED_WORD, EXIT, SLOT_WORD } from './api.ts';
import { FakeKvmHost, FakeKvmVm } from './fake.ts';

describe('FakeKvmVm', () => {
  it('delivers exits to the handler and returns what it answers', () => {
    const vm = new FakeKvmVm({ vcpus: 2 });
    const seen: number[][] = [];
    vm.start({
      onExit(vcpu) {
        const { words, data, view } = vm.slots[vcpu]!;
        seen.push([vcpu, words[SLOT_WORD.kind]!, words[SLOT_WORD.addressLo]!, data[0]!]);
        if (words[SLOT_WORD.kind] === EXIT.pioIn) view.setUint16(0, 0xbeef, true);
        return true;
      },
    });
    expect(vm.out(0x3f8, 1, 0x41, 1)).toBe(true);
    expect(vm.in(0x60, 2)).toBe(0xbeef);
    expect(seen).toEqual([
      [1, EXIT.pioOut, 0x3f8, 0x41],
      [0, EXIT.pioIn, 0x60, 0xff],
    ]);
  });

  it('keeps exits open, refuses a pause then, and allows an open one', () => {
    const vm = new FakeKvmVm({ vcpus: 1 });
    vm.start({ onExit: () => false });
    expect(vm.out(0x80, 1, 1)).toBe(false);
    expect(() => vm.pauseAll()).toThrow(/not complete/);
    expect(() => vm.captureState()).toThrow(/pause it first/);
    vm.pauseAllOpen();
    expect(vm.openExit(0)).toBe(EXIT.pioOut);
    expect(() => vm.completeExit(0)).toThrow(/paused/);
    vm.captureState();
    vm.resumeAll();
    vm.completeExit(0);
    expect(vm.openExit(0)).toBe(0);
  });

  it('holds exits back while paused', () => {
    const vm = new FakeKvmVm({ vcpus: 1 });
    let exits = 0;
    vm.start({
      onExit() {
        exits++;
        return true;
      },
    });
    vm.pauseAll();
    expect(vm.out(0x80, 1, 1)).toBe(false);
    expect(exits).toBe(0);
    vm.resumeAll();
    expect(exits).toBe(1);
    expect(vm.openExit(0)).toBe(0);
  });

  it('logs dirty pages, also under another number', () => {
    const vm = new FakeKvmVm({ vcpus: 1 });
    vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: 0x4000, log: true });
    vm.addMemory({ slot: 1, guestPhys: 0x10000, sizeBytes: 0x2000, log: true, firstPage: 100 });
    vm.guestWrite(0xfff, Uint8Array.of(1, 2));
    vm.guestWrite(0x11000, Uint8Array.of(3));
    const list = new Uint32Array(8);
    expect([...list.subarray(0, vm.harvestDirty(list))].sort()).toEqual([0, 1, 101].sort());
    expect(vm.harvestDirty(list)).toBe(0);
    vm.guestWrite(0x3000, Uint8Array.of(1));
    const words = new Uint32Array(4);
    expect(vm.harvestDirtyBits(words)).toBe(1);
    expect(words[0]).toBe(8);
  });

  it('plays coalesced writes and doorbells', () => {
    const vm = new FakeKvmVm({ vcpus: 1 });
    const log: string[] = [];
    vm.start({
      onExit() {
        log.push('exit');
        return true;
      },
      onCoalesced(count) {
        log.push(`${count}@${vm.coalesced.words[COALESCED_WORD.addressLo]}`);
      },
    });
    const bell = vm.addIoEvent({ space: 'mmio', address: 0x1000, size: 0 }, () => log.push('bell'));
    vm.coalesce(EXIT.mmioWrite, 0x2000, 4, 7);
    vm.out(0x80, 1, 0);
    expect(vm.ring('mmio', 0x1000)).toBe(true);
    expect(vm.ring('mmio', 0x1004)).toBe(false);
    vm.flushDoorbells();
    bell.close();
    expect(vm.ring('mmio', 0x1000)).toBe(false);
    expect(log).toEqual([`1@${0x2000}`, 'exit', 'bell']);
  });

  it('records interrupts and restores state', () => {
    const host = new FakeKvmHost();
    const vm = host.createVm({ vcpus: 1 });
    vm.setIrqLine(4, true);
    vm.setIrqLine(4, false);
    expect(vm.irqLog).toEqual([
      { gsi: 4, level: true },
      { gsi: 4, level: false },
    ]);
    vm.signalMsi(0xfee0_0000, 0x31);
    vm.addIrqfd(24).signal();
    expect(vm.msiLog).toEqual([
      { address: 0xfee0_0000, data: 0x31 },
      { address: 24, data: 0 },
    ]);
    const state = vm.captureState();
    state.vcpus[0]!.regs[16] = 0x1234n;
    const other = host.createVm({ vcpus: 1 });
    other.restoreState(state);
    expect(other.getRegs(0)[16]).toBe(0x1234n);
    expect(vm.getRegs(0)[16]).toBe(0n);
    expect(() => host.createVm({ vcpus: 2 }).restoreState(state)).toThrow(/vCPUs/);
  });
});
