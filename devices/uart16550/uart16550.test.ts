import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { MemoryLog } from '../../src/base/log.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { FakeConsole } from '../../test/support/fake-console.ts';
import { RecordingIrq } from '../../test/support/recording-irq.ts';
import { access, alone, anyAccess, type RegionAccess } from '../../test/support/region-access.ts';
import { SerialPort } from './serial-port.ts';
import { FCR, IER, IIR, LCR, LSR, MCR, MSR, REG, UART_PORTS } from './spec.ts';
import type { UartState } from './state.ts';
import { Uart16550 } from './uart16550.ts';

/** One character of 8N1 at 115200 baud, nanoseconds, rounded up. */
const CHARACTER_NS = 86_806;

function rig() {
  const clock = new ManualClock();
  const irq = new RecordingIrq();
  const console = new FakeConsole();
  const log = new MemoryLog();
  const port = new SerialPort({ id: 'uart0', irq, console, clock, log });
  port.resume();
  const write = (offset: number, value: number): void => port.write(offset, 1, value);
  const read = (offset: number): number => port.read(offset);
  return { clock, irq, console, log, port, write, read };
}

/** A port as a driver sets it up: 115200 8N1, FIFOs with the given trigger bits, interrupt gate open. */
function driven(trigger = 0x80) {
  const it = rig();
  it.write(REG.lcr, LCR.divisorLatch);
  it.write(REG.data, 1);
  it.write(REG.ier, 0);
  it.write(REG.lcr, 3);
  it.write(REG.iirFcr, FCR.enable | trigger);
  it.write(REG.mcr, MCR.dtr | MCR.rts | MCR.out2);
  return it;
}

const identification = (value: number): number => value & 0x0f;

describe('registers', () => {
  it('has the reset values of the data sheet', () => {
    const { read } = rig();
    expect([1, 2, 3, 4, 5, 6].map(read)).toEqual([0, 1, 0, 0, 0x60, 0xb0]);
  });

  it('keeps scratch, masks IER and MCR, ignores writes to LSR and MSR', () => {
    const { read, write } = rig();
    for (const offset of [1, 3, 4, 5, 6, 7]) write(offset, 0x7f);
    expect([1, 3, 4, 7].map(read)).toEqual([0x0f, 0x7f, 0x1f, 0x7f]);
    expect(read(REG.lsr) & LSR.dataReady).toBe(0);
  });

  it('shows the divisor under DLAB, and the plain registers otherwise', () => {
    const { read, write } = rig();
    write(REG.ier, 5);
    write(REG.lcr, LCR.divisorLatch | 3);
    write(0, 0x34);
    write(1, 0x12);
    expect([read(0), read(1)]).toEqual([0x34, 0x12]);
    write(REG.lcr, 3);
    expect(read(REG.ier)).toBe(5);
  });

  it('is taken for a 16550A by the probe that Linux makes', () => {
    const { read, write } = rig();
    write(REG.ier, 0);
    expect(read(REG.ier)).toBe(0);
    write(REG.ier, 0x0f);
    expect(read(REG.ier)).toBe(0x0f);
    write(REG.ier, 0);
    write(REG.mcr, MCR.loopback | MCR.out2 | MCR.rts);
    expect(read(REG.msr) & 0xf0).toBe(MSR.dcd | MSR.cts);
    write(REG.mcr, 0);
    // No enhanced feature register (16650), no second bank (NS16550AF variants), no 64-byte FIFO (16750).
    write(REG.lcr, 0xbf);
    write(REG.iirFcr, 0);
    write(REG.lcr, 0);
    write(REG.iirFcr, FCR.enable);
    expect(read(REG.iirFcr) >> 6).toBe(3);
    for (const lcr of [LCR.divisorLatch, 0xbf, 0xe0]) {
      write(REG.lcr, lcr);
      expect(read(REG.iirFcr)).toBe(0xc1);
    }
    write(REG.iirFcr, FCR.enable | 0x20);
    expect(read(REG.iirFcr) & 0x20).toBe(0);
    write(REG.lcr, 0);
    write(REG.ier, 0x40);
    expect(read(REG.ier)).toBe(0);
  });
});

