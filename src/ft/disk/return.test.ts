/**
 * The return of a lost primary, modelled: a guest writes, epochs commit at the standby and are acknowledged later, or the standby is
 * given up and another one takes its place; then the process is killed or the power goes, at any step. Some standby runs on from
 * what it has committed. Whatever the log beside the lost image says, and whatever the survivor writes meanwhile: with the
 * granules that the survivor then finds, the lost image is the survivor's.
 */
import { describe, expect, it } from 'vitest';
import { afterPowerLoss, CrashFile, Power } from '../../../test/support/crash-media.ts';
import { crc32c } from '../../base/crc32c.ts';
import { Prng } from '../../base/prng.ts';
import { BLOCK_OP, ERRNO } from '../../block/backend.ts';
import { MemoryDisk } from '../../block/memory.ts';
import { GuestMemory } from '../../memory/guest-memory.ts';
import { ActivityFile } from './activity-file.ts';
import type { DiskAccess } from './disk-access.ts';
import type { DiskCopyParts } from './disk-copy.ts';
import type { Crc } from './disk-log.ts';
import { GRANULE_BYTES } from './granules.ts';
import type { RecordingBlock } from './recording-block.ts';
import { ReplicatedDisks } from './replicated-disks.ts';
import { STORAGE } from './storage.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const VM = 'cd'.repeat(16);
const DISK_BYTES = 9 * 2 ** 20 + 1536;
const SECTORS = DISK_BYTES / 512;
const SLOTS = 6;
const WANTED = { wanted: () => true, chunk: () => {} };
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** What a standby has committed, and as which transaction. */
interface Committed {
  image: Uint8Array;
  id: number;
}

interface Write {
  readonly offset: number;
  readonly data: Uint8Array;
}

class Host {
  readonly random: Prng;
  readonly memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(2 ** 20) }]);
  readonly disk = new MemoryDisk(this.memory, {
    sizeBytes: DISK_BYTES,
    delivery: 'poll',
    maxRequests: SLOTS,
  });
  readonly disks: ReplicatedDisks;
  readonly block: RecordingBlock;
  readonly file: CrashFile;
  readonly #power: Power;
  readonly #flights: (Write | undefined)[] = Array.from({ length: SLOTS }, () => undefined);
  /** Done since the last capture, in order. */
  #done: Write[] = [];
  waits = 0;
  dead = false;
  /** Of its own: what goes on behind a loss must not change what comes next. */
  readonly #naps: Prng;

  constructor(random: Prng, power: Power) {
    this.random = random;
    this.#power = power;
    this.#naps = new Prng(random.below(1e6));
    this.file = new CrashFile(power);
    this.disk.late = random.chance(0.5);
    this.disks = new ReplicatedDisks(
      [
        {
          id: 'disk0',
          backend: this.disk,
          open: async () => undefined as unknown as DiskAccess,
          activity: {
            image: 7,
            open: () => ActivityFile.open(this.file, crc),
            flush: async () => {
              // Only what was done when it began.
              const content = this.disk.content.slice();
              await power.step();
              this.disk.durable.set(content);
            },
            sleep: async () => {
              for (let i = this.#naps.below(4); i >= 0; i--) await turn();
              if (this.dead) await new Promise(() => {});
            },
            warn: () => {},
            close: () => {},
          },
        },
      ],
      this.memory,
      crc,
      { bytes: 256 * 4096, entries: 64 },
    );
    this.block = this.disks.blocks[0]!;
    this.disks.setStorage([STORAGE.replicated], undefined);
    this.block.setHandler({
      complete: (tag, result) => {
        if (result === ERRNO.OK) this.#done.push(this.#flights[tag]!);
        this.#flights[tag] = undefined;
      },
      batchEnd: () => {},
    });
  }

  write(places: number): void {
    const { random } = this;
    const tag = this.#flights.indexOf(undefined);
    if (tag < 0) return;
    const sectors = random.between(1, 16);
    const length = 512 * sectors;
    // A guest that is at work on some places for a while.
    const offset = 512 * Math.floor((random.below(places) * (SECTORS - sectors)) / 40);
    const data = new Uint8Array(length);
    random.fill(data);
    this.#flights[tag] = { offset, data };
    this.memory.write(tag * 65536, data, 0, length);
    this.block.queue(
      tag,
      BLOCK_OP.write,
      offset,
      length,
      Float64Array.of(tag * 65536),
      Uint32Array.of(length),
      0,
      1,
    );
    this.block.submit();
    if (this.block.waiting > 0) this.waits++;
  }

  /** What the next epoch carries. */
  capture(epoch: number): Write[] {
    this.disks.log.seal(epoch);
    const done = this.#done;
    this.#done = [];
    return done;
  }

  /** A standby gets everything; as after a first copy, but with nothing in flight. */
  async synchronise(): Promise<Uint8Array> {
    await this.disks.beginCopy({ nowNs: () => 0 } as DiskCopyParts, WANTED, {
      vm: VM,
      generation: 4,
    });
    while (this.block.inFlight > 0 && !this.#power.gone) {
      this.disk.poll();
      await turn();
    }
    this.block.granules.clear();
    this.block.setMode('record');
    this.#done = [];
    return this.disk.content.slice();
  }
}

