/**
 * What happens on a fresh connection before the replication stream: the primary describes the guest's machine, the standby asks
 * for the boot images it does not have yet, and gets them. So a standby needs no description of its own, and the guest can
 * reboot on the survivor. Nothing is trusted: every length has a limit before a byte is kept, every part a checksum.
 *
 *   primary -> standby  "TSVMMINT" | u32 version | u32 length | u32 crc | description (JSON, UTF-8)
 *   standby -> primary  "TSVMMANS" | u32 count   | count x u32: numbers of the images wanted
 *                       | u32 disks | disks x u32: how each disk is kept (STORAGE, ft/disk/storage.ts)
 *                       | u32 generation | u64 id: what the copies hold already; 0 for nothing
 *                       | u32 generation; 0 for nothing, else u64 from id | per disk: u32 count | count x u32: extents of the
 *                       activity log of a primary that comes back, ascending
 *   primary -> standby  per image: u32 length | u32 crc | bytes
 */
import { crc32c } from '../../base/crc32c.ts';
import { VmmError } from '../../base/error.ts';
import { EXTENTS_MAX } from '../disk/activity-file.ts';
import { type HeldCopy, type ReturnedCopy, STORAGE, type Storage } from '../disk/storage.ts';

/** Longest description. */
const DESCRIPTION_MAX_BYTES = 64 * 1024;
/** Most boot images (kernel, initrd, firmware, and room for more). */
const IMAGES_MAX = 8;
/** Largest boot image. */
const IMAGE_MAX_BYTES = 1024 * 2 ** 20;
/** Most disks of a machine. */
const DISKS_MAX = 64;
const VERSION = 4;
const HEAD_BYTES = 20;
const ASK = 'TSVMMINT';
const ANSWER = 'TSVMMANS';

/** What every primary sends first. */
export const GREETING: Uint8Array = new TextEncoder().encode(ASK);

/** A boot image as the description names it. */
export interface ImageTicket {
  /** Which one: `kernel`, `initrd`, `firmware`. */
  readonly role: string;
  readonly name: string;
  readonly bytes: number;
  /** CRC-32C, to tell whether the standby has it already. */
  readonly crc: number;
}

/** Checksum function: the native one where there is one. */
export type Sum = (bytes: Uint8Array) => number;

function protocolError(why: string): VmmError {
  return new VmmError('FT_INTRODUCTION', `the peer's introduction is not understood: ${why}`, {
    hint: 'Both hosts must run the same version of tsvmm.',
  });
}

/** Collects bytes until a wanted number is there. */
class Gatherer {
  #parts: Uint8Array[] = [];
  #have = 0;

  add(bytes: Uint8Array): void {
    this.#parts.push(bytes.slice());
    this.#have += bytes.length;
  }

  get have(): number {
    return this.#have;
  }

  /** The next `n` bytes, which are there. */
  take(n: number): Uint8Array {
    const out = new Uint8Array(n);
    let at = 0;
    while (at < n) {
      const part = this.#parts[0]!;
      const piece = Math.min(part.length, n - at);
      out.set(part.subarray(0, piece), at);
      at += piece;
      if (piece === part.length) this.#parts.shift();
      else this.#parts[0] = part.subarray(piece);
    }
    this.#have -= n;
    return out;
  }

  rest(): Uint8Array {
    return this.take(this.#have);
  }
}

function magicOf(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes.subarray(0, 8));
}

/** The primary's first message. */
export function introduce(description: unknown): Uint8Array {
  const body = new TextEncoder().encode(JSON.stringify(description));
  if (body.length > DESCRIPTION_MAX_BYTES) {
    throw new VmmError('FT_INTRODUCTION', `the machine's description has ${body.length} bytes`);
  }
  const out = new Uint8Array(HEAD_BYTES + body.length);
  const view = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) out[i] = ASK.charCodeAt(i);
  view.setUint32(8, VERSION, true);
  view.setUint32(12, body.length, true);
  view.setUint32(16, crc32c(body), true);
  out.set(body, HEAD_BYTES);
  return out;
}

/** The primary's side: reads the answer. */
export class AnswerReader {
  readonly #gatherer = new Gatherer();

