/**
 * Fuzzers of the fixed devices of a PC, each alone on a port bus: serial line, clock, keyboard controller, power
 * management, reset control, debug exit and debug console. See twins.ts for what must hold; the places that each must
 * reach are in registry.ts.
 */
import { AcpiPm } from '../../devices/acpi-pm/acpi-pm.ts';
import { ACPI_PM_PORTS, OFFSET as PM } from '../../devices/acpi-pm/spec.ts';
import { DebugConsole } from '../../devices/debug-console/debug-console.ts';
import { DebugExit, type DebugExitOptions } from '../../devices/debug-exit/debug-exit.ts';
import { DEBUG_EXIT_PORTS } from '../../devices/debug-exit/spec.ts';
import { I8042 } from '../../devices/i8042/i8042.ts';
import { COMMAND } from '../../devices/i8042/spec.ts';
import { ResetControl } from '../../devices/reset-control/reset-control.ts';
import { cmosContent } from '../../devices/rtc-cmos/cmos-content.ts';
import { RtcCmos } from '../../devices/rtc-cmos/rtc-cmos.ts';
import { REG as CMOS_REG, RTC_PORTS } from '../../devices/rtc-cmos/spec.ts';
import { SerialPort } from '../../devices/uart16550/serial-port.ts';
import { REG as UART, UART_PORTS } from '../../devices/uart16550/spec.ts';
import { assert } from '../../src/base/assert.ts';
import { ManualClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Prng } from '../../src/base/prng.ts';
import type { Device } from '../../src/bus/device.ts';
import { type AccessSize, IoBus, type IoRegion } from '../../src/bus/io-bus.ts';
import { FakeConsole } from '../support/fake-console.ts';
import { RecordingIrq } from '../support/recording-irq.ts';
import type { Coverage } from './coverage.ts';
import { type Act, anyAccess, anyValue, readOf, type Twin, type TwinSubject } from './twins.ts';

const SECOND = 1e9;
/** Sunday 2026-11-22 23:59:58.25 UTC: a minute, an hour and a day change soon. */
const START = Date.UTC(2026, 10, 22, 23, 59, 58, 250) * 1e6;

/** A clock whose wall time an operator sets. */
class AdjustableClock extends ManualClock {
  wallShiftNs = 0;

  override wallNs(): number {
    return super.wallNs() + this.wallShiftNs;
  }
}

/** A device on ports from 0 on, and its outside. */
class PortTwin<D extends Device = Device> implements Twin {
  readonly clock = new AdjustableClock(START);
  readonly irq = new RecordingIrq();
  readonly console = new FakeConsole();
  /** Calls out of the device: resets, exits, bytes. */
  readonly calls: unknown[] = [];
  readonly #make: (twin: PortTwin<D>) => D;
  bus = new IoBus('pio');
  device: D;

  constructor(make: (twin: PortTwin<D>) => D) {
    this.#make = make;
    this.device = make(this);
  }

  get devices(): readonly Device[] {
    return [this.device];
  }

  rebuild(): void {
    this.bus = new IoBus('pio');
    this.device = this.#make(this);
  }

  map<R extends IoRegion>(region: R, base: number, length: number): R {
    this.bus.map(base, length, region);
    return region;
  }

  observe(): unknown {
    const { edges } = this.irq;
    return {
      edges: edges.splice(0),
      level: this.irq.level,
      sent: this.console.sent.splice(0),
      unread: this.console.unread,
      calls: this.calls.splice(0),
    };
  }
}

const busOf = (twin: { readonly bus: IoBus }): IoBus => twin.bus;

/** Makes a subject of a device and its steps. */
function onPorts<D extends Device>(
  make: (twin: PortTwin<D>) => D,
  draw: (random: Prng, seen: Coverage) => Act<PortTwin<D>>,
  cover?: (twin: PortTwin<D>, seen: Coverage) => void,
): TwinSubject<PortTwin<D>> {
  return {
    build: () => new PortTwin(make),
    draw: (random, _twin, seen) => draw(random, seen),
    ...(cover && { cover }),
  };
}

/** Time goes on; now and then timers fire late, as those of a busy host do. */
function advance(random: Prng, ns: number): Act<{ readonly clock: ManualClock }> {
  const late = random.chance(0.2);
  return ({ clock }) => (late ? clock.jump(ns) : clock.advance(ns));
}

/** 115200 or 600 baud, 8N1, FIFOs on with the highest trigger and emptied, received data announced. */
const quietLine = (divisor: 1 | 192) =>
  [
    [UART.lcr, 0x83],
    [UART.data, divisor],
    [UART.ier, 0],
    [UART.lcr, 0x03],
    [UART.iirFcr, 0xc3],
    [UART.mcr, 0x0b],
    [UART.ier, 0x01],
  ] as const;

