/**
 * The fixed devices of a PC that are on every board: clock and CMOS memory, keyboard controller, power management, reset
 * control, serial lines, and the debug-exit port. They differ between boards only in what they are wired to.
 */
import { AcpiPm } from '../../devices/acpi-pm/acpi-pm.ts';
import { ACPI_PM_PORTS } from '../../devices/acpi-pm/spec.ts';
import { DebugConsole } from '../../devices/debug-console/debug-console.ts';
import { DEBUG_CONSOLE_PORT } from '../../devices/debug-console/spec.ts';
import { DebugExit } from '../../devices/debug-exit/debug-exit.ts';
import { DEBUG_EXIT_PORTS } from '../../devices/debug-exit/spec.ts';
import { I8042 } from '../../devices/i8042/i8042.ts';
import {
  I8042_CONTROL_PORT,
  I8042_DATA_PORT,
  SYSTEM_CONTROL_A_PORT,
} from '../../devices/i8042/spec.ts';
import { ResetControl } from '../../devices/reset-control/reset-control.ts';
import { cmosContent } from '../../devices/rtc-cmos/cmos-content.ts';
import { RtcCmos } from '../../devices/rtc-cmos/rtc-cmos.ts';
import { BOOT_DEVICE, RTC_PORTS } from '../../devices/rtc-cmos/spec.ts';
import { SerialPort } from '../../devices/uart16550/serial-port.ts';
import { UART_PORTS } from '../../devices/uart16550/spec.ts';
import { assert } from '../base/assert.ts';
import type { Device } from '../bus/device.ts';
import type { IoBus } from '../bus/io-bus.ts';
import type { ConsoleBackend } from '../console/backend.ts';
import type { BoardHost } from './board-host.ts';
import type { BootSource } from './config.ts';
import { DebugLog } from './debug-log.ts';
import type { IrqLines } from './irq-lines.ts';
import { HIGH_RAM_BASE, IRQ, PORT, ramPieces } from './layout.ts';

/** The platform devices of one board. */
export interface Platform {
  /** In the order in which state is saved. */
  readonly devices: readonly Device[];
  readonly acpiPm: AcpiPm;
  readonly resetControl: ResetControl;
}

/** Makes the devices and maps them on `ports`; the reset control's port belongs to PCI, which maps it. */
export function addPlatform(
  machine: BoardHost,
  ports: IoBus,
  irqs: IrqLines,
  serial: readonly ConsoleBackend[],
): Platform {
  const { clock, log, config } = machine;
  const devices: Device[] = [];
  assert(serial.length <= PORT.serial.length, 'at most four serial lines');
  for (const [i, console] of serial.entries()) {
    const irq = irqs.sharedLine(IRQ.serial[i]!);
    const uart = new SerialPort({ id: `uart${i}`, irq, console, clock, log });
    ports.map(PORT.serial[i]!, UART_PORTS, uart);
    devices.push(uart);
  }

  let lowMemory = 0;
  let highMemory = 0;
  for (const { base, size } of ramPieces(config.memoryBytes)) {
    if (base < HIGH_RAM_BASE) lowMemory += size;
    else highMemory += size;
  }
  const rtc = new RtcCmos({
    id: 'rtc-cmos',
    irq: irqs.line(IRQ.rtc),
    clock,
    cmos: cmosContent({
      lowMemory,
      highMemory,
      cpus: config.cpus,
      bootOrder: cmosBootOrder(config.boot),
    }),
  });
  ports.map(PORT.rtc, RTC_PORTS, rtc);

  const keyboard = new I8042({
    id: 'i8042',
    onReset: () => machine.requestReset('keyboard controller'),
  });
  ports.map(I8042_DATA_PORT, 1, keyboard.data);
  ports.map(I8042_CONTROL_PORT, 1, keyboard.control);
  ports.map(SYSTEM_CONTROL_A_PORT, 1, keyboard.systemControlA);

  const acpiPm = new AcpiPm({
    id: 'acpi-pm',
    irq: irqs.line(IRQ.sci),
    clock,
    log,
    onPowerOff: () => machine.requestEnd({ kind: 'power-off' }),
  });
  ports.map(PORT.acpiPm, ACPI_PM_PORTS, acpiPm);

  const resetControl = new ResetControl({
    id: 'reset-control',
    onReset: () => machine.requestReset('reset control register'),
  });

  const debugExit = new DebugExit({
    id: 'debug-exit',
    onExit: (status) => machine.requestEnd({ kind: 'debug-exit', status }),
  });
  ports.map(PORT.debugExit, DEBUG_EXIT_PORTS, debugExit);

  devices.push(rtc, keyboard, acpiPm, resetControl, debugExit);
  if (config.boot.kind === 'firmware') {
    const lines = new DebugLog(clock, log);
    const debug = new DebugConsole({ id: 'debug-console', onByte: (byte) => lines.byte(byte) });
    ports.map(DEBUG_CONSOLE_PORT, 1, debug);
    devices.push(debug);
  }
  return { devices, acpiPm, resetControl };
}

/** Firmware that knows no boot order file reads this one. */
function cmosBootOrder(boot: BootSource): number[] {
  if (boot.kind !== 'firmware') return [];
  return boot.order.map((kind) => (kind === 'disk' ? BOOT_DEVICE.disk : BOOT_DEVICE.network));
}
