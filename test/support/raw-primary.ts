/**
 * A primary that can misbehave: a plain socket to a real standby's port, past the introduction, with every frame made by hand. And a
 * guest's memory for that standby, without KVM.
 */
import { connect, type Socket } from 'node:net';
import { crc32c } from '../../src/base/crc32c.ts';
import { EventTap } from '../../src/ft/core/event-tap.ts';
import type { ReplicatedGuest } from '../../src/ft/shell/guest.ts';
import { AnswerReader, introduce } from '../../src/ft/shell/introduction.ts';
import { CONTAINER_VERSION, LOG_VERSION } from '../../src/ft/shell/page-sender.ts';
import { encodedBytesMax, encodeMessage } from '../../src/ft/wire/codec.ts';
import { Decoder } from '../../src/ft/wire/decoder.ts';
import type { Hello, Manifest, Message } from '../../src/ft/wire/message.ts';
import { PAGES_VERSION, PageEncoder } from '../../src/ft/wire/page-stream.ts';
import { writeSectionHeader } from '../../src/ft/wire/sections.ts';
import { SECTION, SECTION_HEADER_BYTES } from '../../src/ft/wire/spec.ts';
import { loadAddon } from '../../src/kvm/addon.ts';
import { MemoryMapHandle } from '../../src/kvm/memory-map.ts';
import type { NativeKvm } from '../../src/kvm/native.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';

/** A guest that is only memory; its state container is any bytes. */
export function memoryGuest(pages: number): { bytes: Uint8Array; guest: ReplicatedGuest } {
  const buffer = new ArrayBuffer(pages * 4096);
  const addon = loadAddon() as NativeKvm;
  const map = new MemoryMapHandle(new addon.MemoryMap());
  map.addRange(0, buffer);
  const memory = new GuestMemory([{ base: 0, buffer }]);
  let running = false;
  const guest: ReplicatedGuest = {
    memory,
    map,
    get running() {
      return running;
    },
    pause: () => {
      running = false;
    },
    resume: () => {
      running = true;
    },
    saveContainer: () => Uint8Array.of(1, 2, 3),
    checkContainer: () => {},
    loadContainer: () => {},
    setDirtyLog: () => {},
    harvest: (list) => memory.dirty.takeInto(list),
    replayWrite: () => {},
  };
  return { bytes: new Uint8Array(buffer), guest };
}

/** One section with its body. */
export function section(type: number, version: number, body: Uint8Array, instance = 0): Uint8Array {
  const out = new Uint8Array(SECTION_HEADER_BYTES + body.length);
  out.set(body, writeSectionHeader(out, 0, type, version, instance, body.length));
  return out;
}

/** Parts of a transaction that fills `pages` with `byte`: the pages, the state, an empty log. */
export function parts(pages: readonly number[], byte: number): Uint8Array[] {
  const out = new Uint8Array(pages.length * 4200);
  const stats = new Uint32Array(5);
  const contents = new Uint8Array(pages.length * 4096).fill(byte);
  const list = Uint32Array.from(pages);
  new PageEncoder(0).encode(list, 0, list.length, contents, 0, out, 0, stats);
  const tap = new EventTap(
    { bytesMax: 64, entriesMax: 1, blockMax: 1, triggersMax: 1 },
    { frame: () => {}, console: () => {}, block: () => {}, released: () => {} },
    () => {},
  );
  const log = new Uint8Array(tap.logBytes);
  tap.writeLog(log, 0);
  return [
    section(SECTION.pages, PAGES_VERSION, out.slice(0, stats[4])),
    section(SECTION.vm, CONTAINER_VERSION, Uint8Array.of(1, 2, 3)),
    section(SECTION.tapLog, LOG_VERSION, log),
  ];
}

/** What {@link parts} add up to, one section each. */
export function manifestOf(all: readonly Uint8Array[], pages: number): Manifest {
  let crc = 0;
  let bytes = 0;
  for (const part of all) {
    crc = crc32c(part, 0, part.length, crc);
    bytes += part.length;
  }
  return { frames: all.length, sections: all.length, bytes, pages, crc };
}

