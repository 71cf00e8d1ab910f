/**
 * What a standby keeps of the guest: memory as of the last applied transaction, the state container and the tap's log that go
 * with it, and transactions that are staged apart until they commit. Validation does all that could fail, so that applying
 * cannot (R4): pages are decoded into a side buffer, states are decoded, the log is checked.
 */
import { assert } from '../../base/assert.ts';
import { messageOf, VmmError } from '../../base/error.ts';
import { DECODE_ERROR, type NativeIo } from '../../kvm/native-io.ts';
import { PAGE_SIZE } from '../../memory/dirty-set.ts';
import { TapReplay } from '../core/tap-replay.ts';
import type { DiskOps, ReplicaDisks } from '../disk/replica-disks.ts';
import { DISK_OPS_VERSION } from '../wire/disk-ops.ts';
import { FAULT, type Fault, fault } from '../wire/fault.ts';
import type { Manifest } from '../wire/message.ts';
import { PAGES_AHEAD_SHARE, PAGES_VERSION } from '../wire/page-stream.ts';
import { SectionReader } from '../wire/sections.ts';
import { SECTION } from '../wire/spec.ts';
import type { ReplicatedGuest } from './guest.ts';
import { GuestAddresses } from './guest-addresses.ts';
import { CONTAINER_VERSION, LOG_VERSION } from './page-sender.ts';

interface Staged {
  readonly frames: Uint8Array[];
  /** Filled by validation. */
  pages: Uint32Array;
  content: Uint8Array;
  container: Uint8Array;
  log: Uint8Array;
  disks: DiskOps[];
}

const EMPTY = new Uint8Array(0);
const NO_PAGES = new Uint32Array(0);

/** See the module's head. */
export class StandbyStore {
  readonly replay: TapReplay;
  /** The guest's disks of which this host has a copy of its own. */
  readonly disks: ReplicaDisks | undefined;
  /** What the guest's cards answer for, as far as its frames have told. */
  readonly addresses = new GuestAddresses();
  readonly #guest: ReplicatedGuest;
  readonly #io: NativeIo;
  readonly #frames: number;
  readonly #staged = new Map<number, Staged>();
  readonly #sections = new SectionReader();
  readonly #syncPages: Uint32Array;
  #syncContent: Uint8Array = EMPTY;
  #container: Uint8Array | undefined;
  /** When the container that counts was applied, by the caller's clock. */
  appliedAtNs = 0;
  receivedBytes = 0;

  constructor(
    guest: ReplicatedGuest,
    io: NativeIo,
    tapBytesMax: number,
    disks: ReplicaDisks | undefined = undefined,
  ) {
    this.disks = disks;
    this.#guest = guest;
    this.#io = io;
    this.#frames = guest.memory.totalBytes / PAGE_SIZE;
    this.#syncPages = new Uint32Array(Math.min(this.#frames, 65536));
    this.replay = new TapReplay(tapBytesMax);
  }

  /** The state container of the last applied transaction. */
  get container(): Uint8Array | undefined {
    return this.#container;
  }

  /** A first copy begins: all that was held is void. */
  reset(): void {
    this.#staged.clear();
    this.#container = undefined;
    this.replay.reset();
  }