  /**
   * @returns the answer and what follows it, or undefined while it is incomplete
   * @throws VmmError `FT_INTRODUCTION`
   */
  push(bytes: Uint8Array): IntroductionAnswer | undefined {
    this.#gatherer.add(bytes);
    const all = this.#gatherer.rest();
    const answered = readAnswer(all);
    if (answered === undefined) this.#gatherer.add(all);
    return answered;
  }
}

/** What a standby has answered. */
export interface IntroductionAnswer {
  /** Numbers of the boot images that it lacks. */
  readonly wanted: number[];
  /** How it keeps each disk. */
  readonly storage: Storage[];
  readonly held: HeldCopy | undefined;
  /** What it has of the run before, whose primary it was. */
  readonly returned: ReturnedCopy | undefined;
  readonly rest: Uint8Array;
}

function readAnswer(all: Uint8Array): IntroductionAnswer | undefined {
  if (all.length < 12) return undefined;
  const view = new DataView(all.buffer, all.byteOffset, all.length);
  if (magicOf(all) !== ANSWER) throw protocolError('it is no tsvmm standby');
  const count = view.getUint32(8, true);
  if (count > IMAGES_MAX) throw protocolError(`it wants ${count} images`);
  const disksAt = 12 + 4 * count;
  if (all.length < disksAt + 4) return undefined;
  const disks = view.getUint32(disksAt, true);
  if (disks > DISKS_MAX) throw protocolError(`it tells of ${disks} disks`);
  const heldAt = disksAt + 4 + 4 * disks;
  const returnedAt = heldAt + 12;
  if (all.length < returnedAt + 4) return undefined;
  const word = (at: number): number => view.getUint32(at, true);
  const found = readReturned(view, returnedAt, disks);
  if (found === undefined) return undefined;
  return {
    wanted: Array.from({ length: count }, (_, i) => word(12 + 4 * i)),
    storage: Array.from({ length: disks }, (_, i) => {
      const value = word(disksAt + 4 + 4 * i);
      const known = Object.values(STORAGE).find((storage) => storage === value);
      if (known === undefined) throw protocolError(`it keeps a disk in a way ${value}`);
      return known;
    }),
    held:
      word(heldAt) === 0
        ? undefined
        : { generation: word(heldAt), id: word(heldAt + 4) + word(heldAt + 8) * 2 ** 32 },
    returned: found.returned,
    rest: all.subarray(found.end),
  };
}

/** The last part of an answer; undefined while it is incomplete. */
function readReturned(
  view: DataView,
  start: number,
  disks: number,
): { readonly returned: ReturnedCopy | undefined; readonly end: number } | undefined {
  const generation = view.getUint32(start, true);
  if (generation === 0) return { returned: undefined, end: start + 4 };
  let at = start + 12;
  const extents: number[][] = [];
  for (let disk = 0; disk < disks; disk++) {
    if (view.byteLength < at + 4) return undefined;
    const count = view.getUint32(at, true);
    if (count > EXTENTS_MAX) throw protocolError(`it names ${count} extents of a disk`);
    at += 4;
    if (view.byteLength < at + 4 * count) return undefined;
    const list = Array.from({ length: count }, (_, i) => view.getUint32(at + 4 * i, true));
    if (list.some((extent, i) => i > 0 && extent <= list[i - 1]!)) {
      throw protocolError('extents of a disk are not in order');
    }
    extents.push(list);
    at += 4 * count;
  }
  if (view.byteLength < at) return undefined;
  const fromId = view.getUint32(start + 4, true) + view.getUint32(start + 8, true) * 2 ** 32;
  return { returned: { generation, fromId, extents }, end: at };
}

/** One image on the wire: head and bytes. */
export function imageParts(image: Uint8Array, sum: Sum): [Uint8Array, Uint8Array] {
  const head = new Uint8Array(8);
  const view = new DataView(head.buffer);
  view.setUint32(0, image.length, true);
  view.setUint32(4, sum(image), true);
  return [head, image];
}

