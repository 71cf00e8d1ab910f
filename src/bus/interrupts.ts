/**
 * How a device raises interrupts: level lines (ISA, PCI INTx) and message-signalled vectors. The board
 * implements both on top of KVM; tests record them.
 */

/** A level-triggered (or, pulsed, edge-triggered) input of the interrupt controllers. */
export interface IrqLine {
  /** Drives the line; repeating a level is allowed and cheap. */
  set(level: boolean): void;
}

/** Lets several sources share one line: it is high while any of them drives it high (PCI 3.0, 2.2.6). */
export class SharedIrqLine {
  readonly #target: IrqLine;
  #high = 0;

  constructor(target: IrqLine) {
    this.#target = target;
  }

  /** A new source of this line, initially low. */
  source(): IrqLine {
    let driven = false;
    return {
      set: (level) => {
        if (level === driven) return;
        driven = level;
        this.#high += level ? 1 : -1;
        this.#target.set(this.#high > 0);
      },
    };
  }
}

/** One message-signalled interrupt of a device, as its MSI-X table entry configures it. */
export interface MsiVector {
  /** Points the vector at a message (address and data as the guest wrote them). */
  configure(addressLow: number, addressHigh: number, data: number): void;
  /** Sends the configured message. */
  trigger(): void;
  /** Gives the host's resources back; the vector is not used afterwards. */
  release(): void;
}

/** Where message-signalled interrupts go. */
export interface MsiController {
  /** A fresh vector; it sends nothing until configured. */
  vector(): MsiVector;
}
