/**
 * Gives every BAR an address, as firmware would: for kernels that are booted directly. Firmware that runs later
 * assigns its own. The board calls it after each reset of a machine without firmware.
 */
import { alignUp } from '../base/bits.ts';
import { VmmError } from '../base/error.ts';
import type { Bar } from './bar.ts';
import type { PciBus } from './bus.ts';
import type { PciFunction } from './function.ts';
import { PCI_COMMAND, PCI_REG } from './spec.ts';

/** A free range of addresses. */
export interface AddressWindow {
  readonly base: number;
  readonly sizeBytes: number;
}

/** Where BARs may go. */
export interface BarWindows {
  /** Memory below 4 GiB. */
  readonly mmio32: AddressWindow;
  /** Memory above 4 GiB for 64-bit BARs; `mmio32` serves them when absent or full. */
  readonly mmio64?: AddressWindow;
  readonly ports: AddressWindow;
}

class Cursor {
  readonly window: AddressWindow;
  #next: number;

  constructor(window: AddressWindow) {
    this.window = window;
    this.#next = window.base;
  }

  take(sizeBytes: number): number | undefined {
    const base = alignUp(this.#next, sizeBytes);
    if (base + sizeBytes > this.window.base + this.window.sizeBytes) return undefined;
    this.#next = base + sizeBytes;
    return base;
  }
}

/**
 * Programs all BARs of all functions (largest first, expansion ROMs excepted) and turns memory and I/O decoding
 * on; bus mastering stays off, the driver's business.
 * @throws VmmError `PCI_WINDOW_FULL`
 */
export function assignBars(bus: PciBus, windows: BarWindows): void {
  const low = new Cursor(windows.mmio32);
  const high = windows.mmio64 === undefined ? undefined : new Cursor(windows.mmio64);
  const ports = new Cursor(windows.ports);
  const wanted: { fn: PciFunction; bar: Bar }[] = [];
  for (const fn of bus.functions()) {
    for (const bar of fn.bars) if (!bar.isRom) wanted.push({ fn, bar });
  }
  wanted.sort((a, b) => b.bar.sizeBytes - a.bar.sizeBytes);
  for (const { fn, bar } of wanted) {
    const base =
      bar.kind === 'io'
        ? ports.take(bar.sizeBytes)
        : ((bar.kind === 'mem64' ? high?.take(bar.sizeBytes) : undefined) ??
          low.take(bar.sizeBytes));
    if (base === undefined) {
      throw new VmmError(
        'PCI_WINDOW_FULL',
        `no address is left for BAR ${bar.index} (${bar.sizeBytes} bytes) of ${fn.name}`,
        { hint: 'Remove a device.' },
      );
    }
    fn.configWrite(bar.register, 4, base % 2 ** 32);
    if (bar.kind === 'mem64') fn.configWrite(bar.register + 4, 4, Math.floor(base / 2 ** 32));
  }
  for (const fn of bus.functions()) {
    const decode = fn.bars.reduce(
      (bits, bar) => bits | (bar.kind === 'io' ? PCI_COMMAND.io : PCI_COMMAND.memory),
      0,
    );
    fn.configWrite(PCI_REG.command, 2, fn.command | decode);
  }
}