describe('transmitter', () => {
  it('sends at once and stays ready', () => {
    const { console, read, write } = rig();
    for (const char of 'hello') {
      expect(read(REG.lsr) & 0x60).toBe(0x60);
      write(REG.data, char.charCodeAt(0));
    }
    expect(console.text).toBe('hello');
  });

  it('holds 16 bytes while the backend refuses, and shows itself busy', () => {
    const { console, log, read, write } = driven();
    console.room = 2;
    for (let i = 0; i < 20; i++) write(REG.data, 0x30 + i);
    expect(console.sent).toEqual([0x30, 0x31]);
    expect(read(REG.lsr) & 0x60).toBe(0);
    expect(log.lines).toHaveLength(2);
    console.open(15);
    expect(read(REG.lsr) & 0x60).toBe(0);
    console.open();
    expect(read(REG.lsr) & 0x60).toBe(0x60);
    expect(console.sent).toEqual(Array.from({ length: 18 }, (_, i) => 0x30 + i));
  });

  it('holds one byte without FIFOs', () => {
    const { console, write } = rig();
    console.room = 0;
    write(REG.data, 1);
    write(REG.data, 2);
    console.open();
    expect(console.sent).toEqual([1]);
  });

  it('raises transmitter-empty when enabled, when emptied, and not twice for one event', () => {
    const { console, irq, read, write } = driven();
    write(REG.ier, IER.transmitEmpty);
    expect(irq.level).toBe(true);
    expect(identification(read(REG.iirFcr))).toBe(IIR.transmitEmpty);
    expect(irq.level).toBe(false);
    expect(identification(read(REG.iirFcr))).toBe(IIR.none);
    write(REG.data, 65);
    expect(irq.level).toBe(true);
    read(REG.iirFcr);
    console.room = 0;
    write(REG.data, 66);
    expect(irq.level).toBe(false);
    console.open();
    expect(irq.level).toBe(true);
    expect(identification(read(REG.iirFcr))).toBe(IIR.transmitEmpty);
    // Off and on again: raised again, as Linux's test for chips that do not do this expects.
    write(REG.ier, 0);
    write(REG.ier, IER.transmitEmpty);
    expect(identification(read(REG.iirFcr))).toBe(IIR.transmitEmpty);
    write(REG.ier, IER.transmitEmpty);
    expect(identification(read(REG.iirFcr))).toBe(IIR.none);
  });

  it('makes an edge for every byte even when the guest never reads IIR', () => {
    const { irq, write } = driven();
    write(REG.ier, IER.transmitEmpty);
    write(REG.data, 65);
    write(REG.data, 66);
    expect(irq.edges).toEqual([true, false, true, false, true]);
  });

  it('forgets what waits when its FIFO is reset', () => {
    const { console, read, write } = driven();
    console.room = 0;
    write(REG.data, 65);
    write(REG.iirFcr, FCR.enable | FCR.resetTransmit);
    expect(read(REG.lsr) & 0x60).toBe(0x60);
    console.open();
    expect(console.sent).toEqual([]);
  });
});