/** The standby's answer. */
export function answer(
  wanted: readonly number[],
  storage: readonly Storage[] = [],
  held: HeldCopy = { generation: 0, id: 0 },
  returned?: ReturnedCopy | undefined,
): Uint8Array {
  const { generation, id } = held;
  const words = [wanted.length, ...wanted, storage.length, ...storage];
  words.push(generation, id % 2 ** 32, Math.floor(id / 2 ** 32));
  if (returned === undefined) words.push(0);
  else {
    const { fromId } = returned;
    words.push(returned.generation, fromId % 2 ** 32, Math.floor(fromId / 2 ** 32));
    for (const extents of returned.extents) words.push(extents.length, ...extents);
  }
  const out = new Uint8Array(8 + 4 * words.length);
  const view = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) out[i] = ANSWER.charCodeAt(i);
  for (const [i, word] of words.entries()) view.setUint32(8 + 4 * i, word, true);
  return out;
}

/** What the standby has learnt so far. */
export type IntroductionEvent =
  | { readonly kind: 'description'; readonly description: unknown }
  | {
      readonly kind: 'done';
      readonly images: ReadonlyMap<number, Uint8Array>;
      readonly rest: Uint8Array;
    };

/** The standby's side: reads the description, then the images that were asked for. */
export class IntroductionReader {
  readonly #gatherer = new Gatherer();
  readonly #sum: Sum;
  #described = false;
  #wanted: readonly { number: number; ticket: ImageTicket }[] | undefined;
  readonly #images = new Map<number, Uint8Array>();

  constructor(sum: Sum) {
    this.#sum = sum;
  }

  /** After `description`: which images are to come. */
  want(images: readonly { number: number; ticket: ImageTicket }[]): void {
    for (const { ticket } of images) {
      if (!(ticket.bytes > 0 && ticket.bytes <= IMAGE_MAX_BYTES)) {
        throw protocolError(`an image of ${ticket.bytes} bytes`);
      }
    }
    if (images.length > IMAGES_MAX) throw protocolError(`${images.length} images`);
    this.#wanted = images;
  }

  /**
   * Takes bytes; with none, looks again after {@link want}.
   * @throws VmmError `FT_INTRODUCTION`
   */
  push(bytes: Uint8Array): IntroductionEvent | undefined {
    const gatherer = this.#gatherer;
    if (bytes.length > 0) gatherer.add(bytes);
    if (!this.#described) return this.#readDescription();
    if (this.#wanted === undefined) return undefined;
    while (this.#images.size < this.#wanted.length) {
      const { number, ticket } = this.#wanted[this.#images.size]!;
      if (gatherer.have < 8 + ticket.bytes) return undefined;
      const head = new DataView(gatherer.take(8).buffer);
      if (head.getUint32(0, true) !== ticket.bytes) throw protocolError('an image of another size');
      const image = gatherer.take(ticket.bytes);
      const sum = this.#sum(image);
      if (sum !== head.getUint32(4, true) || sum !== ticket.crc) {
        throw protocolError(`${ticket.role} was damaged on the way`);
      }
      this.#images.set(number, image);
    }
    return { kind: 'done', images: this.#images, rest: gatherer.rest() };
  }

  #readDescription(): IntroductionEvent | undefined {
    const gatherer = this.#gatherer;
    if (gatherer.have < HEAD_BYTES) return undefined;
    const all = gatherer.rest();
    const view = new DataView(all.buffer);
    if (magicOf(all) !== ASK) throw protocolError('it is no tsvmm primary');
    const version = view.getUint32(8, true);
    if (version !== VERSION) throw protocolError(`version ${version}, this one speaks ${VERSION}`);
    const length = view.getUint32(12, true);
    if (length > DESCRIPTION_MAX_BYTES) throw protocolError(`a description of ${length} bytes`);
    if (all.length < HEAD_BYTES + length) {
      gatherer.add(all);
      return undefined;
    }
    const body = all.subarray(HEAD_BYTES, HEAD_BYTES + length);
    if (crc32c(body) !== view.getUint32(16, true)) throw protocolError('its checksum fails');
    gatherer.add(all.subarray(HEAD_BYTES + length));
    this.#described = true;
    try {
      return { kind: 'description', description: JSON.parse(new TextDecoder().decode(body)) };
    } catch {
      throw protocolError('the description is not JSON');
    }
  }
}