/** Nothing is sent, then loopback, FIFOs on and empty: what is written is received behind a break. */
const BROKEN_LINE = [
  [UART.lcr, 0x03],
  [UART.mcr, 0x00],
  [UART.iirFcr, 0x07],
  [UART.data, 0x40],
  [UART.mcr, 0x10],
  [UART.lcr, 0x43],
] as const;

/** Reads what interrupts and the state of the line. */
function lineState(twin: PortTwin, seen: Coverage): unknown {
  const iir = readOf(twin.bus, UART.iirFcr, 1);
  const lsr = readOf(twin.bus, UART.lsr, 1);
  seen.hit(`iir ${iir.toString(16)}`);
  seen.hit(`lsr ${lsr.toString(16)}`);
  seen.hit(`irq ${twin.irq.level}`);
  return [iir, lsr];
}

export const uart16550 = onPorts(
  (twin) => {
    const { console, clock, irq } = twin;
    return twin.map(
      new SerialPort({ id: 'uart0', irq, console, clock, log: silentLog }),
      0,
      UART_PORTS,
    );
  },
  (random, seen) => {
    switch (random.below(12)) {
      case 0: {
        const bytes = Array.from({ length: random.between(1, 40) }, () => random.below(256));
        return (twin) => (twin.console.unread < 100 ? twin.console.type(bytes) : undefined);
      }
      case 1: {
        const room = random.pick([0, 0, 1, 5, Number.POSITIVE_INFINITY]);
        return (twin) => twin.console.open(room);
      }
      case 2:
        return advance(random, random.pick([1, 1000, 40_000, 400_000, 4_000_000, SECOND]));
      case 3: {
        const fcr = random.pick([0x01, 0x41, 0xc1, 0x07, 0]);
        return (twin) => twin.bus.write(UART.iirFcr, 1, fcr);
      }
      case 4: {
        const mcr = random.pick([0x0b, 0x0b, 0x08, 0x1b, 0x1f, 0x10, random.below(256)]);
        return (twin) => twin.bus.write(UART.mcr, 1, mcr);
      }
      case 5: {
        const lcr = random.pick([3, 3, 3, 0x83, 0x43, random.below(256)]);
        return (twin) => twin.bus.write(UART.lcr, 1, lcr);
      }
      case 6: {
        const ier = random.pick([15, 15, 1, 2, 4, 8, random.below(256)]);
        return (twin) => twin.bus.write(UART.ier, 1, ier);
      }
      case 7: {
        const count = random.between(1, 20);
        return (twin) => {
          for (let i = 0; i < count; i++) twin.bus.write(UART.data, 1, 0x40 + i);
        };
      }
      case 8: {
        const count = random.between(1, 20);
        return (twin) => Array.from({ length: count }, () => readOf(twin.bus, UART.data, 1));
      }
      case 9: {
        // A few bytes, and then silence: what the character timeout is for.
        if (random.chance(0.5)) {
          const bytes = Array.from({ length: random.between(1, 3) }, () => random.below(256));
          const wait = random.pick([0, 100_000, 1_000_000, 10_000_000]);
          const line = quietLine(random.pick([1, 192]));
          return ({ bus, console, clock }) => {
            for (const [register, value] of line) bus.write(register, 1, value);
            if (console.unread < 100) console.type(bytes);
            clock.advance(wait);
          };
        }
        if (random.chance(0.1)) {
          // More than fits, and none of it read or all.
          const count = random.between(1, 20);
          const reads = random.pick([0, 20]);
          return (twin) => {
            const { bus, console } = twin;
            console.open(0);
            for (const [register, value] of BROKEN_LINE) bus.write(register, 1, value);
            for (let i = 0; i < count; i++) bus.write(UART.data, 1, i);
            for (let i = 0; i < reads; i++) bus.read(UART.data, 1);
            return lineState(twin, seen);
          };
        }
        return (twin) => lineState(twin, seen);
      }
      default:
        return anyAccess(random, busOf, random.below(UART_PORTS));
    }
  },
);

const CLOCK_REGISTERS = Object.values(CMOS_REG);

