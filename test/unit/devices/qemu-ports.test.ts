/**
 * The same port accesses on a device here and on QEMU's: what the guest reads must agree. QEMU runs stopped (its clock
 * stands still) and takes the accesses on its qtest interface. Left out of the scripts, each for a reason that stands
 * beside it, is only what the specifications leave open or QEMU does not have. Skipped, with the reason, without QEMU.
 */
import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { FwCfgContent } from '../../../devices/fw-cfg/content.ts';
import { FwCfg } from '../../../devices/fw-cfg/fw-cfg.ts';
import { FW_CFG_PORT, FW_CFG_PORTS } from '../../../devices/fw-cfg/spec.ts';
import { I8042 } from '../../../devices/i8042/i8042.ts';
import { I8042_CONTROL_PORT, I8042_DATA_PORT } from '../../../devices/i8042/spec.ts';
import { RtcCmos } from '../../../devices/rtc-cmos/rtc-cmos.ts';
import { REG as RTC, RTC_PORTS } from '../../../devices/rtc-cmos/spec.ts';
import { SerialPort } from '../../../devices/uart16550/serial-port.ts';
import { LSR, REG as UART, UART_PORTS } from '../../../devices/uart16550/spec.ts';
import { ManualClock } from '../../../src/base/clock.ts';
import { silentLog } from '../../../src/base/log.ts';
import { Prng } from '../../../src/base/prng.ts';
import { type AccessSize, IoBus } from '../../../src/bus/io-bus.ts';
import { GuestMemory } from '../../../src/memory/guest-memory.ts';
import { FakeConsole } from '../../support/fake-console.ts';
import { RecordingIrq } from '../../support/recording-irq.ts';

const QEMU = 'qemu-system-x86_64';
const missing = spawnSync(QEMU, ['--version']).status !== 0;
if (missing) {
  process.stdout.write(`skipped: the comparison of devices with QEMU needs ${QEMU}\n`);
}

const COM1 = 0x3f8;
const RTC_PORT = 0x70;
const START = Date.UTC(2026, 10, 22, 23, 59, 58);

/** One access; a read has no value. `mask` are the bits of a read that must agree. */
interface PortAccess {
  readonly port: number;
  readonly size?: AccessSize;
  readonly value?: number;
  readonly mask?: number;
}

const write = (port: number, value: number, size: AccessSize = 1): PortAccess => ({
  port,
  value,
  size,
});
const read = (port: number, mask = 0xffffffff, size: AccessSize = 1): PortAccess => ({
  port,
  mask,
  size,
});

/** What QEMU's `pc` machine reads, one number for each read of `script`. */
function onQemu(script: readonly PortAccess[]): number[] {
  const letter = { 1: 'b', 2: 'w', 4: 'l' } as const;
  const lines = script.map(({ port, size = 1, value }) =>
    value === undefined ? `in${letter[size]} ${port}` : `out${letter[size]} ${port} ${value}`,
  );
  const { stdout, stderr } = spawnSync(
    QEMU,
    [
      ...'-machine pc -accel tcg -S -m 16 -nodefaults -display none -monitor none'.split(' '),
      ...'-serial null -rtc base=2026-11-22T23:59:58,clock=vm'.split(' '),
      ...'-device isa-debug-exit,iobase=0xf4,iosize=1 -qtest stdio -qtest-log none'.split(' '),
    ],
    // The last access ends QEMU.
    { input: `${lines.join('\n')}\noutb 0xf4 0\n`, encoding: 'utf8', timeout: 15_000 },
  );
  const answers = stdout.trim().split('\n');
  expect(answers.length, stderr).toBeGreaterThanOrEqual(script.length);
  return script.flatMap(({ value }, i) =>
    value === undefined ? [Number(answers[i]!.split(' ')[1])] : [],
  );
}

