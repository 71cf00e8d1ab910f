/**
 * The keyboard controller of a PC, with nothing plugged in: the reset line, the A20 bit, the self-test, and clean
 * answers to who looks for a keyboard. A20 is a bit to read back; memory is never masked. Leaves out: keyboard, mouse,
 * their interrupts.
 */
import { assert } from '../../src/base/assert.ts';
import type { Device } from '../../src/bus/device.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import {
  COMMAND,
  COMMAND_BYTE,
  NO_ANSWER,
  NO_DEVICE,
  OUTPUT_PORT,
  PORT_A,
  RAM_BYTES,
  SELF_TEST_PASSED,
  STATUS,
} from './spec.ts';
import { type I8042State, i8042Schema } from './state.ts';

/** What an {@link I8042} is made of. */
export interface I8042Options {
  readonly id: string;
  /** Called inside the guest's write that pulses the reset line. */
  readonly onReset: () => void;
}

/** The controller; map its three regions at the ports of `spec.ts`, one byte each. */
export class I8042 implements Device<I8042State> {
  readonly id: string;
  readonly schema = i8042Schema;
  /** Port 0x60. */
  readonly data: IoRegion;
  /** Port 0x64. */
  readonly control: IoRegion;
  /** Port 0x92. */
  readonly systemControlA: IoRegion;
  readonly #onReset: () => void;

  readonly #ram = new Uint8Array(RAM_BYTES);
  #outputPort = 0;
  #outputFull = false;
  #output = 0;
  #timedOut = false;
  #commandLast = false;
  #pending = 0;
  #running = false;

