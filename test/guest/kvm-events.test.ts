import { afterEach, describe, expect, it } from 'vitest';
import { COALESCED_ENTRY_BYTES, COALESCED_WORD, EXIT, type KvmVm } from '../../src/kvm/api.ts';
import {
  copyExit,
  DATA,
  DONE,
  DONE_PORT,
  hex,
  MMIO,
  makeGuest,
  PORT,
  type TestGuest,
} from './kvm-guest.ts';

const vms: KvmVm[] = [];
function guest(...args: Parameters<typeof makeGuest>): TestGuest {
  const made = makeGuest(...args);
  vms.push(made.vm);
  return made;
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
/** mov dword [address], value (long mode) */
const poke = (address: number, value: number) => [0xc7, 0x04, 0x25, ...u32(address), ...u32(value)];
/** mov al, value; out port, al */
const out = (port: number, value: number) => [0xb0, value, 0xe6, port];
const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise<void>((resolve) => setImmediate(resolve));
};
async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('condition not reached');
    await turns(1);
  }
}

/** Runs to DONE_PORT with handlers that write a log. */
function logged(vm: KvmVm, log: string[]): Promise<void> {
  const { words, bytes } = vm.coalesced;
  return new Promise((resolve) => {
    vm.start({
      onExit(vcpu) {
        const exit = copyExit(vm.slots[vcpu]!);
        if (exit.address === DONE_PORT) {
          resolve();
          return false;
        }
        log.push(`exit ${exit.kind} ${exit.address.toString(16)}=${exit.data[0]}`);
        return true;
      },
      onCoalesced(count) {
        for (let i = 0; i < count; i++) {
          const at = (i * COALESCED_ENTRY_BYTES) / 4;
          const address = words[at + COALESCED_WORD.addressLo]!.toString(16);
          const value = bytes[(at + COALESCED_WORD.data) * 4]!;
          log.push(
            `late ${words[at + COALESCED_WORD.kind]} ${words[at + COALESCED_WORD.size]} ${address}=${value}`,
          );
        }
      },
    });
  });
}

describe('doorbells', () => {
  it('ring without an exit, by address, size and value', async () => {
    const { vm } = guest('long', [
      ...poke(MMIO, 1),
      ...poke(MMIO + 0x100, 6),
      ...poke(MMIO + 0x100, 5),
      ...out(PORT, 3),
      ...out(PORT, 4),
      ...DONE,
    ]);
    const rung: string[] = [];
    vm.addIoEvent({ space: 'mmio', address: MMIO, size: 0 }, () => rung.push('any'));
    vm.addIoEvent({ space: 'mmio', address: MMIO + 0x100, size: 4, datamatch: 5 }, () =>
      rung.push('match'),
    );
    vm.addIoEvent({ space: 'pio', address: PORT, size: 1, datamatch: 3 }, () => rung.push('port'));
    const log: string[] = [];
    await logged(vm, log);
    expect(log).toEqual([
      `exit ${EXIT.mmioWrite} ${(MMIO + 0x100).toString(16)}=6`,
      `exit ${EXIT.pioOut} 90=4`,
    ]);
    await until(() => rung.length === 3);
    expect(rung.sort()).toEqual(['any', 'match', 'port']);
  });

  it('can be drained at once, and closed', async () => {
    const { vm } = guest('long', [
      ...poke(MMIO, 1),
      ...poke(MMIO, 2),
      ...out(PORT, 0),
      ...poke(MMIO, 3),
      ...DONE,
    ]);
    let rung = 0;
    const bell = vm.addIoEvent({ space: 'mmio', address: MMIO, size: 4 }, () => {
      rung++;
    });
    expect(bell.fd).toBeGreaterThan(2);
    const atPort: number[] = [];
    const kinds: number[] = [];
    await new Promise<void>((resolve) => {
      vm.start({
        onExit() {
          const { kind, address } = copyExit(vm.slots[0]!);
          kinds.push(kind);
          if (address === DONE_PORT) {
            resolve();
            return false;
          }
          if (address === PORT) {
            vm.drainIoEvents();
            atPort.push(rung);
            bell.close();
            bell.close();
          }
          return true;
        },
      });
    });
    // Rings that nobody looked at in between are one.
    expect([1, 2]).toContain(atPort[0]);
    expect(kinds).toEqual([EXIT.pioOut, EXIT.mmioWrite, EXIT.pioOut]);
    await turns(3);
    expect(rung).toBe(atPort[0]);
  });

  it('refuses what KVM cannot do', () => {
    const { vm } = guest('long', [...DONE]);
    const add = (options: object) => () =>
      vm.addIoEvent({ space: 'mmio', address: MMIO, size: 4, ...options }, () => {});
    add({})();
    expect(add({})).toThrow(expect.objectContaining({ code: 'KVM_IOCTL' }));
    expect(add({ size: 3 })).toThrow(RangeError);
    expect(add({ size: 16 })).toThrow(RangeError);
    expect(add({ address: -1 })).toThrow(RangeError);
    expect(add({ datamatch: -1, address: MMIO + 8 })).toThrow(RangeError);
  });
});