function onBus(bus: IoBus, script: readonly PortAccess[]): number[] {
  const reads: number[] = [];
  for (const { port, size = 1, value } of script) {
    if (value === undefined) reads.push(bus.read(port, size));
    else bus.write(port, size, value);
  }
  return reads;
}

function compare(bus: IoBus, script: readonly PortAccess[]): void {
  const ours = onBus(bus, script);
  const theirs = onQemu(script);
  const reads = script.flatMap((step, at) => (step.value === undefined ? [{ step, at }] : []));
  for (const [i, { step, at }] of reads.entries()) {
    const mask = step.mask ?? 0xffffffff;
    if (((ours[i]! ^ theirs[i]!) & mask) === 0) continue;
    const before = script.slice(Math.max(0, at - 12), at + 1);
    const text = before
      .map(({ port, value }) => `${port.toString(16)}${value === undefined ? '?' : `=${value}`}`)
      .join(' ');
    expect.fail(`here ${ours[i]}, QEMU ${theirs[i]} at access ${at}: ${text}`);
  }
}

function uart(): IoBus {
  const bus = new IoBus('ports');
  const port = new SerialPort({
    id: 'uart0',
    irq: new RecordingIrq(),
    console: new FakeConsole(),
    clock: new ManualClock(),
    log: silentLog,
  });
  port.resume();
  bus.map(COM1, UART_PORTS, port);
  return bus;
}

/** Any accesses to a UART. */
function uartScript(seed: number, length: number): PortAccess[] {
  const prng = new Prng(seed);
  // QEMU's OUT2 is set after reset; the data sheet says 0.
  const script: PortAccess[] = [write(COM1 + UART.mcr, 0)];
  while (script.length < length) {
    const offset = prng.below(UART_PORTS);
    const port = COM1 + offset;
    if (prng.chance(0.5)) {
      // QEMU does not tell modem changes in loopback.
      if (offset === UART.msr) script.push(read(port, 0xf0));
      // What an empty receiver reads as is open.
      else if (offset === UART.data) script.push(read(COM1 + UART.lsr, LSR.dataReady));
      else script.push(read(port));
      continue;
    }
    const value = {
      // No modem status interrupt, see above.
      [UART.ier]: prng.below(8),
      [UART.iirFcr]: prng.pick([0, 1, 3, 5, 7, 0x41, 0x81, 0xc1, 0xc7]),
      // QEMU does not loop a break back.
      [UART.lcr]: prng.pick([3, 3, 3, 0x83, 0x1b]),
      [UART.mcr]: prng.pick([0x10, 0x1f, 0x18, 0, 0x0b]),
    }[offset];
    script.push(write(port, value ?? prng.below(256)));
  }
  return script;
}

/** Any accesses to a clock that stands at {@link START}, with values that its registers can have. */
function rtcScript(seed: number, length: number): PortAccess[] {
  const prng = new Prng(seed);
  const script: PortAccess[] = [];
  let control = 0x02;
  const time: Readonly<Record<number, readonly [number, number]>> = {
    [RTC.seconds]: [0, 59],
    [RTC.minutes]: [0, 59],
    [RTC.day]: [1, 28],
    [RTC.month]: [1, 12],
    [RTC.year]: [0, 99],
    [RTC.century]: [19, 21],
  };
  const digits = (value: number): number =>
    (control & 4) !== 0 ? value : Math.floor(value / 10) * 16 + (value % 10);
  const registers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0a, 0x0b, 0x0d, 0x32];
  while (script.length < length) {
    const register = prng.pick(registers);
    script.push(write(RTC_PORT, register));
    // The weekday follows from the date here.
    if (register === RTC.weekday || prng.chance(0.6)) {
      script.push(read(RTC_PORT + 1));
      continue;
    }
    let value = prng.below(256);
    const range = time[register];
    if (range !== undefined) {
      value = digits(prng.between(...range));
    } else if (register === RTC.hours) {
      value =
        (control & 2) !== 0
          ? digits(prng.between(0, 23))
          : digits(prng.between(1, 12)) | prng.pick([0, 0x80]);
    } else if (register === RTC.a) {
      value = 0x20 | prng.below(16);
    } else if (register === RTC.b) {
      // What a change of mode makes of a time that is being set is open.
      if ((control & 0x80) !== 0 || prng.chance(0.5)) control ^= 0x80;
      else control = prng.pick([0, 2, 4, 6]);
      value = control;
    }
    script.push(write(RTC_PORT + 1, value));
  }
  return script;
}

