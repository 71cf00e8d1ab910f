import { afterEach, describe, expect, it, vi } from 'vitest';
import { VirtioDriver } from '../../test/support/virtio-driver.ts';
import { MemoryLog } from '../base/log.ts';
import { BLOCK_OP, type BlockBackend, ERRNO } from '../block/backend.ts';
import { MemoryDisk } from '../block/memory.ts';
import { PauseWhenFull } from '../block/pause-when-full.ts';
import type { AccessSize } from '../bus/io-bus.ts';
import { MemoryConsole } from '../console/memory.ts';
import { Outputs } from '../ft/shell/outputs.ts';
import { FakeKvmHost } from '../kvm/fake.ts';
import { Machine } from './machine.ts';

const RESET_CONTROL = 0xcf9;
const DISK_BYTES = 64 * 1024;
const BLK_IN = 0;
const BLK_OUT = 1;

/** A machine with one disk, whose guest the test plays. */
class Rig {
  readonly host = new FakeKvmHost();
  readonly log = new MemoryLog();
  readonly machine: Machine;
  readonly disk: MemoryDisk;
  readonly driver: VirtioDriver;

  constructor(wrap: (disk: MemoryDisk, machine: Machine) => BlockBackend = (disk) => disk) {
    const image = { name: 'bios', bytes: new Uint8Array(0x2_0000).fill(0x90) };
    const boot = { kind: 'firmware', image, order: ['disk'] } as const;
    const config = { name: 'x', memoryBytes: 2 ** 22, cpus: 1, cpu: 'host', boot };
    this.machine = new Machine(config, { host: this.host, log: this.log });
    const { memory } = this.machine;
    this.disk = new MemoryDisk(memory, { sizeBytes: DISK_BYTES });
    this.disk.late = true;
    const backend = wrap(this.disk, this.machine);
    this.machine.assemble({
      serial: [new MemoryConsole()],
      disks: [{ id: 'disk0', backend, serial: undefined }],
      nets: [],
      doorbellsOfAnyWidth: true,
    });
    const { ports, mmio } = this.machine.board;
    const select = (slot: number, offset: number): void =>
      ports.write(0xcf8, 4, (0x8000_0000 | (slot << 11) | (offset & 0xfc)) >>> 0);
    const board = {
      mmio,
      mmioWrite: (address: number, size: AccessSize, value: number) =>
        mmio.write(address, size, value),
      read(slot: number, offset: number, size: AccessSize = 4): number {
        select(slot, offset);
        return ports.read(0xcfc + (offset & 3), size);
      },
      write(slot: number, offset: number, value: number, size: AccessSize = 4): void {
        select(slot, offset);
        ports.write(0xcfc + (offset & 3), size, value);
      },
    };
    this.driver = new VirtioDriver(board as never, memory, 1);
  }

  start(): this {
    this.machine.boot();
    this.machine.start();
    this.attach();
    return this;
  }

  /** What a driver does at its start. */
  attach(): void {
    this.driver.rewind();
    this.driver.queues.length = 0;
    this.driver.probe();
    expect(this.driver.negotiate()).toBe(true);
    this.driver.setupQueue(0);
    this.driver.start();
  }

  /** Gives the device a request of one sector. @returns where its data is */
  request(type: number, sector: number, fill: number): number {
    const { driver } = this;
    const { memory } = driver;
    const header = driver.allocate(16);
    const data = driver.allocate(512);
    const status = driver.allocate(1);
    memory.writeU32(header, type);
    memory.writeU64(header + 8, sector);
    memory.fill(data, 512, fill);
    driver.queues[0]!.add([
      { address: header, length: 16 },
      { address: data, length: 512, write: type === BLK_IN },
      { address: status, length: 1, write: true },
    ]);
    driver.queues[0]!.notify();
    return data;
  }

  /** The guest asks for a reset. */
  askReset(): void {
    const vm = this.host.vms[0]!;
    vm.out(RESET_CONTROL, 1, 2);
    vm.out(RESET_CONTROL, 1, 6);
  }

  /** Whether the guest has given the device its place on the bus: a reset takes it away. */
  get placed(): boolean {
    return this.driver.board.read(1, 0x10) !== 0;
  }

  byte(address: number): number {
    return this.machine.memory.readU8(address);
  }
}

async function turns(count = 5): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise<void>((resolve) => setImmediate(resolve));
}