export const rtcCmos = onPorts(
  (twin) => {
    const { clock, irq } = twin;
    const cmos = cmosContent({ lowMemory: 3 * 2 ** 30, highMemory: 5 * 2 ** 30, cpus: 4 });
    return twin.map(new RtcCmos({ id: 'rtc', irq, clock, cmos }), 0, RTC_PORTS);
  },
  (random, seen) => {
    const set = (register: number, value: number): Act<{ readonly bus: IoBus }> => {
      return ({ bus }) => {
        bus.write(0, 1, register);
        bus.write(1, 1, value);
      };
    };
    switch (random.below(10)) {
      case 0:
        return advance(
          random,
          random.pick([0, 244_000, 61_036, SECOND / 2, SECOND, 86_400 * SECOND]),
        );
      case 1:
        if (random.chance(0.5)) return advance(random, random.below(3 * SECOND));
        // To the tenth of a millisecond before the next second.
        return ({ clock }) => clock.advance(2 * SECOND - 100_000 - (clock.wallNs() % SECOND));
      case 2: {
        const shift = random.pick([-SECOND, SECOND, -3600 * SECOND, 86_400 * SECOND, -START]);
        if (random.chance(0.7)) return () => undefined;
        return (twin) => {
          twin.clock.wallShiftNs = shift;
        };
      }
      case 3: {
        const value = random.pick([0x26, 0x26, 0x21, 0x2f, 0x20, 0x76, 0x00, random.below(256)]);
        return set(CMOS_REG.a, value);
      }
      case 4: {
        const modes = random.pick([0x02, 0x06, 0x00, 0x04, 0x82, random.below(256)]);
        return set(CMOS_REG.b, modes | random.pick([0, 0x70, 0x10, 0x20, 0x40]));
      }
      case 5: {
        const alarm = random.pick([1, 3, 5]);
        return set(alarm, random.pick([0xc0, 0xff, 0, 0x59, 0x12, 0x81, random.below(256)]));
      }
      case 6:
        return (twin) => {
          twin.bus.write(0, 1, CMOS_REG.c);
          const flags = readOf(twin.bus, 1, 1);
          seen.hit(`flags ${flags.toString(16)}`);
          return flags;
        };
      case 7: {
        const register = random.pick(CLOCK_REGISTERS);
        return (twin) => {
          twin.bus.write(0, 1, register);
          const value = readOf(twin.bus, 1, 1);
          if (register === CMOS_REG.a) seen.hit(value & 0x80 ? 'update in progress' : 'no update');
          if (register === CMOS_REG.b) {
            seen.hit(value & 0x80 ? 'held' : 'ticking');
            seen.hit(value & 0x04 ? 'binary' : 'decimal');
            seen.hit(value & 0x02 ? '24 hours' : '12 hours');
          }
          return value;
        };
      }
      case 8:
        return set(
          random.chance(0.5) ? random.pick(CLOCK_REGISTERS) : random.below(128),
          anyValue(random) & 0xff,
        );
      default:
        return anyAccess(random, busOf, random.below(RTC_PORTS));
    }
  },
  (twin, seen) => seen.hit(`irq ${twin.irq.level}`),
);

const KEYBOARD_COMMANDS = [
  ...Object.values(COMMAND),
  COMMAND.readRam + 31,
  COMMAND.writeRam + 31,
  0xfe,
  0xff,
];

export const i8042 = onPorts(
  (twin) => {
    const device = new I8042({ id: 'i8042', onReset: () => twin.calls.push('reset') });
    twin.map(device.data, 0, 1);
    twin.map(device.control, 4, 1);
    twin.map(device.systemControlA, 8, 1);
    return device;
  },
  (random, seen) => {
    switch (random.below(6)) {
      case 0:
      case 1: {
        const command = random.chance(0.8) ? random.pick(KEYBOARD_COMMANDS) : random.below(256);
        return ({ bus }) => bus.write(4, 1, command);
      }
      case 2: {
        const value = random.pick([0, 1, 2, 3, 0xfe, 0xff, random.below(256)]);
        return (twin) => {
          twin.bus.write(0, 1, value);
          const status = readOf(twin.bus, 4, 1);
          seen.hit(`status ${status.toString(16)}`);
          if (twin.calls.includes('reset')) seen.hit('reset line');
          return status;
        };
      }
      case 3:
        return ({ bus }) => {
          const value = readOf(bus, 0, 1);
          if (value === 0x55) seen.hit('self-test');
          return [value, readOf(bus, 4, 1)];
        };
      default:
        return anyAccess(random, busOf, random.pick([0, 4, 8, random.below(10)]));
    }
  },
  ({ bus }, seen) => {
    seen.hit((readOf(bus, 8, 1) & 2) === 0 ? 'A20 closed' : 'A20 open');
  },
);

