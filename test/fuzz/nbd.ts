/**
 * The fuzzer of the NBD client: a server that shakes hands in every way, soundly or not, and answers requests soundly, out
 * of order, twice, with what was not asked, in part, or not at all. What must hold: opening ends with a disk or an error in
 * one line; every request completes once, and when the server behaves again, without error and with the server's data;
 * memory that no read names stays as it is; little is sent ahead and nothing is thrown.
 */
import { AssertionError, assert } from '../../src/base/assert.ts';
import { VmmError } from '../../src/base/error.ts';
import { silentLog } from '../../src/base/log.ts';
import { Prng } from '../../src/base/prng.ts';
import { BLOCK_OP, type BlockOp } from '../../src/block/backend.ts';
import { type NbdDisk, openNbd } from '../../src/block/nbd.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import type { Coverage } from './coverage.ts';
import { mutated, PeerSocket, turns } from './peer-socket.ts';

const DISK_BYTES = 0x4_0000;
const MEMORY_BYTES = 0x2_0000;
const REQUESTS = 8;
/** Memory of each request, and a page between two that nobody may touch. */
const SLOT_BYTES = MEMORY_BYTES / REQUESTS;
const DATA_BYTES = SLOT_BYTES - 4096;
const CANARY = 0xc5;
const FLAGS = 0x6d;
/** How an option begins, and how a request does. */
const OPTION_START = Buffer.from('IHAV').readUInt32BE();
const REQUEST_START = 0x25609513;
/** Turns of the loop within which something must have happened. */
const PATIENCE = 4000;

/** Each request has a part of the disk for itself, so that what it reads is known. */
const PART_BYTES = DISK_BYTES / REQUESTS;
const CONTENT = Uint8Array.from({ length: DISK_BYTES }, (_, i) => (i * 7) ^ (i >> 8));

/** A planted mistake: the server's data is taken without the check of what it answers. */
export type NbdPlant = 'wrong data';

class Server {
  readonly random: Prng;
  readonly content = CONTENT.slice();
  readonly seen: Coverage;
  /** Connections that misbehave before one behaves. */
  bad: number;
  plant: NbdPlant | undefined;
  connections = 0;
  #peer: PeerSocket | undefined;
  #phase: 'flags' | 'options' | 'transmission' = 'flags';
  #sound = true;
  /** Some of what was said on this connection was not what was meant. */
  #damaged = false;
  #at = 0;
  /** Replies that wait, for other orders. */
  #waiting: Uint8Array[] = [];

  constructor(random: Prng, seen: Coverage) {
    this.random = random;
    this.seen = seen;
    this.bad = random.below(4);
  }

  readonly dial = () => {
    this.#peer = new PeerSocket();
    this.#phase = 'flags';
    this.#at = 0;
    this.#damaged = false;
    this.#waiting = [];
    this.#sound = this.connections >= this.bad;
    this.connections++;
    const hello = Buffer.alloc(18);
    hello.write('NBDMAGICIHAVEOPT');
    hello.writeUInt16BE(this.#sound ? 3 : this.random.pick([3, 3, 3, 1, 2, 0]), 16);
    this.#say(hello, 0.1);
    return this.#peer.socket;
  };

  /** The first connection behaves or does not; only later ones may be as they like. */
  get peer(): PeerSocket | undefined {
    return this.#peer;
  }

  #say(bytes: Uint8Array, damage: number): void {
    const { random } = this;
    if (this.#sound || !random.chance(damage)) {
      this.#peer!.say(random, bytes);
      return;
    }
    this.seen.hit('damaged answer');
    this.#damaged = true;
    this.#peer!.say(random, mutated(random, bytes));
    // What was cut off would be waited for.
    if (random.chance(0.5)) this.#peer!.hangUp(random);
  }

