/**
 * The rules about ids and sequence numbers once more, in a few lines of their own: which frames a receiver must
 * refuse. It looks at what the receiver is given and demands a NACK or a close in the same step.
 */
import type { Message } from '../../src/ft/wire/message.ts';
import { Violation } from './checkers.ts';

export class ProtocolMonitor {
  #last = 0;
  #open: { id: number; seq: number } | undefined;
  #rejecting = true;
  #attempt = 0;
  #answered = false;

  connected(committedId: number): void {
    this.#last = committedId;
    this.#open = undefined;
    this.#attempt = 0;
    this.#rejecting = true; // until INIT
    this.#answered = false;
  }

  /** Before the receiver sees `m`. @returns why it has to refuse it, if so */
  before(m: Message): string | undefined {
    this.#answered = false;
    if (m.cmd === 'INIT') {
      this.#last = m.id;
      this.#open = undefined;
      this.#rejecting = false;
      return undefined;
    }
    if (m.cmd === 'CANCEL') {
      if (m.seq < this.#attempt) return undefined; // repeated: its attempt is over
      this.#attempt = m.seq + 1;
      if (this.#open !== undefined) this.#last = this.#open.id - 1;
      this.#open = undefined;
      this.#rejecting = false;
      return undefined;
    }
    if (this.#rejecting) return undefined;
    const open = this.#open;
    switch (m.cmd) {
      case 'BEGIN':
        if (open !== undefined || m.id !== this.#last + 1)
          return `BEGIN ${m.id} after ${this.#last}`;
        if (m.seq < this.#attempt) return `BEGIN of attempt ${m.seq} after ${this.#attempt}`;
        this.#attempt = m.seq;
        this.#open = { id: m.id, seq: 0 };
        return undefined;
      case 'CONTINUE':
        if (open?.id !== m.id || open.seq !== m.seq) return `CONTINUE ${m.id}/${m.seq}`;
        open.seq++;
        return undefined;
      case 'COMMIT':
      case 'ATOMIC':
        if (open?.id !== m.id || open.seq !== m.seq) return `${m.cmd} ${m.id}/${m.seq}`;
        this.#last = m.id;
        this.#open = undefined;
        return undefined;
      default:
        return undefined;
    }
  }

  /** The receiver refused something: `id` and what follows it. */
  nacked(id: number): void {
    this.#answered = true;
    this.#rejecting = true;
    this.#open = undefined;
    this.#last = id - 1;
  }

  refused(): void {
    this.#answered = true;
    this.#rejecting = true;
  }

  /** After the receiver has dealt with the message that {@link before} judged. */
  after(bad: string | undefined): void {
    if (bad !== undefined && !this.#answered) throw new Violation('P', `not refused: ${bad}`);
  }
}