describe('receiver', () => {
  it('takes input only as far as there is room', () => {
    const { console, read, write } = rig();
    console.type('abc');
    expect(console.unread).toBe(2);
    expect(read(REG.data)).toBe(0x61);
    expect(console.unread).toBe(1);
    write(REG.iirFcr, FCR.enable);
    console.type('x'.repeat(20));
    expect(console.unread).toBe(5);
    let text = '';
    while ((read(REG.lsr) & LSR.dataReady) !== 0) text += String.fromCharCode(read(REG.data));
    expect(text).toBe(`c${'x'.repeat(20)}`);
    expect(read(REG.lsr) & LSR.overrun).toBe(0);
  });

  it.each([
    [0x00, 1],
    [0x40, 4],
    [0x80, 8],
    [0xc0, 14],
  ])('interrupts at trigger %i after %i bytes', (trigger, level) => {
    const { console, irq, read, write } = driven(trigger);
    write(REG.ier, IER.received);
    console.type('x'.repeat(level - 1));
    expect(irq.level).toBe(false);
    console.type('x');
    expect(irq.level).toBe(true);
    expect(identification(read(REG.iirFcr))).toBe(IIR.received);
    expect(irq.level).toBe(true);
    read(REG.data);
    expect(irq.level).toBe(false);
  });

  it('announces bytes below the trigger after four character times of silence', () => {
    const { clock, console, irq, read, write } = driven(0xc0);
    write(REG.ier, IER.received);
    console.type('a');
    clock.advance(3 * CHARACTER_NS);
    console.type('b');
    clock.advance(3 * CHARACTER_NS);
    expect(irq.level).toBe(false);
    clock.advance(CHARACTER_NS);
    expect(irq.level).toBe(true);
    expect(identification(read(REG.iirFcr))).toBe(IIR.timeout);
    expect(read(REG.data)).toBe(0x61);
    expect(irq.level).toBe(false);
    clock.advance(4 * CHARACTER_NS);
    expect(identification(read(REG.iirFcr))).toBe(IIR.timeout);
    read(REG.data);
    clock.advance(100 * CHARACTER_NS);
    expect(irq.level).toBe(false);
  });

  it('does not interrupt without OUT2', () => {
    const { console, irq, write } = driven(0);
    write(REG.ier, IER.received);
    write(REG.mcr, 0);
    console.type('a');
    expect(irq.level).toBe(false);
    write(REG.mcr, MCR.out2);
    expect(irq.level).toBe(true);
  });

  it('ignores the line in loopback and takes it up again afterwards', () => {
    const { console, read, write } = driven(0);
    write(REG.mcr, MCR.loopback);
    console.type('a');
    expect(read(REG.lsr) & LSR.dataReady).toBe(0);
    write(REG.data, 0x55);
    expect(console.sent).toEqual([]);
    expect(read(REG.data)).toBe(0x55);
    write(REG.mcr, MCR.out2);
    expect(read(REG.data)).toBe(0x61);
  });
});

describe('the longest character timeout', () => {
  it('is in a state that can be taken over', () => {
    const { port, console, write } = rig();
    write(REG.iirFcr, FCR.enable | 0xc0);
    write(REG.lcr, LCR.divisorLatch | 0x7f);
    write(REG.data, 0);
    write(REG.ier, 0);
    console.type('x');
    port.pause();
    const state = port.save();
    expect(state.timeoutInNs).toBe(27_306_666_668);
    const { port: other } = rig();
    other.pause();
    other.load(state);
    expect(other.save()).toEqual(state);
    expect(() => other.load({ ...state, timeoutInNs: 27_306_666_669 })).toThrow('timeout');
  });
});