  constructor({ id, onReset }: I8042Options) {
    this.id = id;
    this.#onReset = onReset;
    this.data = region(`${id} data`, {
      read: () => this.#readData(),
      write: (value) => this.#writeData(value),
    });
    this.control = region(`${id} control`, {
      read: () => this.#status(),
      write: (value) => this.#command(value),
    });
    this.systemControlA = region(`${id} port A`, {
      read: () => ((this.#outputPort & OUTPUT_PORT.a20) !== 0 ? PORT_A.a20 : 0),
      write: (value) => this.#writePortA(value),
    });
    this.reset();
  }

  reset(): void {
    this.#ram.fill(0);
    this.#ram[0] = COMMAND_BYTE.keyboardOff | COMMAND_BYTE.auxOff;
    this.#outputPort = OUTPUT_PORT.initial;
    this.#outputFull = false;
    this.#output = 0;
    this.#timedOut = false;
    this.#commandLast = false;
    this.#pending = 0;
  }

  pause(): void {
    this.#running = false;
  }

  resume(): void {
    this.#running = true;
  }

  save(): I8042State {
    assert(!this.#running, `${this.id}: state is saved only while paused`);
    return {
      ram: this.#ram.slice(),
      outputPort: this.#outputPort,
      outputFull: this.#outputFull,
      output: this.#output,
      timedOut: this.#timedOut,
      commandLast: this.#commandLast,
      pending: this.#pending,
    };
  }

  load(state: I8042State): void {
    assert(!this.#running, `${this.id}: state is loaded only while paused`);
    requireState(state.ram.length === RAM_BYTES, 'i8042: memory');
    requireState((state.outputPort & OUTPUT_PORT.notReset) !== 0, 'i8042: in reset');
    requireState(state.pending === 0 || takesData(state.pending), 'i8042: pending command');
    requireState(state.outputFull || !state.timedOut, 'i8042: timeout without a byte');
    this.#ram.set(state.ram);
    this.#outputPort = state.outputPort;
    this.#outputFull = state.outputFull;
    this.#output = state.output;
    this.#timedOut = state.timedOut;
    this.#commandLast = state.commandLast;
    this.#pending = state.pending;
  }

  #status(): number {
    return (
      STATUS.unlocked |
      (this.#outputFull ? STATUS.outputFull : 0) |
      (this.#ram[0]! & COMMAND_BYTE.system) |
      (this.#commandLast ? STATUS.command : 0) |
      (this.#timedOut ? STATUS.timeout : 0)
    );
  }

  #readData(): number {
    this.#outputFull = false;
    this.#timedOut = false;
    return this.#output;
  }

  #answer(value: number): void {
    this.#output = value;
    this.#outputFull = true;
    this.#timedOut = false;
  }

  #writeData(value: number): void {
    const command = this.#pending;
    this.#pending = 0;
    this.#commandLast = false;
    if (command >= COMMAND.writeRam && command < COMMAND.writeRam + RAM_BYTES) {
      this.#ram[command - COMMAND.writeRam] = value;
    } else if (command === COMMAND.writeOutputPort) {
      this.#writeOutputPort(value);
    } else if (command === COMMAND.writeKeyboardOutput || command === COMMAND.writeAuxOutput) {
      this.#answer(value);
    } else {
      // To the keyboard or the mouse: nobody is there.
      this.#answer(NO_ANSWER);
      this.#timedOut = true;
    }
  }

  #command(command: number): void {
    this.#commandLast = true;
    this.#pending = takesData(command) ? command : 0;
    if (command >= COMMAND.readRam && command < COMMAND.readRam + RAM_BYTES) {
      this.#answer(this.#ram[command - COMMAND.readRam]!);
      return;
    }
    if (command >= COMMAND.pulse) {
      if ((command & OUTPUT_PORT.notReset) === 0) this.#onReset();
      return;
    }
    switch (command) {
      case COMMAND.selfTest:
        this.#ram[0]! |= COMMAND_BYTE.system;
        this.#answer(SELF_TEST_PASSED);
        break;
      case COMMAND.testKeyboard:
      case COMMAND.testAux:
        this.#answer(NO_DEVICE);
        break;
      case COMMAND.disableKeyboard:
        this.#ram[0]! |= COMMAND_BYTE.keyboardOff;
        break;
      case COMMAND.enableKeyboard:
        this.#ram[0]! &= ~COMMAND_BYTE.keyboardOff;
        break;
      case COMMAND.disableAux:
        this.#ram[0]! |= COMMAND_BYTE.auxOff;
        break;
      case COMMAND.enableAux:
        this.#ram[0]! &= ~COMMAND_BYTE.auxOff;
        break;
      case COMMAND.readInputPort:
        // Keyboard not locked (bit 7).
        this.#answer(0x80);
        break;
      case COMMAND.readOutputPort:
        this.#answer(this.#outputPort);
        break;
      case COMMAND.enableA20:
        this.#outputPort |= OUTPUT_PORT.a20;
        break;
      case COMMAND.disableA20:
        this.#outputPort &= ~OUTPUT_PORT.a20;
        break;
      default:
        break;
    }
  }

  #writeOutputPort(value: number): void {
    this.#outputPort = value | OUTPUT_PORT.notReset;
    if ((value & OUTPUT_PORT.notReset) === 0) this.#onReset();
  }

  #writePortA(value: number): void {
    this.#outputPort =
      (this.#outputPort & ~OUTPUT_PORT.a20) | ((value & PORT_A.a20) !== 0 ? OUTPUT_PORT.a20 : 0);
    if ((value & PORT_A.reset) !== 0) this.#onReset();
  }
}

/** Whether the next byte at the data port belongs to `command`. */
function takesData(command: number): boolean {
  return (
    (command >= COMMAND.writeRam && command < COMMAND.writeRam + RAM_BYTES) ||
    (command >= COMMAND.writeOutputPort && command <= COMMAND.writeAux)
  );
}

function region(
  name: string,
  access: { read(): number; write(value: number): void },
): IoRegion & { readonly maxAccess: AccessSize } {
  return {
    name,
    maxAccess: 1,
    read: () => access.read(),
    write: (_offset, _size, value) => access.write(value),
  };
}