  /** Takes what has come and answers; once a turn. */
  work(): void {
    const peer = this.#peer;
    if (peer === undefined || peer.destroyed) return;
    for (;;) {
      const bytes = peer.received.subarray(this.#at);
      let used = 0;
      if (this.#phase === 'transmission' && this.#damaged && bytes.length >= 4) {
        // A damaged answer can say that NBD_OPT_GO is unknown: the client then asks by NBD_OPT_EXPORT_NAME.
        if (bytes.readUInt32BE(0) === OPTION_START) this.#phase = 'options';
      }
      if (this.#phase === 'flags' && bytes.length >= 4) {
        used = 4;
        this.#phase = 'options';
      } else if (this.#phase === 'options' && bytes.length >= 16) {
        const length = bytes.readUInt32BE(12);
        assert(length < 8192, 'an option is short');
        if (bytes.length < 16 + length) return;
        used = 16 + length;
        this.#option(bytes.readUInt32BE(8));
      } else if (this.#phase === 'transmission' && bytes.length >= 28) {
        assert(bytes.readUInt32BE(0) === REQUEST_START, 'a request');
        const type = bytes.readUInt16BE(6);
        const length = bytes.readUInt32BE(24);
        const data = type === 1 ? length : 0;
        if (bytes.length < 28 + data) break;
        used = 28 + data;
        this.#request(bytes.subarray(0, used), type, Number(bytes.readBigUInt64BE(16)), length);
      }
      if (used === 0) break;
      this.#at += used;
    }
    if (!this.#sound && this.random.chance(0.05)) {
      this.seen.hit('hung up');
      peer.hangUp(this.random);
      return;
    }
    while (this.#waiting.length > 0 && (this.#sound || this.random.chance(0.8))) {
      const next = this.random.below(this.#waiting.length);
      this.#say(this.#waiting.splice(next, 1)[0]!, 0.1);
    }
  }

  #option(option: number): void {
    const { random } = this;
    if (option === 1) {
      const answer = Buffer.alloc(10 + (random.chance(0.5) ? 0 : 124));
      answer.writeBigUInt64BE(BigInt(DISK_BYTES));
      answer.writeUInt16BE(FLAGS, 8);
      this.#phase = 'transmission';
      this.#say(answer, 0.3);
      return;
    }
    const reply = (type: number, payload: Buffer): Buffer => {
      const header = Buffer.alloc(20);
      header.writeBigUInt64BE(0x3e889045565a9n, 0);
      header.writeUInt32BE(option, 8);
      header.writeUInt32BE(type >>> 0, 12);
      header.writeUInt32BE(payload.length, 16);
      return Buffer.concat([header, payload]);
    };
    if (!this.#sound && random.chance(0.15)) {
      const error = random.pick([1, 2, 5, 6, 9, 0x7fff_ffff]);
      this.#say(reply(0x8000_0000 + error, Buffer.from('no\n\u001b[1m')), 0.3);
      return;
    }
    const info = Buffer.alloc(12);
    const size = this.#sound ? DISK_BYTES : random.pick([DISK_BYTES, DISK_BYTES, 0, 511, 2 ** 40]);
    info.writeBigUInt64BE(BigInt(size), 2);
    info.writeUInt16BE(FLAGS, 10);
    const blocks = Buffer.alloc(14);
    const sizes = [1, 4096, 65_536];
    if (!this.#sound && random.chance(0.2)) sizes[random.below(3)] = random.u32();
    blocks.writeUInt16BE(3, 0);
    for (const [i, bytes] of sizes.entries()) blocks.writeUInt32BE(bytes, 2 + 4 * i);
    const parts = [reply(3, info), reply(3, blocks), reply(1, Buffer.alloc(0))];
    if (!this.#sound && random.chance(0.2)) parts.splice(random.below(3), random.below(2));
    this.#phase = 'transmission';
    this.#say(Buffer.concat(parts), 0.3);
  }

  #request(request: Buffer, type: number, offset: number, length: number): void {
    const { random, content } = this;
    assert(offset + length <= DISK_BYTES, 'a request is of this disk');
    assert([0, 1, 3, 4, 6].includes(type) || type === 2, `command ${type}`);
    let payload: Uint8Array = new Uint8Array(0);
    if (type === 0) payload = content.slice(offset, offset + length);
    else if (type === 1) content.set(request.subarray(28), offset);
    else if (type === 4 || type === 6) content.fill(0, offset, offset + length);
    if (type === 0 && this.plant === 'wrong data') payload = payload.map((byte) => byte ^ 1);
    const header = Buffer.alloc(16);
    header.writeUInt32BE(0x67446698, 0);
    request.copy(header, 8, 8, 16);
    let answer = Buffer.concat([header, payload]);
    if (!this.#sound) {
      switch (random.below(14)) {
        case 0:
          header.writeUInt32BE(random.pick([5, 28, 108, random.u32()]), 4);
          answer = Buffer.from(header);
          this.seen.hit('error answer');
          break;
        case 1:
          header[random.between(8, 15)]! ^= 1 << random.below(8);
          answer = Buffer.from(header);
          this.seen.hit('another cookie');
          break;
        case 2:
          this.#waiting.push(answer);
          this.seen.hit('answered twice');
          break;
        case 3:
          this.seen.hit('not answered');
          return;
        default:
      }
    }
    this.#waiting.push(answer);
  }
}

interface Request {
  readonly op: BlockOp;
  readonly offset: number;
  readonly length: number;
}

/** One disk: opened, used, closed. */
async function useDisk(random: Prng, seen: Coverage, plant?: NbdPlant): Promise<void> {
  const server = new Server(random, seen);
  server.plant = plant;
  const memory = new GuestMemory([{ base: 0, buffer: new ArrayBuffer(MEMORY_BYTES) }]);
  memory.fill(0, MEMORY_BYTES, CANARY);
  const opening = openNbd(memory, silentLog, {
    name: 'nbd://fuzz',
    address: { target: { path: '/nowhere' }, exportName: random.pick(['', 'a', 'x'.repeat(300)]) },
    dial: server.dial,
    maxRequests: REQUESTS,
    failAfterMs: Number.POSITIVE_INFINITY,
    retryMs: 0.1,
    logBytes: random.pick([8192, 65_536]),
  });
  let disk: NbdDisk | undefined;
  let refused: unknown;
  opening.then(
    (found) => {
      disk = found;
    },
    (error: unknown) => {
      refused = error;
    },
  );
  for (let turn = 0; disk === undefined && refused === undefined; turn++) {
    await turns();
    server.work();
    // Half an answer is all there is.
    if (turn > 12) server.peer?.hangUp(random);
    if (turn > PATIENCE) throw new AssertionError('opening does not end');
  }
  if (disk === undefined) {
    if (!(refused instanceof VmmError)) throw refused;
    assert(/^[^\n]+$/.test(refused.message), `one line: ${JSON.stringify(refused.message)}`);
    assert(!/undefined|NaN|\[object/.test(refused.message), refused.message);
    seen.hit(`refused ${refused.code}`);
    return;
  }
  seen.hit('opened');
  const { sizeBytes, blockSizeBytes, volatileCache, discard, writeZeroes } = disk.info;
  const asServed = sizeBytes === DISK_BYTES && volatileCache && discard && writeZeroes;
  // A server that is another later is not connected to again.
  if (!asServed || blockSizeBytes > 4096) {
    seen.hit('another size');
    await end(random, server, disk);
    return;
  }
  await drive(random, seen, server, memory, disk);
}

async function drive(
  random: Prng,
  seen: Coverage,
  server: Server,
  memory: GuestMemory,
  disk: NbdDisk,
): Promise<void> {
  const requests: (Request | undefined)[] = new Array(REQUESTS).fill(undefined);
  let failure: unknown;
  // Who lies about headers may lie about data.
  const lies = server.bad > 0;
  disk.setHandler({
    complete(tag, result) {
      const request = requests[tag];
      requests[tag] = undefined;
      seen.hit(result === 0 ? 'done' : 'failed');
      try {
        assert(request !== undefined, `tag ${tag} completes once`);
        if (result === 0 && !lies) checkRead(memory, server, tag, request);
      } catch (error) {
        // A callback has nobody to throw to.
        failure ??= error;
      }
    },
    batchEnd() {},
  });
  for (let batch = random.between(1, 6); batch > 0; batch--) {
    for (let tag = 0; tag < REQUESTS; tag++) {
      if (requests[tag] === undefined && random.chance(0.5)) {
        requests[tag] = queue(random, disk, memory, tag);
      }
    }
    disk.submit();
    for (let i = random.below(6); i > 0; i--) {
      await turns();
      server.work();
    }
  }
  let idle = 0;
  for (let turn = 0; disk.inFlight > 0; turn++) {
    await turns();
    server.work();
    // A peer that says no more hangs up in the end; the next one may behave.
    if (++idle > 30 && server.connections <= server.bad) {
      idle = 0;
      server.peer?.hangUp(random);
    }
    if (turn > PATIENCE) throw new AssertionError(`${disk.inFlight} requests do not complete`);
    if (turn % 50 === 49) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  if (server.connections > 1) seen.hit('connected again');
  if (failure !== undefined) throw failure;
  checkCanaries(memory);
  await end(random, server, disk);
}

async function end(random: Prng, server: Server, disk: NbdDisk): Promise<void> {
  const closing = disk.close();
  await turns(3);
  server.peer?.hangUp(random);
  await closing;
}

function queue(random: Prng, disk: NbdDisk, memory: GuestMemory, tag: number): Request {
  const op = random.pick([BLOCK_OP.read, BLOCK_OP.read, ...Object.values(BLOCK_OP)]);
  const hasData = op === BLOCK_OP.read || op === BLOCK_OP.write;
  const block = disk.info.blockSizeBytes;
  const flush = op === BLOCK_OP.flush;
  const length = flush ? 0 : block * random.between(1, Math.floor(DATA_BYTES / block));
  const places = Math.floor((PART_BYTES - length) / block) + 1;
  const offset = flush ? 0 : tag * PART_BYTES + block * random.below(places);
  const base = tag * SLOT_BYTES;
  const addresses = new Float64Array(3);
  const lengths = new Uint32Array(3);
  let count = 0;
  if (hasData) {
    memory.fill(base, DATA_BYTES, tag);
    const cut = random.below(length + 1);
    addresses.set([base, base + cut, base]);
    lengths.set([cut, length - cut, 0]);
    count = random.between(2, 3);
  }
  disk.queue(tag, op, offset, length, addresses, lengths, 0, count);
  return { op, offset, length };
}

function checkRead(memory: GuestMemory, server: Server, tag: number, request: Request): void {
  if (request.op !== BLOCK_OP.read) return;
  const read = new Uint8Array(request.length);
  memory.read(tag * SLOT_BYTES, read);
  const kept = server.content.subarray(request.offset, request.offset + request.length);
  assert(Buffer.compare(read, kept) === 0, 'a read gives what the server holds');
}

function checkCanaries(memory: GuestMemory): void {
  const { bytes } = memory.ranges[0]!;
  for (let tag = 0; tag < REQUESTS; tag++) {
    const start = tag * SLOT_BYTES + DATA_BYTES;
    const untouched = bytes.subarray(start, start + 4096).every((byte) => byte === CANARY);
    assert(untouched, `memory behind request ${tag}`);
  }
}

/** Runs `rounds` disks from `seed`. */
export async function fuzzNbd(
  seed: number,
  rounds: number,
  seen: Coverage,
  plant?: NbdPlant,
): Promise<void> {
  const random = new Prng(seed);
  // The client's own timers do not keep a process.
  const alive = setInterval(() => {}, 1000);
  try {
    for (let round = 0; round < rounds; round++) {
      try {
        await useDisk(random.fork(), seen, plant);
      } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        throw new Error(`seed ${seed}, disk ${round}: ${why}`, { cause: error });
      }
      seen.cases++;
    }
  } finally {
    clearInterval(alive);
  }
}