describe('errors and modem status', () => {
  it('notes an overrun: FIFO keeps the old bytes, the single buffer the new one', () => {
    const { read, write } = driven(0xc0);
    write(REG.mcr, MCR.loopback);
    for (let i = 0; i < 17; i++) write(REG.data, i);
    expect(read(REG.lsr) & LSR.overrun).toBe(LSR.overrun);
    expect(read(REG.lsr) & LSR.overrun).toBe(0);
    expect(Array.from({ length: 16 }, () => read(REG.data))).toEqual([...Array(16).keys()]);
    write(REG.iirFcr, 0);
    write(REG.data, 1);
    write(REG.data, 2);
    expect(read(REG.lsr) & LSR.overrun).toBe(LSR.overrun);
    expect(read(REG.data)).toBe(2);
  });

  it('shows a break when its byte reaches the top, with the highest priority', () => {
    const levels: boolean[] = [];
    const chip = new Uart16550(new ManualClock(), {
      interrupt: (level) => levels.push(level),
      transmit: () => true,
      transmitOverrun: () => {},
    });
    chip.write(REG.mcr, MCR.out2);
    chip.write(REG.iirFcr, FCR.enable);
    chip.write(REG.ier, IER.lineStatus | IER.received);
    chip.receive(0x41);
    chip.receiveBreak();
    expect(identification(chip.read(REG.iirFcr))).toBe(IIR.received);
    expect(chip.read(REG.lsr)).toBe(LSR.dataReady | 0x60 | LSR.fifoError);
    expect(chip.read(REG.data)).toBe(0x41);
    expect(identification(chip.read(REG.iirFcr))).toBe(IIR.lineStatus);
    expect(chip.read(REG.lsr)).toBe(LSR.dataReady | LSR.break | 0x60 | LSR.fifoError);
    expect(identification(chip.read(REG.iirFcr))).toBe(IIR.received);
    expect(chip.read(REG.lsr)).toBe(LSR.dataReady | 0x60);
    expect(chip.read(REG.data)).toBe(0);
    expect(levels).toEqual([true, false]);
  });

  it('loops a break back', () => {
    const { read, write } = driven(0);
    write(REG.mcr, MCR.loopback);
    write(REG.lcr, LCR.break | 3);
    expect(read(REG.lsr) & (LSR.break | LSR.dataReady)).toBe(LSR.break | LSR.dataReady);
  });

  it('tells what changed at the modem inputs, once', () => {
    const { read, write } = driven();
    write(REG.mcr, MCR.loopback | 0x0f);
    read(REG.msr);
    write(REG.mcr, MCR.loopback);
    expect(read(REG.msr)).toBe(MSR.deltas);
    expect(read(REG.msr)).toBe(0);
    write(REG.mcr, MCR.out2);
    expect(read(REG.msr)).toBe(0xb0 | MSR.deltaCts | MSR.deltaDsr | MSR.deltaDcd);
  });

  it('reports in the order line status, received, transmitter, modem', () => {
    const { irq, read, write } = driven(0);
    write(REG.mcr, MCR.loopback);
    read(REG.msr);
    for (let i = 0; i < 17; i++) write(REG.data, i);
    write(REG.mcr, MCR.out2);
    write(REG.ier, IER.mask);
    const order: number[] = [];
    order.push(identification(read(REG.iirFcr)));
    read(REG.lsr);
    order.push(identification(read(REG.iirFcr)));
    for (let i = 0; i < 16; i++) read(REG.data);
    order.push(identification(read(REG.iirFcr)));
    order.push(identification(read(REG.iirFcr)));
    expect(irq.level).toBe(true);
    read(REG.msr);
    order.push(identification(read(REG.iirFcr)));
    expect(order).toEqual([
      IIR.lineStatus,
      IIR.received,
      IIR.transmitEmpty,
      IIR.modemStatus,
      IIR.none,
    ]);
    expect(irq.level).toBe(false);
  });
});

type Step =
  | RegionAccess
  | { readonly type: readonly number[] }
  | { readonly open: number }
  | { readonly advance: number };

const steps: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: anyAccess(UART_PORTS) },
  { weight: 1, arbitrary: fc.record({ type: fc.array(fc.nat(255), { maxLength: 20 }) }) },
  { weight: 1, arbitrary: fc.record({ open: fc.nat(20) }) },
  { weight: 1, arbitrary: fc.record({ advance: fc.nat(2_000_000) }) },
);

deviceConformance('uart16550', {
  world: () => ({
    clock: new ManualClock(),
    irq: new RecordingIrq(),
    console: Object.assign(new FakeConsole(), { room: 8 }),
    log: new MemoryLog(),
  }),
  attach: (world) => new SerialPort({ id: 'uart0', ...world }),
  steps,
  perform(world, port, step) {
    if ('type' in step) world.console.type(step.type);
    else if ('open' in step) world.console.open(step.open);
    else if ('advance' in step) world.clock.advance(step.advance);
    else return access(alone(port, UART_PORTS), step);
    return undefined;
  },
  observe: ({ irq, console }) => [irq.edges, console.sent, console.unread],
  impossible: (good: UartState) => [
    { ...good, ier: 0x10 },
    { ...good, fcr: 0x40 },
    { ...good, mcr: 0x20 },
    { ...good, lineErrors: 1 },
    { ...good, received: new Uint8Array(2), receivedErrors: new Uint8Array(2) },
    { ...good, received: new Uint8Array(1) },
    { ...good, transmitting: new Uint8Array(2) },
    { ...good, transmitting: new Uint8Array(1), transmitEmptyPending: true },
    { ...good, timedOut: true },
    { ...good, timeoutInNs: 5 },
  ],
});