describe('a reset with requests at the disk', () => {
  const rigs: Rig[] = [];
  const rig = (...args: ConstructorParameters<typeof Rig>): Rig => {
    const made = new Rig(...args);
    rigs.push(made);
    return made;
  };
  afterEach(() => {
    for (const { machine } of rigs.splice(0)) machine.dispose();
    vi.useRealTimers();
  });

  it('waits for a read, so that it cannot land in the memory of the next guest', async () => {
    const it = rig().start();
    const { machine, disk, log } = it;
    disk.content.fill(0x77);
    disk.held = true;
    const at = it.request(BLK_IN, 0, 0x11);
    machine.memory.dirty.clear();
    it.askReset();
    await turns();
    expect(machine).toMatchObject({ phase: 'resetting', running: true, deaf: true });
    expect(it.byte(at)).toBe(0x11);
    disk.release();
    await turns();
    expect(machine).toMatchObject({ phase: 'running', deaf: false });
    // It landed before, is recorded for a peer, and nothing comes after.
    expect(it.byte(at)).toBe(0x77);
    expect(machine.memory.dirty.has(Math.floor(at / 4096))).toBe(true);
    machine.memory.fill(at, 512, 0x22);
    await turns();
    expect(it.byte(at)).toBe(0x22);
    expect(disk.inFlight).toBe(0);
    expect(log.lines.filter((line) => /warn|error/.test(line))).toEqual([]);
    // The next guest's driver finds a device that works.
    it.attach();
    it.request(BLK_OUT, 1, 0x33);
    await turns();
    expect(it.driver.queues[0]!.takeAll()).toHaveLength(1);
  });

  it('waits for a write, so that it cannot overtake the next guest', async () => {
    const it = rig().start();
    it.disk.held = true;
    it.request(BLK_OUT, 3, 0x44);
    it.askReset();
    await turns();
    expect(it.machine.phase).toBe('resetting');
    expect(it.disk.content[3 * 512]).toBe(0);
    it.disk.release();
    await turns();
    expect(it.machine.phase).toBe('running');
    expect(it.disk.content[3 * 512]).toBe(0x44);
  });

  it('is held up by a pause, and goes on with it', async () => {
    const it = rig().start();
    it.disk.held = true;
    it.request(BLK_OUT, 3, 0x44);
    it.askReset();
    await turns();
    it.machine.pause();
    expect(it.machine.phase).toBe('paused');
    it.disk.release();
    await turns();
    // Whoever paused it looks at its state now: nothing may change.
    expect(it.machine.phase).toBe('paused');
    expect(it.placed).toBe(true);
    it.machine.resume();
    await turns();
    expect(it.machine.phase).toBe('running');
    expect(it.placed).toBe(false);
  });

  it('travels with the state: the other side does the requests, then the reset', async () => {
    const it = rig().start();
    it.disk.held = true;
    it.request(BLK_OUT, 3, 0x44);
    it.askReset();
    await turns();
    it.machine.pause();
    const container = it.machine.saveContainer();
    it.machine.resume();
    expect(it.machine.phase).toBe('resetting');

    const there = rig();
    there.disk.held = true;
    for (const [i, { bytes }] of it.machine.memory.ranges.entries()) {
      there.machine.memory.ranges[i]!.bytes.set(bytes);
    }
    there.machine.loadContainer(container);
    there.machine.start();
    await turns();
    expect(there.machine.phase).toBe('resetting');
    there.disk.release();
    await turns();
    expect(there.disk.content[3 * 512]).toBe(0x44);
    expect(there.machine.phase).toBe('running');
    expect(there.placed).toBe(false);
  });

  it('of a protected guest waits for the epoch that covers its writes', async () => {
    let outputs!: Outputs;
    const it = rig((disk) => {
      outputs = new Outputs({ consoles: [], nets: [], disks: [disk] }, 1);
      return outputs.disks[0]!;
    }).start();
    const { tap } = outputs;
    outputs.setEvents({
      held() {},
      tapFull() {},
      blockDone: (device, tag) => tap.blockDone(device, tag),
    });
    tap.holding = true;
    it.request(BLK_OUT, 3, 0x44);
    it.request(BLK_OUT, 3, 0x55);
    it.askReset();
    await turns();
    expect(it.machine.phase).toBe('resetting');
    // A checkpoint in between.
    it.machine.pause();
    tap.seal(1);
    it.machine.saveContainer();
    it.machine.resume();
    await turns();
    expect(it.machine.phase).toBe('resetting');
    expect(it.disk.content[3 * 512]).toBe(0);
    tap.release(1);
    await turns(10);
    expect(it.machine.phase).toBe('running');
    expect(it.disk.content[3 * 512]).toBe(0x55);
  });

  it('gives up what never ends by itself', async () => {
    vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
    let full = 0;
    const it = rig((disk) => new PauseWhenFull(disk, () => full++)).start();
    it.disk.fault = (op) => (op === BLOCK_OP.write ? ERRNO.ENOSPC : undefined);
    it.request(BLK_OUT, 3, 0x44);
    await turns();
    expect(full).toBe(1);
    it.machine.reset();
    await turns();
    expect(it.machine.phase).toBe('resetting');
    vi.advanceTimersByTime(5000);
    await turns();
    expect(it.machine.phase).toBe('running');
    expect(it.log.lines.join()).toContain("disk 'disk0': the guest's reset waits for 1 requests");
  });
});