describe('coalesced writes', () => {
  it('arrive in order, before the exit that follows them', async () => {
    const { vm } = guest('long', [
      ...poke(MMIO, 1),
      ...poke(MMIO + 4, 2),
      ...out(PORT, 3),
      ...out(PORT + 1, 4),
      ...poke(MMIO, 5),
      ...DONE,
    ]);
    vm.addCoalescedZone('mmio', MMIO, 0x1000);
    vm.addCoalescedZone('pio', PORT, 1);
    const log: string[] = [];
    await logged(vm, log);
    expect(log).toEqual([
      'late 4 4 100000=1',
      'late 4 4 100004=2',
      'late 2 1 90=3',
      'exit 2 91=4',
      'late 4 4 100000=5',
    ]);
    vm.removeCoalescedZone('pio', PORT, 1);
  });

  it('a full ring loses nothing', async () => {
    // 600 writes, more than the ring holds: mov ecx, 600; loop: mov [MMIO], ecx; dec ecx; jnz
    const { vm } = guest('long', [
      0xb9,
      ...u32(600),
      ...hex('89 0c 25'),
      ...u32(MMIO),
      ...hex('ff c9 75 f5'),
      ...DONE,
    ]);
    vm.addCoalescedZone('mmio', MMIO, 4);
    const log: string[] = [];
    await logged(vm, log);
    expect(log).toHaveLength(600);
    const values = log.map((line) => Number(line.split('=')[1]));
    expect(values).toEqual(Array.from({ length: 600 }, (_, i) => (600 - i) & 0xff));
    expect(log.some((line) => line.startsWith('exit'))).toBe(true);
  });

  it('are drained by a pause', async () => {
    const { vm, memory } = guest('long', [...poke(MMIO, 7), ...poke(DATA, 1), 0xf4]);
    vm.addCoalescedZone('mmio', MMIO, 4);
    const log: string[] = [];
    void logged(vm, log);
    await until(() => memory[DATA] === 1);
    expect(log).toEqual([]);
    vm.pauseAll();
    expect(log).toEqual(['late 4 4 100000=7']);
  });
});

/** Interrupt handlers in long mode: IDT at DATA+0x1000, GDT at DATA+0x800, handler n writes DATA+n. */
const IDT = DATA + 0x1000;
const GDT = DATA + 0x800;
const HANDLERS = 0xa000;
const LAPIC_TABLE = 0x4000;

/** A guest that enables its LAPIC and interrupts, marks itself ready with port PORT, then halts for ever. */
function interruptGuest(vector: number, extra: number[] = []): TestGuest {
  const setup = [
    ...hex('0f 01 1c 25'),
    ...u32(DATA + 0x7f0), // lidt [DATA+0x7f0]
    ...hex('0f 01 14 25'),
    ...u32(DATA + 0x7e0), // lgdt [DATA+0x7e0]
    0xbb,
    ...u32(0xfee0_0000), // mov ebx, LAPIC
    ...hex('c7 83'),
    ...u32(0xf0),
    ...u32(0x1ff), // software enable
    // The PICs are open after a reset and would send vectors that the IDT does not have.
    ...out(0x21, 0xff),
    ...out(0xa1, 0xff),
    ...extra,
    0xfb, // sti
    ...out(PORT, 1),
    ...hex('f4 eb fd'), // hlt; jmp
  ];
  const made = guest('long', setup);
  const { memory } = made;
  const view = new DataView(memory.buffer);
  view.setBigUint64(0x2000 + 3 * 8, BigInt(LAPIC_TABLE) + 3n, true);
  for (let i = 0; i < 512; i++) {
    view.setBigUint64(LAPIC_TABLE + i * 8, 0xc000_0000n + BigInt(i) * 0x20_0000n + 0x83n, true);
  }
  view.setBigUint64(GDT + 8, 0x00af_9a00_0000_ffffn, true);
  view.setBigUint64(GDT + 16, 0x00cf_9200_0000_ffffn, true);
  view.setUint16(DATA + 0x7e0, 0x17, true);
  view.setBigUint64(DATA + 0x7e2, BigInt(GDT), true);
  view.setUint16(DATA + 0x7f0, 0xfff, true);
  view.setBigUint64(DATA + 0x7f2, BigInt(IDT), true);
  const gate = IDT + vector * 16;
  view.setUint16(gate, HANDLERS, true);
  view.setUint16(gate + 2, 8, true);
  view.setUint16(gate + 4, 0x8e00, true);
  // inc dword [DATA]; mov dword [rbx+0xb0], 0 (end of interrupt); iretq
  memory.set(
    [0xff, 0x04, 0x25, ...u32(DATA), 0xc7, 0x83, ...u32(0xb0), 0, 0, 0, 0, 0x48, 0xcf],
    HANDLERS,
  );
  return made;
}

