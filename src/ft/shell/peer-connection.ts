/**
 * The primary's connection to a standby: dials, introduces the guest's machine, sends the boot images that the standby lacks, then
 * speaks messages. What they mean is for the primary's state machine.
 */
import { messageOf } from '../../base/error.ts';
import type { Logger } from '../../base/log.ts';
import type { NativeIo } from '../../kvm/native-io.ts';
import type { HeldCopy, ReturnedCopy, Storage } from '../disk/storage.ts';
import { encodeBulkHeader, encodedBytesMax, encodeMessage } from '../wire/codec.ts';
import { type DecodeFault, Decoder } from '../wire/decoder.ts';
import type { Message } from '../wire/message.ts';
import { HEADER_BYTES } from '../wire/spec.ts';
import { AnswerReader, imageParts } from './introduction.ts';
import { type DiallingLink, dial, type LinkOptions } from './link.ts';
import type { PageSender } from './page-sender.ts';

/** A host that takes the connection and does not answer the introduction in this time is not there. */
const ANSWER_TIMEOUT_MS = 5000;

/** What a connection is made of. */
export interface PeerConnectionParts {
  readonly io: NativeIo;
  readonly log: Logger;
  /** First message of each connection, and the boot images it names, by number. */
  readonly introduction: Uint8Array;
  readonly images: readonly Uint8Array[];
  /** Whose chunks are sent. */
  readonly sender: PageSender;
}

/** Who hears of it. */
export interface PeerConnectionHandler {
  /** The introduction is over: messages go both ways. `storage`: how the standby keeps each disk, and what it has of them. */
  connected(
    storage: readonly Storage[],
    held: HeldCopy | undefined,
    returned: ReturnedCopy | undefined,
  ): void;
  message(message: Message): void;
  fault(fault: DecodeFault): void;
  disconnected(why: string): void;
  /** An attempt to reach it came to nothing. */
  failed(why: string): void;
  /** Everything that one piece of the stream held has been reported. */
  settled(): void;
}

/** See the module's head. */
export class PeerConnection {
  readonly #parts: PeerConnectionParts;
  readonly #handler: PeerConnectionHandler;
  readonly #link: DiallingLink;
  readonly #headers: Uint8Array[] = [];
  #decoder: Decoder | undefined;
  #answers: AnswerReader | undefined;
  #who = '';
  /** Whether the present connection got as far as an agreement; only then its end is worth a line. */
  #agreed = false;
  /** Whoever took the connection did not answer in time. */
  #mute = false;
  #patience: NodeJS.Timeout | undefined;
  /** Bytes given to the link since the start. */
  sentBytes = 0;

  constructor(parts: PeerConnectionParts, handler: PeerConnectionHandler) {
    this.#parts = parts;
    this.#handler = handler;
    this.#link = dial({
      connected: (who) => this.#connected(who),
      received: (bytes) => this.#received(bytes),
      drained: () => {},
      disconnected: (why) => this.#disconnected(why),
      failed: (why) => handler.failed(why),
    });
  }

  /** Starts an attempt to reach the standby at `peer`. */
  connect(peer: LinkOptions): void {
    this.#link.connect(peer);
  }

  drop(): void {
    this.#link.drop();
  }

  close(): void {
    this.#link.close();
  }

  /** The two ends have agreed: a standby sends no bulk frames. */
  agreed(): void {
    this.#agreed = true;
    this.#parts.log.info(`connected to the standby at ${this.#who}`);
    this.#decoder?.setBulkBytesMax(0);
  }

  /** Sends a message; `chunk` is the buffer that goes with a bulk one and comes back to the pool when it is sent, or lost. */
  send(message: Message, chunk: number): void {
    if (message.cmd === 'CONTINUE' || message.cmd === 'SYNC') {
      const { sender } = this.#parts;
      const payload = sender.pool.content(chunk);
      const header = this.#headers.pop() ?? new Uint8Array(HEADER_BYTES);
      encodeBulkHeader(header, 0, message, payload.length, sender.crc(chunk));
      this.sentBytes += payload.length + HEADER_BYTES;
      this.#link.send([header, payload], () => {
        this.#headers.push(header);
        sender.pool.release(chunk);
      });
      return;
    }
    const bytes = new Uint8Array(encodedBytesMax(message));
    const end = encodeMessage(bytes, 0, message);
    this.sentBytes += end;
    this.#link.send([bytes.subarray(0, end)]);
  }

  #connected(who: string): void {
    this.#who = who;
    this.#answers = new AnswerReader();
    this.#decoder = undefined;
    this.#link.send([this.#parts.introduction]);
    this.#patience = setTimeout(() => {
      this.#mute = true;
      this.#link.drop();
    }, ANSWER_TIMEOUT_MS);
    this.#patience.unref();
  }

  #received(bytes: Uint8Array): void {
    try {
      if (this.#answers !== undefined) this.#introduced(bytes);
      else this.#decoder?.push(bytes);
    } catch (error) {
      this.#parts.log.error(messageOf(error));
      this.#link.drop();
      return;
    }
    this.#handler.settled();
  }

  /** The standby's answer to the introduction: send what it lacks, then the stream begins. */
  #introduced(bytes: Uint8Array): void {
    const answer = this.#answers!.push(bytes);
    if (answer === undefined) return;
    this.#answers = undefined;
    clearTimeout(this.#patience);
    const { images, io } = this.#parts;
    for (const number of new Set(answer.wanted)) {
      const image = images[number];
      if (image !== undefined) {
        this.#link.send(imageParts(image, (b) => io.crc32c(b, 0, b.length, 0)));
      }
    }
    const decoder = new Decoder(
      {
        admit: () => 0,
        message: (message) => this.#handler.message(message),
        fault: (fault) => this.#handler.fault(fault),
      },
      (b, start, end) => io.crc32c(b, start, end - start, 0),
    );
    this.#decoder = decoder;
    this.#handler.connected(answer.storage, answer.held, answer.returned);
    if (answer.rest.length > 0) decoder.push(answer.rest);
  }

  #disconnected(why: string): void {
    clearTimeout(this.#patience);
    const mute = this.#mute;
    this.#mute = false;
    if (this.#agreed) {
      this.#parts.log.info(`the connection to the standby is gone: ${why}`);
    }
    this.#agreed = false;
    this.#answers = undefined;
    this.#decoder = undefined;
    this.#handler.disconnected(mute ? 'it does not answer' : why);
  }
}