/** What came of one lost host. */
interface Outcome {
  readonly power: boolean;
  readonly found: boolean;
  readonly used: boolean;
  readonly granules: number;
  readonly waits: number;
}

async function lose(seed: number): Promise<Outcome> {
  const random = new Prng(seed);
  const power = new Power(
    random.chance(0.7) ? random.between(4, random.pick([30, 90])) : undefined,
  );
  const host = new Host(random, power);
  const standbys: Committed[] = [];
  let epoch = 0;
  let id = 10;
  let present: Committed | undefined;
  /** Committed at the standby, the acknowledgement on its way. */
  let acks: [number, number][] = [];
  const calm = random.chance(0.5);
  const steps = random.between(40, 600);
  for (let step = 0; step < steps && !power.gone; step++) {
    if (present === undefined && random.chance(0.2)) {
      present = { image: await host.synchronise(), id };
      standbys.push(present);
      id += random.between(1, 5);
      acks = [];
    }
    // A guest that writes little: what it wrote is retired, and lost with the power if that was too early.
    const what = calm ? 30 + random.below(67) : random.below(100);
    if (what < 45) host.write(1 + Math.floor((40 * step) / steps));
    else if (what < 65) host.disk.poll();
    else if (what < 78) await turn();
    else if (what < 88 && present !== undefined && acks.length < 3) {
      const writes = host.capture(++epoch);
      // Sent, and maybe never there.
      if (!power.gone) {
        present.id = ++id;
        for (const { offset, data } of writes) present.image.set(data, offset);
        acks.push([epoch, id]);
      }
    } else if (what < 97) {
      const ack = acks.shift();
      if (ack !== undefined) host.disks.acked(...ack);
    } else if (present !== undefined && random.chance(0.5)) {
      // The guest goes on without it.
      host.disks.forget();
      present = undefined;
      acks = [];
    }
  }
  // Lost.
  const killed = !power.gone;
  const { content, durable } = host.disk;
  const left = killed ? content.slice() : afterPowerLoss(content, durable, random);
  const log = killed ? host.file.now : host.file.after(random);
  host.disk.held = true;
  host.dead = true;
  const { found } = await ActivityFile.open(new CrashFile(new Power(), log), crc);
  const nothing = { power: !killed, found: found !== undefined, waits: host.waits };
  if (standbys.length === 0) {
    expect(found).toBeUndefined();
    return { ...nothing, used: false, granules: 0 };
  }
  // Also one that is out of date, as an operator may order without an arbiter.
  const from = random.chance(0.8) ? standbys.at(-1)! : random.pick(standbys);
  const survivor = new Host(random, new Power());
  survivor.disk.content.set(from.image);
  survivor.disks.tookOver({ generation: 4, id: from.id }, [0]);
  for (let i = random.below(20); i >= 0; i--) survivor.write(40);
  while (survivor.block.inFlight > 0) survivor.disk.poll();
  const returned = found && {
    generation: found.generation,
    fromId: found.fromId,
    extents: [found.extents],
  };
  survivor.disks.setStorage([STORAGE.replicated], undefined, returned);
  const owner = { vm: VM, generation: 5 };
  await survivor.disks.beginCopy({ nowNs: () => 0 } as DiskCopyParts, WANTED, owner);
  const used = survivor.disks.basis === 'return';
  const { granules } = survivor.block;
  if (!used) expect(granules.count).toBe(granules.total);
  let wrong = 0;
  for (let g = 0; g < granules.total; g++) {
    if (granules.has(g)) continue;
    const [start, end] = [g * GRANULE_BYTES, (g + 1) * GRANULE_BYTES];
    const here = survivor.disk.content.subarray(start, end);
    if (Buffer.compare(here, left.subarray(start, end)) !== 0) wrong++;
  }
  expect(wrong, `seed ${seed}: granules that differ and are not marked`).toBe(0);
  return { ...nothing, used, granules: granules.count };
}

describe('a lost primary that comes back', () => {
  it('gets everything in which it may differ from the survivor, and mostly not much else', async () => {
    const all: Outcome[] = [];
    for (let seed = 1; seed <= 80; seed++) all.push(await lose(seed));
    const used = all.filter((one) => one.used);
    const mean = used.reduce((sum, { granules }) => sum + granules, 0) / used.length;
    const total = Math.ceil(DISK_BYTES / GRANULE_BYTES);
    expect(used.filter(({ power }) => power).length).toBeGreaterThan(10);
    expect(used.filter(({ power }) => !power).length).toBeGreaterThan(20);
    expect(all.filter((one) => one.found && !one.used).length).toBeGreaterThan(0);
    expect(all.reduce((sum, { waits }) => sum + waits, 0)).toBeGreaterThan(100);
    expect(mean).toBeLessThan(total * 0.9);
  }, 120_000);
});