/** Runs to the mark; whatever else the guest does afterwards is a failure of the test. */
async function startReady(vm: KvmVm): Promise<void> {
  await new Promise<void>((resolve) => {
    vm.start({
      onExit(vcpu) {
        const exit = copyExit(vm.slots[vcpu]!);
        expect(exit).toMatchObject({ kind: EXIT.pioOut, address: PORT });
        resolve();
        return true;
      },
    });
  });
}

describe('interrupts', () => {
  it('a message is delivered at once', async () => {
    const { vm, memory } = interruptGuest(0x41);
    await startReady(vm);
    expect(vm.signalMsi(0xfee0_0000, 0x41)).toBe(true);
    await until(() => memory[DATA] === 1);
    expect(vm.signalMsi(0xfee0_0000, 0x41)).toBe(true);
    await until(() => memory[DATA] === 2);
  });

  it('an irqfd sends the message of its route', async () => {
    const { vm, memory } = interruptGuest(0x42);
    vm.setGsiRoutes([{ gsi: 24, kind: 'msi', address: 0xfee0_0000, data: 0x42 }]);
    const irq = vm.addIrqfd(24);
    expect(irq.gsi).toBe(24);
    await startReady(vm);
    irq.signal();
    await until(() => memory[DATA] === 1);
    // A captured state holds it: message interrupts are immediate.
    vm.pauseAll();
    irq.signal();
    const { lapic } = vm.getVcpuState(0);
    const requested = new DataView(lapic.buffer).getUint32(0x200 + 0x10 * (0x42 >> 5), true);
    expect((requested >>> (0x42 & 31)) & 1).toBe(1);
    vm.resumeAll();
    await until(() => memory[DATA] === 2);
    irq.close();
    irq.close();
    irq.signal();
    await turns(5);
    expect(memory[DATA]).toBe(2);
  });

  it('an interrupt line reaches the IOAPIC pin of its route', async () => {
    // IOAPIC: redirection of pin 5 to vector 0x43, level triggered. Index at 0xfec00000, data at +0x10.
    const ioapic = [
      0xba,
      ...u32(0xfec0_0000), // mov edx, IOAPIC
      ...hex('c7 02'),
      ...u32(0x10 + 5 * 2 + 1),
      ...hex('c7 42 10'),
      ...u32(0), // high: APIC 0
      ...hex('c7 02'),
      ...u32(0x10 + 5 * 2),
      ...hex('c7 42 10'),
      ...u32(0x8043), // low: level, vector
    ];
    const { vm, memory } = interruptGuest(0x43, ioapic);
    await startReady(vm);
    vm.setIrqLine(5, true);
    await until(() => new DataView(memory.buffer).getUint32(DATA, true) >= 1);
    vm.setIrqLine(5, false);
    vm.pauseAll();
    const counter = new DataView(memory.buffer);
    const seen = counter.getUint32(DATA, true);
    vm.resumeAll();
    await turns(20);
    // One may have been on its way in the LAPIC.
    expect(counter.getUint32(DATA, true) - seen).toBeLessThanOrEqual(1);
    expect(() => vm.setIrqLine(5000, true)).toThrow(RangeError);
  });

  it('the timer interrupt of the PIT comes in on IOAPIC pin 2', async () => {
    const ioapic = [
      0xba,
      ...u32(0xfec0_0000),
      ...hex('c7 02'),
      ...u32(0x10 + 2 * 2 + 1),
      ...hex('c7 42 10'),
      ...u32(0),
      ...hex('c7 02'),
      ...u32(0x10 + 2 * 2),
      ...hex('c7 42 10'),
      ...u32(0x44),
      ...out(0x43, 0x34),
      ...out(0x40, 0x00),
      ...out(0x40, 0x10), // channel 0, rate generator, 4096
    ];
    const { vm, memory } = interruptGuest(0x44, ioapic);
    await startReady(vm);
    await until(() => memory[DATA]! >= 3);
  });
});
