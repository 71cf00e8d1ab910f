/**
 * The inputs of KVM's interrupt controllers as {@link IrqLine}s. Levels are remembered so that repeating one costs no
 * system call; after a restore or reset, {@link IrqLines.forget} makes every line be driven anew.
 */
import { type IrqLine, SharedIrqLine } from '../bus/interrupts.ts';
import type { KvmVm } from '../kvm/api.ts';

/** Pins of the IOAPIC. */
const PINS = 24;

/** See the module's head. */
export class IrqLines {
  readonly #vm: KvmVm;
  /** Last level driven: 0, 1, or 2 for unknown. */
  readonly #levels = new Uint8Array(PINS).fill(2);
  readonly #shared = new Map<number, SharedIrqLine>();

  constructor(vm: KvmVm) {
    this.#vm = vm;
  }

  /** A line that one device alone drives. */
  line(gsi: number): IrqLine {
    return {
      set: (level) => {
        const wanted = level ? 1 : 0;
        if (this.#levels[gsi] === wanted) return;
        this.#levels[gsi] = wanted;
        this.#vm.setIrqLine(gsi, level);
      },
    };
  }

  /** A new source of a line that several devices share (PCI INTx). */
  sharedLine(gsi: number): IrqLine {
    let shared = this.#shared.get(gsi);
    if (shared === undefined) {
      shared = new SharedIrqLine(this.line(gsi));
      this.#shared.set(gsi, shared);
    }
    return shared.source();
  }

  /** KVM's idea of the lines was replaced: drive each one at its next `set`, whatever the level. */
  forget(): void {
    this.#levels.fill(2);
  }
}
