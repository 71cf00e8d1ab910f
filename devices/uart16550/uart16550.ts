/**
 * The 16550A chip: registers, FIFOs, interrupt logic and loopback. It knows no bus, no interrupt controller and no
 * backend, only {@link UartOutside}; `serial-port.ts` wires it up.
 *
 * Transmission takes no time: a byte leaves as soon as the outside takes it, and THRE stays clear exactly as long
 * as it does not. Leaves out: parity, word length and baud rate as seen on the line (bytes pass as they are; the
 * rate only sets the character timeout), DMA mode.
 */
import type { Clock, Timer } from '../../src/base/clock.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import {
  CONNECTED,
  FCR,
  FIFO_BYTES,
  IER,
  IIR,
  INPUT_CLOCK_HZ,
  LCR,
  LSR,
  MCR,
  MSR,
  REG,
  RESET_DIVISOR,
  TIMEOUT_CHARACTERS,
  TRIGGER_LEVELS,
} from './spec.ts';
import type { UartState } from './state.ts';

/** The chip's pins. */
export interface UartOutside {
  /** The interrupt output, behind the OUT2 gate. Called on changes only. */
  interrupt(level: boolean): void;
  /** Offers a byte to the line; false when it cannot be taken now ({@link Uart16550.lineReady} tells when). */
  transmit(byte: number): boolean;
  /** The guest wrote a byte where there was no room. */
  transmitOverrun(): void;
}

export class Uart16550 {
  readonly #outside: UartOutside;
  readonly #clock: Clock;
  readonly #timeout: Timer;

  #ier = 0;
  #fcr = 0;
  #lcr = 0;
  #mcr = 0;
  #msr = 0;
  #scratch = 0;
  #divisorLow = 0;
  #divisorHigh = 0;
  #lineErrors = 0;
  readonly #rx = new Uint8Array(FIFO_BYTES);
  readonly #rxErrors = new Uint8Array(FIFO_BYTES);
  #rxLength = 0;
  readonly #tx = new Uint8Array(FIFO_BYTES);
  #txLength = 0;
  #transmitEmptyPending = false;
  #timedOut = false;

  #level = false;