function acpiPmOf(timerBits: 24 | 32): TwinSubject<PortTwin<AcpiPm>> {
  return onPorts(
    (twin) => {
      const { clock, irq } = twin;
      const onPowerOff = () => twin.calls.push('off');
      const options = { id: 'acpi-pm', irq, clock, log: silentLog, onPowerOff, timerBits };
      return twin.map(new AcpiPm(options), 0, ACPI_PM_PORTS);
    },
    (random, seen) => {
      switch (random.below(9)) {
        case 0:
          return advance(
            random,
            random.pick([0, 279, 1e6, SECOND, 3 * SECOND, 601 * SECOND, 1300 * SECOND]),
          );
        case 1:
          return advance(random, random.below(2 * SECOND));
        case 2:
          return (twin) => twin.device.pressPowerButton();
        case 3: {
          const enable = random.pick([0, 1, 0x100, 0x101, 0xffff]);
          return ({ bus }) => bus.write(PM.pm1Enable, 2, enable);
        }
        case 4: {
          const status = random.pick([1, 0x100, 0xffff, 0]);
          return ({ bus }) => bus.write(PM.pm1Status, 2, status);
        }
        case 5: {
          const control = random.pick([0x2000, 0x2400, 0x1c02, random.below(65_536)]);
          return (twin) => {
            twin.bus.write(PM.pm1Control, 2, control);
            if (twin.calls.length > 0) seen.hit('off');
          };
        }
        case 6:
          return ({ bus }) => readOf(bus, PM.timer, 4);
        default:
          return anyAccess(random, busOf, random.below(ACPI_PM_PORTS));
      }
    },
    ({ bus, irq }, seen) => {
      const status = readOf(bus, PM.pm1Status, 2);
      const timer = readOf(bus, PM.timer, 4);
      assert(timerBits === 32 || timer < 2 ** 24, 'the timer has its bits');
      seen.hit(`status ${status.toString(16)} sci ${irq.level}`);
      seen.hit(timer >= 2 ** (timerBits - 1) ? 'timer high' : 'timer low');
    },
  );
}

export const acpiPm24 = acpiPmOf(24);
export const acpiPm32 = acpiPmOf(32);

/** The one register, alone; on the bus that has it in its place, the PCI fuzzer does it. */
export const resetControl = onPorts(
  (twin) => {
    const onReset = (kind: string) => twin.calls.push(kind);
    return twin.map(new ResetControl({ id: 'reset-control', onReset }), 1, 1);
  },
  (random, seen) => {
    const value = random.pick([0, 2, 4, 6, 0x0e, random.below(256)]);
    if (random.chance(0.3)) return anyAccess(random, busOf, random.below(4));
    return (twin) => {
      twin.bus.write(1, 1, value);
      for (const kind of twin.calls) seen.hit(`${String(kind)} reset`);
      return readOf(twin.bus, 1, 1);
    };
  },
  ({ bus }, seen) => seen.hit(`value ${readOf(bus, 1, 1)}`),
);

function debugExitOf(Kind: typeof DebugExit): TwinSubject<PortTwin<DebugExit>> {
  return onPorts(
    (twin) => {
      const onExit = (status: number) => {
        assert(status % 2 === 1 && status > 0 && status < 256, `exit status ${status}`);
        twin.calls.push(status);
      };
      return twin.map(new Kind({ id: 'debug-exit', onExit }), 0, DEBUG_EXIT_PORTS);
    },
    (random, seen) => {
      const act = anyAccess(random, busOf, random.below(DEBUG_EXIT_PORTS));
      return (twin) => {
        const saw = act(twin);
        for (const status of twin.calls) seen.hit(`exit ${String(status)}`);
        return saw;
      };
    },
  );
}

export const debugExit = debugExitOf(DebugExit);

export const debugExitWithEvenStatus = debugExitOf(
  class extends DebugExit {
    constructor({ id, onExit }: DebugExitOptions) {
      super({ id, onExit: (status) => onExit(status === 0xfd ? 0xfe : status) });
    }
  },
);

function debugConsoleOf(Kind: typeof DebugConsole): TwinSubject<PortTwin<DebugConsole>> {
  return onPorts(
    (twin) => {
      const onByte = (byte: number) => {
        assert(byte >= 0 && byte < 256, `byte ${byte}`);
        twin.calls.push(byte);
      };
      return twin.map(new Kind({ id: 'debug-console', onByte }), 0, 1);
    },
    (random, seen) => {
      const act = anyAccess(random, busOf, random.below(2));
      return (twin) => {
        const saw = act(twin);
        for (const byte of twin.calls) seen.hit(`byte ${String(byte)}`);
        return saw;
      };
    },
  );
}

export const debugConsole = debugConsoleOf(DebugConsole);

export const debugConsoleThatThrows = debugConsoleOf(
  class extends DebugConsole {
    #column = 0;

    override write(offset: number, size: AccessSize, value: number): void {
      if (++this.#column > 80) throw new RangeError('the line is full');
      if (value === 10) this.#column = 0;
      super.write(offset, size, value);
    }
  },
);
