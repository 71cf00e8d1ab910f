/** The two ends of the transaction protocol under test, spoken to directly, without a shell or a connection. */
import { EffectQueue } from '../../src/ft/core/effects.ts';
import { Receiver, type ReceiverEffect } from '../../src/ft/core/receiver.ts';
import { Sender, type SenderEffect } from '../../src/ft/core/sender.ts';
import { type FaultCode, fault } from '../../src/ft/wire/fault.ts';
import type { Hello, Manifest, Message } from '../../src/ft/wire/message.ts';
import { ARBITER, ON_PEER_LOSS, ROLE } from '../../src/ft/wire/spec.ts';

/** A primary's HELLO. */
export function hello(change: Partial<Hello>): Hello {
  return {
    protocolMin: 1,
    protocolMax: 1,
    role: ROLE.primary,
    onPeerLoss: ON_PEER_LOSS.wait,
    arbiter: ARBITER.lock,
    vm: '00'.repeat(16),
    instance: '11'.repeat(8),
    generation: 5,
    committedId: 0,
    complete: false,
    ended: false,
    machineDigest: '22'.repeat(32),
    cpuDigest: '33'.repeat(32),
    pageBytes: 4096,
    tscKhz: 1000,
    compression: 0,
    limits: {
      frameBytesMax: 1024,
      transactionBytesMax: 4096,
      epochsInFlightMax: 3,
      tapBytesMax: 1024,
    },
    host: '',
    ...change,
  };
}

/** Of a transaction of one part, {@link PAYLOAD}. */
export const MANIFEST: Manifest = { frames: 1, sections: 1, bytes: 3, pages: 0, crc: 0 };
export const PAYLOAD = new Uint8Array([1, 2, 3]);

/** A receiver under test. */
export class StandbyEnd {
  readonly queue = new EffectQueue<ReceiverEffect>();
  readonly receiver: Receiver;
  readonly did: string[] = [];
  readonly said: Message[] = [];
  /** As the sender counts: CANCELs on this connection. */
  #attempt = 0;

  constructor(change: Partial<Hello> = {}) {
    this.receiver = new Receiver(
      hello({ role: ROLE.standby, generation: 0, ...change }),
      this.queue,
    );
    this.open('full', 0);
    this.drain();
    this.did.length = 0;
    this.said.length = 0;
  }

  open(mode: 'full' | 'resume', id: number, primary: Partial<Hello> = {}): void {
    this.#attempt = 0;
    this.receiver.connected();
    this.say({ cmd: 'HELLO', hello: hello(primary) });
    this.say({ cmd: 'INIT', mode, id });
  }

  say(message: Partial<Message> & { cmd: Message['cmd'] }): void {
    const seq = message.cmd === 'CANCEL' ? (message.seq ?? this.#attempt++) : 0;
    this.receiver.receive({ generation: 5, id: 0, seq, ...message } as Message);
    this.drain();
  }

  begin(id: number, baseId = id - 1): void {
    this.say({ cmd: 'BEGIN', id, seq: this.#attempt, baseId, syncFrames: 0 });
  }

  part(id: number, seq: number): void {
    this.say({ cmd: 'CONTINUE', id, seq, payload: PAYLOAD });
  }

  commit(id: number, seq = 1, cmd: 'COMMIT' | 'ATOMIC' = 'COMMIT'): void {
    this.say({ cmd, id, seq, manifest: MANIFEST });
  }

  validated(id: number, code?: FaultCode): void {
    this.receiver.validated(id, code === undefined ? undefined : fault(code));
    this.drain();
  }

  whole(id: number): void {
    this.begin(id);
    this.part(id, 0);
    this.commit(id);
    this.validated(id);
    this.receiver.applied(id, false);
    this.drain();
  }

  drain(): void {
    for (let e = this.queue.shift(); e !== undefined; e = this.queue.shift()) {
      if (e.type === 'send') this.said.push(e.message);
      else if (e.type === 'stage') this.did.push(`stage ${e.id}`);
      else if ('id' in e) this.did.push(`${e.type} ${e.id}`);
      else if (e.type === 'discard') this.did.push(`discard ${e.fromId}`);
      else this.did.push(e.type);
    }
  }

  get nack(): FaultCode | undefined {
    const last = this.said.at(-1);
    return last?.cmd === 'NACK' ? (last.code as FaultCode) : undefined;
  }

  get state(): [string, number, boolean] {
    return [this.receiver.state, this.receiver.committedId, this.receiver.complete];
  }
}

/** A sender under test. */
export class PrimaryEnd {
  readonly queue = new EffectQueue<SenderEffect>();
  readonly sender = new Sender(hello({}), this.queue);
  readonly did: string[] = [];
  readonly said: Message[] = [];

  hear(message: Partial<Message> & { cmd: Message['cmd'] }): void {
    this.sender.receive({ generation: 5, id: 0, seq: 0, ...message } as Message);
    this.drain();
  }

  open(standby: Partial<Hello> = {}): void {
    this.sender.connected();
    this.hear({ cmd: 'HELLO', hello: hello({ role: ROLE.standby, generation: 0, ...standby }) });
    this.hear({ cmd: 'ACK', of: 'init', degraded: false });
  }

  epoch(atomic = false): number {
    const epoch = this.sender.open(3, atomic);
    this.sender.chunk(epoch, 1);
    this.sender.sealed(epoch, MANIFEST);
    this.drain();
    return epoch;
  }

  ack(id: number): void {
    this.hear({ cmd: 'ACK', of: 'commit', id, degraded: false });
  }

  drain(): void {
    for (let e = this.queue.shift(); e !== undefined; e = this.queue.shift()) {
      if (e.type === 'send') this.said.push(e.message);
      else if (e.type === 'acked') this.did.push(`acked ${e.epoch}=${e.id}${e.atomic ? '!' : ''}`);
      else if (e.type === 'returned') this.did.push(`returned ${e.fromEpoch}`);
      else if (e.type === 'encode') this.did.push(`encode ${e.epoch}`);
      else this.did.push(e.type);
    }
  }

  take(): string[] {
    return this.did.splice(0);
  }
}