describe.skipIf(missing)('beside QEMU', () => {
  it.each([1, 2, 3])('the serial port reads alike (seed %i)', (seed) => {
    compare(uart(), uartScript(seed, 3000));
  });

  // Short ones: QEMU's time slips by its rounding each time that it is set.
  it.each([1, 2, 3, 4])('the clock reads alike (seed %i)', (seed) => {
    const bus = new IoBus('ports');
    const rtc = new RtcCmos({
      id: 'rtc',
      irq: new RecordingIrq(),
      clock: new ManualClock(START * 1e6),
      cmos: new Uint8Array(128),
    });
    rtc.resume();
    bus.map(RTC_PORT, RTC_PORTS, rtc);
    compare(bus, rtcScript(seed, 250));
  });

  it('the keyboard controller answers its commands alike', () => {
    const bus = new IoBus('ports');
    const keyboard = new I8042({ id: 'i8042', onReset: () => {} });
    bus.map(I8042_DATA_PORT, 1, keyboard.data);
    bus.map(I8042_CONTROL_PORT, 1, keyboard.control);
    const answer = [read(I8042_CONTROL_PORT, 0x01), read(I8042_DATA_PORT)];
    compare(bus, [
      write(I8042_CONTROL_PORT, 0xaa),
      ...answer,
      read(I8042_CONTROL_PORT, 0x55),
      write(I8042_CONTROL_PORT, 0x60),
      write(I8042_DATA_PORT, 0x74),
      write(I8042_CONTROL_PORT, 0x20),
      ...answer,
      write(I8042_CONTROL_PORT, 0xd1),
      write(I8042_DATA_PORT, 0xdd),
      write(I8042_CONTROL_PORT, 0xd0),
      read(I8042_DATA_PORT, 0x03),
      write(I8042_CONTROL_PORT, 0xdf),
      write(I8042_CONTROL_PORT, 0xd0),
      read(I8042_DATA_PORT, 0x03),
      write(I8042_CONTROL_PORT, 0xd2),
      write(I8042_DATA_PORT, 0x1c),
      ...answer,
    ]);
  });

  it('firmware configuration shows itself alike', () => {
    const bus = new IoBus('ports');
    const content = new FwCfgContent().machine({
      cpus: 1,
      memoryBytes: 16 * 2 ** 20,
      memoryMap: [{ base: 0, size: 16 * 2 ** 20, type: 1 }],
    });
    bus.map(
      FW_CFG_PORT,
      FW_CFG_PORTS,
      new FwCfg({
        id: 'fw-cfg',
        content,
        memory: new GuestMemory([{ base: 0, buffer: new ArrayBuffer(0x1000) }]),
        clock: new ManualClock(),
        log: silentLog,
      }),
    );
    const item = (key: number, bytes: number): PortAccess[] => [
      write(FW_CFG_PORT, key, 2),
      ...Array.from({ length: bytes }, () => read(FW_CFG_PORT + 1)),
    ];
    compare(bus, [
      ...item(0x0000, 6),
      ...item(0x0001, 4),
      ...item(0x0003, 9),
      ...item(0x0005, 3),
      ...item(0x000f, 3),
      ...item(0x8002, 1),
      ...item(0x7000, 2),
      read(FW_CFG_PORT + 4, 0xffffffff, 4),
      read(FW_CFG_PORT + 8, 0xffffffff, 4),
    ]);
  });
});