  constructor(clock: Clock, outside: UartOutside) {
    this.#clock = clock;
    this.#outside = outside;
    this.#timeout = clock.timer(() => {
      this.#timedOut = true;
      this.#update();
    });
    this.#powerOn();
  }

  /** Master reset (8.0, table I). */
  reset(): void {
    this.#powerOn();
    this.#update();
  }

  #powerOn(): void {
    this.#timeout.cancel();
    this.#ier = 0;
    this.#fcr = 0;
    this.#lcr = 0;
    this.#mcr = 0;
    this.#msr = CONNECTED;
    this.#scratch = 0;
    this.#divisorLow = RESET_DIVISOR;
    this.#divisorHigh = 0;
    this.#lineErrors = 0;
    this.#rxLength = 0;
    this.#txLength = 0;
    this.#transmitEmptyPending = false;
    this.#timedOut = false;
  }

  /** How many received bytes fit now: none in loopback, where the line is not listened to (8.8). */
  get room(): number {
    if ((this.#mcr & MCR.loopback) !== 0) return 0;
    return this.#capacity() - this.#rxLength;
  }

  /** A byte arrives from the line; where it does not fit, an overrun is noted (8.4). */
  receive(byte: number): void {
    this.#receive(byte, 0);
    this.#update();
  }

  /** A break arrives from the line: one zero byte, marked (8.4). */
  receiveBreak(): void {
    this.#receive(0, LSR.break);
    this.#update();
  }

  /** The modem inputs change; `inputs` are bits 7:4 of MSR. */
  setModemInputs(inputs: number): void {
    if ((this.#mcr & MCR.loopback) !== 0) return;
    this.#modemInputs(inputs);
    this.#update();
  }

  /** The line may take bytes again: sends what waits. */
  lineReady(): void {
    this.#drain();
    this.#update();
  }

  read(offset: number): number {
    const value = this.#read(offset);
    this.#update();
    return value;
  }

  write(offset: number, value: number): void {
    this.#write(offset, value);
    this.#update();
  }

  /** Stops the character timeout and tells how long it still had to go. */
  pause(): number | undefined {
    const left = this.#timeoutLeft();
    this.#timeout.cancel();
    return left;
  }

  /** Goes on: restarts the timeout where it stopped, drives the interrupt output, sends what waits. */
  resume(timeoutInNs: number | undefined): void {
    if (timeoutInNs !== undefined) this.#timeout.arm(this.#clock.nowNs() + timeoutInNs);
    this.#drain();
    this.#level = this.#wanted();
    this.#outside.interrupt(this.#level);
  }

  save(timeoutInNs: number | undefined): UartState {
    return {
      ier: this.#ier,
      fcr: this.#fcr,
      lcr: this.#lcr,
      mcr: this.#mcr,
      msr: this.#msr,
      scratch: this.#scratch,
      divisorLow: this.#divisorLow,
      divisorHigh: this.#divisorHigh,
      lineErrors: this.#lineErrors,
      received: this.#rx.slice(0, this.#rxLength),
      receivedErrors: this.#rxErrors.slice(0, this.#rxLength),
      transmitting: this.#tx.slice(0, this.#txLength),
      transmitEmptyPending: this.#transmitEmptyPending,
      timedOut: this.#timedOut,
      timeoutInNs,
    };
  }

  /** Takes over `state`, all but its `timeoutInNs`, which goes to {@link resume}. */
  load(state: UartState): void {
    checkState(state);
    this.#timeout.cancel();
    this.#ier = state.ier;
    this.#fcr = state.fcr;
    this.#lcr = state.lcr;
    this.#mcr = state.mcr;
    this.#msr = state.msr;
    this.#scratch = state.scratch;
    this.#divisorLow = state.divisorLow;
    this.#divisorHigh = state.divisorHigh;
    this.#lineErrors = state.lineErrors;
    this.#rx.set(state.received);
    this.#rxErrors.set(state.receivedErrors);
    this.#rxLength = state.received.length;
    this.#tx.set(state.transmitting);
    this.#txLength = state.transmitting.length;
    this.#transmitEmptyPending = state.transmitEmptyPending;
    this.#timedOut = state.timedOut;
  }

  #read(offset: number): number {
    switch (offset) {
      case REG.data:
        return this.#divisorLatch() ? this.#divisorLow : this.#readReceived();
      case REG.ier:
        return this.#divisorLatch() ? this.#divisorHigh : this.#ier;
      case REG.iirFcr: {
        const cause = this.#cause();
        if (cause === IIR.transmitEmpty) this.#transmitEmptyPending = false;
        return cause | (this.#fifos() ? IIR.fifos : 0);
      }
      case REG.lcr:
        return this.#lcr;
      case REG.mcr:
        return this.#mcr;
      case REG.lsr: {
        const value = this.#lineStatus();
        this.#lineErrors = 0;
        if (this.#rxLength > 0) this.#rxErrors[0] = 0;
        return value;
      }
      case REG.msr: {
        const value = this.#msr;
        this.#msr &= ~MSR.deltas;
        return value;
      }
      default:
        return this.#scratch;
    }
  }

  #write(offset: number, value: number): void {
    switch (offset) {
      case REG.data:
        if (this.#divisorLatch()) this.#divisorLow = value;
        else this.#send(value);
        break;
      case REG.ier:
        if (this.#divisorLatch()) this.#divisorHigh = value;
        else this.#enableInterrupts(value & IER.mask);
        break;
      case REG.iirFcr:
        this.#controlFifos(value);
        break;
      case REG.lcr: {
        const breakBegins = (value & ~this.#lcr & LCR.break) !== 0;
        this.#lcr = value;
        if (breakBegins && (this.#mcr & MCR.loopback) !== 0) this.#receive(0, LSR.break);
        break;
      }
      case REG.mcr:
        this.#mcr = value & MCR.mask;
        this.#modemInputs((this.#mcr & MCR.loopback) !== 0 ? looped(this.#mcr) : CONNECTED);
        break;
      case REG.scratch:
        this.#scratch = value;
        break;
      default:
        // LSR and MSR are for the factory to write (8.4, 8.9).
        break;
    }
  }

  #divisorLatch(): boolean {
    return (this.#lcr & LCR.divisorLatch) !== 0;
  }

  #fifos(): boolean {
    return (this.#fcr & FCR.enable) !== 0;
  }

  #capacity(): number {
    return this.#fifos() ? FIFO_BYTES : 1;
  }

  #trigger(): number {
    return this.#fifos() ? TRIGGER_LEVELS[this.#fcr >> 6]! : 1;
  }

  #lineStatus(): number {
    let value = this.#lineErrors;
    if (this.#rxLength > 0) value |= LSR.dataReady;
    if (this.#txLength === 0) value |= LSR.transmitEmpty | LSR.transmitterIdle;
    if (this.#fifos()) {
      for (let i = 0; i < this.#rxLength; i++) if (this.#rxErrors[i] !== 0) value |= LSR.fifoError;
    }
    return value;
  }

  #readReceived(): number {
    if (this.#rxLength === 0) return 0;
    const byte = this.#rx[0]!;
    this.#rx.copyWithin(0, 1, this.#rxLength);
    this.#rxErrors.copyWithin(0, 1, this.#rxLength);
    this.#rxLength--;
    // Errors show when their byte reaches the top (8.4).
    if (this.#rxLength > 0) this.#lineErrors |= this.#rxErrors[0]!;
    this.#timedOut = false;
    this.#armTimeout();
    return byte;
  }

  #receive(byte: number, errors: number): void {
    const full = this.#rxLength >= this.#capacity();
    if (full) {
      this.#lineErrors |= LSR.overrun;
      // FIFO: the shift register is overwritten, the FIFO stays. Without: the byte in the buffer is lost (8.4).
      if (this.#fifos()) return;
      this.#rxLength = 0;
    }
    this.#rx[this.#rxLength] = byte;
    this.#rxErrors[this.#rxLength] = errors;
    if (this.#rxLength === 0) this.#lineErrors |= errors;
    this.#rxLength++;
    this.#armTimeout();
  }

  /** (Re)starts the silence after which waiting bytes are announced; none while they are announced anyway. */
  #armTimeout(): void {
    const waits = this.#fifos() && this.#rxLength > 0 && this.#rxLength < this.#trigger();
    if (waits && !this.#timedOut) {
      this.#timeout.arm(this.#clock.nowNs() + TIMEOUT_CHARACTERS * this.#characterNs());
    } else {
      this.#timeout.cancel();
    }
  }

  #timeoutLeft(): number | undefined {
    const { deadlineNs } = this.#timeout;
    if (deadlineNs === undefined) return undefined;
    // A clock that runs for long is no longer exact to the nanosecond.
    const left = Math.round(deadlineNs - this.#clock.nowNs());
    return Math.min(Math.max(0, left), LONGEST_TIMEOUT_NS);
  }

  #characterNs(): number {
    const divisor = this.#divisorHigh * 256 + this.#divisorLow || 0x1_0000;
    const bits =
      1 +
      (5 + (this.#lcr & LCR.wordLength)) +
      ((this.#lcr & LCR.parity) !== 0 ? 1 : 0) +
      ((this.#lcr & LCR.twoStops) !== 0 ? 2 : 1);
    return characterNs(bits, divisor);
  }

  #send(byte: number): void {
    this.#transmitEmptyPending = false;
    // The output must fall between two transmitter-empty events: the PC's interrupt input counts edges.
    this.#update();
    if ((this.#mcr & MCR.loopback) !== 0) {
      this.#receive(byte, 0);
      this.#transmitEmptyPending = this.#txLength === 0;
      return;
    }
    if (this.#txLength >= this.#capacity()) {
      this.#outside.transmitOverrun();
      return;
    }
    this.#tx[this.#txLength++] = byte;
    this.#drain();
  }

  #drain(): void {
    let sent = 0;
    while (sent < this.#txLength && this.#outside.transmit(this.#tx[sent]!)) sent++;
    if (sent === 0) return;
    this.#tx.copyWithin(0, sent, this.#txLength);
    this.#txLength -= sent;
    if (this.#txLength === 0) this.#transmitEmptyPending = true;
  }

  #enableInterrupts(value: number): void {
    const changed = value ^ this.#ier;
    this.#ier = value;
    if ((changed & IER.transmitEmpty) !== 0) {
      // Enabling it while the holding register is empty raises it at once; drivers count on that (8.7).
      this.#transmitEmptyPending = (value & IER.transmitEmpty) !== 0 && this.#txLength === 0;
    }
  }

  #controlFifos(value: number): void {
    const enable = (value & FCR.enable) !== 0;
    const toggled = enable !== this.#fifos();
    this.#fcr = enable ? value & FCR.kept : 0;
    if (toggled || (enable && (value & FCR.resetReceive) !== 0)) {
      this.#rxLength = 0;
      this.#timedOut = false;
    }
    if (toggled || (enable && (value & FCR.resetTransmit) !== 0)) {
      // An emptied transmitter announces itself, as QEMU's does too, even when it was empty before.
      this.#txLength = 0;
      this.#transmitEmptyPending = true;
    }
    this.#armTimeout();
  }

  #modemInputs(inputs: number): void {
    const changed = inputs ^ this.#msr;
    let delta = this.#msr & MSR.deltas;
    if ((changed & MSR.cts) !== 0) delta |= MSR.deltaCts;
    if ((changed & MSR.dsr) !== 0) delta |= MSR.deltaDsr;
    if ((changed & ~inputs & MSR.ri) !== 0) delta |= MSR.trailingRi;
    if ((changed & MSR.dcd) !== 0) delta |= MSR.deltaDcd;
    this.#msr = (inputs & ~MSR.deltas) | delta;
  }

  /** What IIR shows: the pending interrupt of the highest priority (8.6, table IV). */
  #cause(): number {
    const ier = this.#ier;
    if ((ier & IER.lineStatus) !== 0 && (this.#lineErrors & LSR.errors) !== 0) {
      return IIR.lineStatus;
    }
    if ((ier & IER.received) !== 0) {
      if (this.#rxLength >= this.#trigger()) return IIR.received;
      if (this.#timedOut) return IIR.timeout;
    }
    if ((ier & IER.transmitEmpty) !== 0 && this.#transmitEmptyPending) return IIR.transmitEmpty;
    if ((ier & IER.modemStatus) !== 0 && (this.#msr & MSR.deltas) !== 0) return IIR.modemStatus;
    return IIR.none;
  }

  /** The interrupt output; in loopback OUT2 is inactive at its pin (8.8), which closes the PC's gate. */
  #wanted(): boolean {
    return (this.#mcr & (MCR.out2 | MCR.loopback)) === MCR.out2 && this.#cause() !== IIR.none;
  }

  #update(): void {
    const level = this.#wanted();
    if (level === this.#level) return;
    this.#level = level;
    this.#outside.interrupt(level);
  }
}

/** Time of one character on the line, rounded. */
function characterNs(bits: number, divisor: number): number {
  return Math.round((bits * divisor * 16 * 1e9) / INPUT_CLOCK_HZ);
}

/** The longest character timeout: of characters of 12 bits with the largest divisor. */
const LONGEST_TIMEOUT_NS = TIMEOUT_CHARACTERS * characterNs(12, 0x1_0000);

/** Loopback connects the modem outputs to the inputs (8.8). */
function looped(mcr: number): number {
  return (
    ((mcr & MCR.rts) !== 0 ? MSR.cts : 0) |
    ((mcr & MCR.dtr) !== 0 ? MSR.dsr : 0) |
    ((mcr & MCR.out1) !== 0 ? MSR.ri : 0) |
    ((mcr & MCR.out2) !== 0 ? MSR.dcd : 0)
  );
}

function checkState(state: UartState): void {
  const fifos = (state.fcr & FCR.enable) !== 0;
  const capacity = fifos ? FIFO_BYTES : 1;
  const waiting = state.received.length;
  requireState((state.ier & ~IER.mask) === 0, 'uart16550: IER');
  requireState((state.fcr & ~FCR.kept) === 0 && (fifos || state.fcr === 0), 'uart16550: FCR');
  requireState((state.mcr & ~MCR.mask) === 0, 'uart16550: MCR');
  requireState((state.lineErrors & ~LSR.errors) === 0, 'uart16550: line errors');
  requireState(waiting <= capacity, 'uart16550: receive FIFO');
  requireState(state.receivedErrors.length === waiting, 'uart16550: receive FIFO errors');
  requireState(
    state.receivedErrors.every((errors) => (errors & ~LSR.byteErrors) === 0),
    'uart16550: receive FIFO errors',
  );
  requireState(state.transmitting.length <= capacity, 'uart16550: transmit FIFO');
  requireState(
    !state.transmitEmptyPending || state.transmitting.length === 0,
    'uart16550: transmitter both empty and busy',
  );
  const silence = state.timedOut || state.timeoutInNs !== undefined;
  requireState(!silence || (fifos && waiting > 0), 'uart16550: character timeout');
  requireState(!(state.timedOut && state.timeoutInNs !== undefined), 'uart16550: two timeouts');
  requireState((state.timeoutInNs ?? 0) <= LONGEST_TIMEOUT_NS, 'uart16550: character timeout');
}