/** See the module's head. */
export class RawPrimary {
  readonly heard: Message[] = [];
  readonly #hello: Hello;
  #socket: Socket | undefined;
  #closed = false;
  /** As the sender counts: CANCELs on this connection. */
  #attempt = 0;

  constructor(hello: Hello) {
    this.#hello = hello;
  }

  /**
   * Dials, gets past the introduction, says HELLO, and returns the standby's.
   * @param more what the description says besides
   * @param helloAfterMs say HELLO at this time, not behind the standby's
   */
  async connect(port: number, more: object = {}, helloAfterMs?: number): Promise<Hello> {
    this.#socket?.destroy();
    this.heard.length = 0;
    this.#attempt = 0;
    this.#closed = false;
    const socket = connect({ port, host: '127.0.0.1' });
    this.#socket = socket;
    const decoder = new Decoder({
      admit: () => 0,
      message: (m) => this.heard.push(m),
      fault: () => socket.destroy(),
    });
    let answers: AnswerReader | undefined = new AnswerReader();
    socket.on('error', () => {});
    socket.on('close', () => {
      if (this.#socket === socket) this.#closed = true;
    });
    socket.on('data', (bytes: Buffer) => {
      if (answers === undefined) {
        decoder.push(bytes);
        return;
      }
      const answer = answers.push(bytes);
      if (answer === undefined) return;
      answers = undefined;
      if (answer.rest.length > 0) decoder.push(answer.rest);
    });
    socket.write(introduce({ vm: this.#hello.vm, ...more }));
    const greet = (): void => this.say({ cmd: 'HELLO', hello: this.#hello });
    if (helloAfterMs !== undefined) setTimeout(greet, helloAfterMs);
    const first = await this.next('HELLO', 'NACK');
    if (first.cmd !== 'HELLO') throw new Error(`refused: ${JSON.stringify(first)}`);
    if (helloAfterMs === undefined) greet();
    return first.hello;
  }

  /** The next message of one of these kinds; heartbeats and others before it are dropped. */
  async next(...cmds: Message['cmd'][]): Promise<Message> {
    const end = performance.now() + 5000;
    for (;;) {
      const message = this.heard.shift();
      if (message !== undefined && cmds.includes(message.cmd)) return message;
      if (message !== undefined) continue;
      if (performance.now() > end) throw new Error(`no ${cmds.join(' or ')} came`);
      await new Promise((done) => setTimeout(done, 2));
    }
  }

  /** Waits until the standby has closed the connection. */
  async closed(): Promise<void> {
    const end = performance.now() + 5000;
    while (!this.#closed) {
      if (performance.now() > end) throw new Error('the standby keeps the connection');
      await new Promise((done) => setTimeout(done, 2));
    }
  }

  write(bytes: Uint8Array): void {
    this.#socket!.write(bytes);
  }

  /** The bytes of a message, for those that are to be damaged. */
  frame(message: Partial<Message> & { cmd: Message['cmd'] }): Uint8Array {
    const whole = { generation: this.#hello.generation, id: 0, seq: 0, ...message } as Message;
    const out = new Uint8Array(encodedBytesMax(whole));
    return out.slice(0, encodeMessage(out, 0, whole));
  }

  say(message: Partial<Message> & { cmd: Message['cmd'] }): void {
    const cancel = message.cmd === 'CANCEL' && message.seq === undefined;
    this.write(this.frame(cancel ? { ...message, seq: this.#attempt++ } : message));
  }

  /** INIT and its ACK. */
  async init(mode: 'full' | 'resume', id: number): Promise<void> {
    this.say({ cmd: 'INIT', mode, id });
    await this.next('ACK');
  }

  begin(id: number, baseId = id - 1): void {
    this.say({ cmd: 'BEGIN', id, seq: this.#attempt, baseId, syncFrames: 0 });
  }

  /** A whole transaction, as it should be. @returns the answer */
  async whole(id: number, byte: number): Promise<Message> {
    const all = parts([0, 1], byte);
    this.begin(id);
    for (const [seq, payload] of all.entries()) this.say({ cmd: 'CONTINUE', id, seq, payload });
    this.say({ cmd: 'COMMIT', id, seq: all.length, manifest: manifestOf(all, 2) });
    return this.next('ACK', 'NACK');
  }

  close(): void {
    this.#socket?.destroy();
  }
}
