/**
 * A PC serial port: the {@link Uart16550} chip on eight I/O ports, an ISA interrupt and a console backend.
 * Back-pressure both ways: the guest sees the transmitter busy while the backend refuses, and input stays in the
 * backend until the receive FIFO has room. The board makes one for each serial option.
 */
import { assert } from '../../src/base/assert.ts';
import type { Clock } from '../../src/base/clock.ts';
import { GuestComplaints, type Logger } from '../../src/base/log.ts';
import type { Device } from '../../src/bus/device.ts';
import type { IrqLine } from '../../src/bus/interrupts.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import type { ConsoleBackend } from '../../src/console/backend.ts';
import { REG } from './spec.ts';
import { type UartState, uartSchema } from './state.ts';
import { Uart16550 } from './uart16550.ts';

/** What a {@link SerialPort} is made of. */
export interface SerialPortOptions {
  readonly id: string;
  /** ISA interrupt 4 or 3. */
  readonly irq: IrqLine;
  readonly console: ConsoleBackend;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A serial port; map it at its base port with length `UART_PORTS`. */
export class SerialPort implements Device<UartState>, IoRegion {
  readonly id: string;
  readonly name: string;
  readonly schema = uartSchema;
  readonly maxAccess: AccessSize = 1;
  readonly #chip: Uart16550;
  readonly #console: ConsoleBackend;
  #running = false;
  /** Of the paused chip's character timeout. */
  #timeoutInNs: number | undefined;

  constructor({ id, irq, console, clock, log }: SerialPortOptions) {
    this.id = id;
    this.name = id;
    this.#console = console;
    const complaints = new GuestComplaints(log, clock, id);
    this.#chip = new Uart16550(clock, {
      interrupt: (level) => irq.set(level),
      transmit: (byte) => console.write(byte),
      transmitOverrun: () => complaints.warn('wrote to a busy transmitter; the byte is lost'),
    });
    console.setHandler({
      readable: () => {
        if (this.#running) this.#fill();
      },
      writable: () => {
        if (this.#running) this.#chip.lineReady();
      },
    });
  }

  read(offset: number): number {
    const value = this.#chip.read(offset);
    if (offset === REG.data) this.#fill();
    return value;
  }

  write(offset: number, _size: AccessSize, value: number): void {
    this.#chip.write(offset, value);
    // A larger FIFO, an emptied one, or the end of loopback make room.
    if (offset === REG.iirFcr || offset === REG.mcr) this.#fill();
  }

  /** The FIFOs lose what they hold; bytes in the backend stay. */
  reset(): void {
    this.#timeoutInNs = undefined;
    this.#chip.reset();
    if (this.#running) this.#fill();
  }

  pause(): void {
    if (!this.#running) return;
    this.#running = false;
    this.#timeoutInNs = this.#chip.pause();
  }

  resume(): void {
    if (this.#running) return;
    this.#running = true;
    this.#chip.resume(this.#timeoutInNs);
    this.#timeoutInNs = undefined;
    this.#fill();
  }

  save(): UartState {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    return this.#chip.save(this.#timeoutInNs);
  }

  load(state: UartState): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
    this.#chip.load(state);
    this.#timeoutInNs = state.timeoutInNs;
  }

  /** Moves input into the chip as far as it has room. */
  #fill(): void {
    while (this.#chip.room > 0) {
      const byte = this.#console.read();
      if (byte < 0) return;
      this.#chip.receive(byte);
    }
  }
}