  /** Applies a piece of the first copy at once. @returns what is wrong with it, if anything */
  sync(payload: Uint8Array): Fault | undefined {
    this.receivedBytes += payload.length;
    const sections = this.#sections.reset(payload);
    while (sections.next()) {
      if (sections.type === SECTION.diskCopy && sections.version === DISK_OPS_VERSION) {
        const { instance: disk, bodyStart: start, bodyEnd: end } = sections;
        const wrong =
          this.disks === undefined
            ? fault(FAULT.SECTION_UNKNOWN, 'a disk that is not copied')
            : this.disks.copy({ disk, bytes: payload, start, end });
        if (wrong !== undefined) return wrong;
        continue;
      }
      if (sections.type !== SECTION.pages || sections.version !== PAGES_VERSION) {
        return fault(FAULT.SECTION_UNKNOWN, `type ${sections.type} in the first copy`);
      }
      const room = (this.#syncPages.length * PAGE_SIZE) as number;
      if (this.#syncContent.length === 0)
        this.#syncContent = new Uint8Array(Math.min(room, 1024 * PAGE_SIZE));
      const pagesMax = this.#syncContent.length / PAGE_SIZE;
      const pages = this.#syncPages.subarray(0, pagesMax);
      const count = this.#decode(
        payload,
        sections.bodyStart,
        sections.bodyEnd,
        pages,
        0,
        this.#syncContent,
      );
      if (typeof count !== 'number') return count;
      this.#guest.map.scatter(pages, count, this.#syncContent);
    }
    return sections.error === undefined ? undefined : fault(FAULT.SECTION_MALFORMED);
  }

  /** Keeps a part of transaction `id`; the payload is copied. */
  stage(id: number, payload: Uint8Array): void {
    this.receivedBytes += payload.length;
    let staged = this.#staged.get(id);
    if (staged === undefined) {
      staged = {
        frames: [],
        pages: NO_PAGES,
        content: EMPTY,
        container: EMPTY,
        log: EMPTY,
        disks: [],
      };
      this.#staged.set(id, staged);
    }
    staged.frames.push(payload.slice());
  }

  /** Drops transactions from `fromId` on. */
  discard(fromId: number): void {
    for (const id of this.#staged.keys()) if (id >= fromId) this.#staged.delete(id);
  }

  /** Does everything with transaction `id` that can fail. @returns what is wrong, or undefined */
  validate(id: number, manifest: Manifest): Fault | undefined {
    const staged = this.#staged.get(id);
    if (staged === undefined) return fault(FAULT.SECTION_MISSING, 'nothing was staged');
    if (manifest.pages > this.#frames * (1 + PAGES_AHEAD_SHARE))
      return fault(FAULT.MANIFEST_MISMATCH, `${manifest.pages} pages`);
    staged.pages = new Uint32Array(manifest.pages);
    staged.content = new Uint8Array(manifest.pages * PAGE_SIZE);
    staged.disks = [];
    const container: Uint8Array[] = [];
    let log: Uint8Array | undefined;
    let sections = 0;
    let pages = 0;
    let crc = 0;
    for (const frame of staged.frames) {
      crc = this.#io.crc32c(frame, 0, frame.length, crc);
      const reader = this.#sections.reset(frame);
      while (reader.next()) {
        sections++;
        const { type, version, instance, bodyStart, bodyEnd } = reader;
        if (type === SECTION.pages && version === PAGES_VERSION) {
          const count = this.#decode(
            frame,
            bodyStart,
            bodyEnd,
            staged.pages,
            pages,
            staged.content,
          );
          if (typeof count !== 'number') return count;
          pages += count;
        } else if (type === SECTION.vm && version === CONTAINER_VERSION) {
          if (instance !== container.length)
            return fault(FAULT.SECTION_MISSING, `piece ${container.length} of the state`);
          container.push(frame.subarray(bodyStart, bodyEnd));
        } else if (type === SECTION.tapLog && version === LOG_VERSION && log === undefined) {
          log = frame.subarray(bodyStart, bodyEnd);
        } else if (type === SECTION.diskWrites && version === DISK_OPS_VERSION && this.disks) {
          const ops = { disk: instance, bytes: frame, start: bodyStart, end: bodyEnd };
          const wrong = this.disks.check(ops, true);
          if (wrong !== undefined) return wrong;
          staged.disks.push(ops);
        } else {
          return fault(FAULT.SECTION_UNKNOWN, `type ${type} version ${version}`);
        }
      }
      if (reader.error !== undefined) return fault(FAULT.SECTION_MALFORMED);
    }
    if (crc !== manifest.crc || sections !== manifest.sections || pages !== manifest.pages) {
      return fault(FAULT.MANIFEST_MISMATCH, `${sections} sections, ${pages} pages`);
    }
    if (container.length === 0 || log === undefined) return fault(FAULT.SECTION_MISSING);
    staged.container = join(container);
    staged.log = log;
    try {
      this.#guest.checkContainer(staged.container);
    } catch (error) {
      // A state that is whole and not possible here: this host's machine lacks something, and no retry mends that.
      const lacking = error instanceof VmmError && error.code === 'STATE_INVALID';
      const code = lacking ? FAULT.RESOURCE_MISSING : FAULT.SECTION_MALFORMED;
      return fault(code, messageOf(error));
    }
    const verdict = this.replay.check(log, 0, log.length);
    if (verdict !== undefined) return fault(FAULT.SECTION_MALFORMED, `tap log: ${verdict}`);
    return undefined;
  }

  /**
   * Transaction `id`, found sound, is the committed state now: memory, container and log are brought to it at once, because the
   * next one is made of differences to it. Cannot fail.
   */
  committed(id: number, nowNs: number): void {
    const { pages, content, container, log } = this.#must(id);
    this.replay.accept(log, 0, log.length);
    this.#guest.map.scatter(pages, pages.length, content);
    this.#container = container;
    this.replay.apply(log, 0, log.length);
    this.addresses.learnLog(log);
    this.appliedAtNs = nowNs;
  }

  /** Brings the disks to transaction `id`, committed before; resolves when that is done, or has failed. Undefined: at once. */
  apply(id: number): Promise<void> | undefined {
    const { disks } = this.#must(id);
    this.#staged.delete(id);
    return disks.length === 0 ? undefined : this.disks!.apply(id, disks);
  }

  #must(id: number): Staged {
    const staged = this.#staged.get(id);
    assert(staged !== undefined, 'what is committed was staged');
    return staged;
  }

  #decode(
    bytes: Uint8Array,
    start: number,
    end: number,
    pages: Uint32Array,
    first: number,
    content: Uint8Array,
  ): number | Fault {
    const count = this.#io.decodePages(
      bytes,
      start,
      end,
      this.#guest.map.native,
      pages,
      first,
      content,
      first * PAGE_SIZE,
    );
    if (count >= 0) return count;
    if (count === DECODE_ERROR.checksum) return fault(FAULT.PAGE_CHECKSUM);
    if (count === DECODE_ERROR.noRoom)
      return fault(FAULT.MANIFEST_MISMATCH, 'more pages than announced');
    return fault(FAULT.SECTION_MALFORMED, 'pages');
  }
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
