/** An interrupt line that remembers its edges. */
import type { IrqLine } from '../../src/bus/interrupts.ts';

/** Records level changes (repeats are allowed and not recorded). */
export class RecordingIrq implements IrqLine {
  level = false;
  /** How often the line rose. */
  rises = 0;
  /** Every change, in order. */
  readonly edges: boolean[] = [];

  set(level: boolean): void {
    if (level === this.level) return;
    this.level = level;
    this.edges.push(level);
    if (level) this.rises++;
  }
}
