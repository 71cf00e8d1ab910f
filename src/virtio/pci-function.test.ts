import { describe, expect, it } from 'vitest';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import { testMemory, VirtioDriver } from '../../test/support/virtio-driver.ts';
import { ManualClock } from '../base/clock.ts';
import { MemoryLog } from '../base/log.ts';
import type { AccessSize } from '../bus/io-bus.ts';
import { PCI_CAP } from '../pci/spec.ts';
import { type Codec, struct, u32 } from '../snapshot/codec.ts';
import { Chain } from './chain.ts';
import type { VirtioDevice, VirtioTransport } from './device.ts';
import { VirtioPciFunction } from './pci-function.ts';
import { CAP_TYPE, COMMON, FEATURE, featureSet, hasFeature, STATUS } from './spec.ts';

interface EchoState {
  served: number;
}

/** Writes the number of requests served so far into each request. */
class Echo implements VirtioDevice<EchoState> {
  readonly id = 'echo';
  readonly kind = 'virtio-echo';
  readonly version = 1;
  readonly codec: Codec<EchoState> = struct<EchoState>({ served: u32 });
  readonly type = 4;
  readonly classCode = 0x00ff00;
  readonly queueSizes = [16, 8];
  readonly features = featureSet(3, 5);
  readonly config = Uint8Array.of(1, 2, 3, 4, 5, 6);
  readonly calls: string[] = [];
  quiet = true;
  transport!: VirtioTransport;
  #served = 0;
  readonly #chain = new Chain();

  attach(transport: VirtioTransport): void {
    this.transport = transport;
  }
  accepts(features: { low: number; high: number }): boolean {
    return !hasFeature(features, 5) || hasFeature(features, 3);
  }
  configWrite(offset: number, size: AccessSize, value: number): void {
    this.calls.push(`config ${offset} ${size} ${value}`);
  }
  start(): void {
    this.calls.push('start');
  }
  notify(index: number): void {
    this.calls.push(`notify ${index}`);
    const queue = this.transport.queues[index]!;
    do {
      while (queue.pop(this.#chain)) queue.push(this.#chain.head, this.#served++);
    } while (queue.enableNotify());
    this.transport.publish(index);
  }
  stop(): boolean {
    this.calls.push('stop');
    return this.quiet;
  }
  reset(): void {
    this.#served = 0;
  }
  pause(): void {}
  resume(): void {}
  save(): EchoState {
    return { served: this.#served };
  }
  check(): void {}
  load(state: EchoState): void {
    this.#served = state.served;
  }
}

const SLOT = 2;

function build(memory = testMemory(), driver?: VirtioDriver) {
  const board = new PciTestBoard();
  const log = new MemoryLog();
  const clock = new ManualClock();
  const echo = new Echo();
  const fn = new VirtioPciFunction({
    device: echo,
    memory,
    clock,
    log,
    doorbells: board.doorbells,
  });
  board.bus.add(fn.pci, { slot: SLOT });
  const guest = driver ?? new VirtioDriver(board, memory, SLOT);
  guest.board = board;
  return { memory, board, log, echo, fn, guest };
}

function started(options: { msix?: boolean } = {}) {
  const rig = build();
  rig.fn.resume();
  rig.guest.probe();
  if (options.msix !== false) rig.guest.enableMsix(3);
  expect(rig.guest.negotiate()).toBe(true);
  rig.guest.setupQueue(0);
  rig.guest.setupQueue(1);
  rig.guest.start();
  rig.echo.calls.length = 0;
  return rig;
}

const one = [{ address: 0x1000, length: 4, write: true }];

describe('discovery', () => {
  it('has modern ids, and a capability for every structure', () => {
    const { guest, board, fn } = build();
    fn.resume();
    guest.probe();
    expect(board.read(SLOT, 0)).toBe(0x10441af4);
    expect(board.read(SLOT, 8, 1)).toBeGreaterThan(0);
    const types: number[] = [];
    for (let at = board.read(SLOT, 0x34, 1); at !== 0; at = board.read(SLOT, at + 1, 1)) {
      if (board.read(SLOT, at, 1) === PCI_CAP.vendor) types.push(board.read(SLOT, at + 3, 1));
    }
    expect(types.sort()).toEqual(Object.values(CAP_TYPE).sort());
    expect(guest.common(COMMON.numQueues, 2)).toBe(2);
  });

  it('shows each queue, and size 0 for one that does not exist', () => {
    const { guest, fn } = build();
    fn.resume();
    guest.probe();
    const sizes = [0, 1, 2, 0xffff].map((index) => {
      guest.setCommon(COMMON.queueSelect, 2, index);
      return guest.common(COMMON.queueSize, 2);
    });
    expect(sizes).toEqual([16, 8, 0, 0]);
    expect(guest.common(COMMON.queueEnable, 2)).toBe(0);
  });

  it('reads device configuration at every size, zero behind its end', () => {
    const { guest, echo, fn } = build();
    fn.resume();
    guest.probe();
    expect(guest.config(0, 4)).toBe(0x04030201);
    expect(guest.config(3, 1)).toBe(4);
    expect(guest.config(4, 4)).toBe(0x0605);
    guest.setConfig(2, 2, 0x1234);
    guest.setConfig(4, 4, 1);
    expect(echo.calls).toEqual(['config 2 2 4660']);
  });

  it('can be reached through the window in configuration space (4.1.4.9)', () => {
    const { guest, board, fn } = build();
    fn.resume();
    guest.probe();
    let at = board.read(SLOT, 0x34, 1);
    while (board.read(SLOT, at + 3, 1) !== CAP_TYPE.pciAccess) at = board.read(SLOT, at + 1, 1);
    board.write(SLOT, at + 4, 0, 1);
    board.write(SLOT, at + 8, COMMON.numQueues);
    board.write(SLOT, at + 12, 2);
    expect(board.read(SLOT, at + 16, 2)).toBe(2);
    board.write(SLOT, at + 8, COMMON.status);
    board.write(SLOT, at + 12, 1);
    board.write(SLOT, at + 16, STATUS.acknowledge, 1);
    expect(guest.status).toBe(STATUS.acknowledge);
    board.write(SLOT, at + 8, 0xffff_fff0);
    board.write(SLOT, at + 16, 0, 1);
    expect(guest.status).toBe(STATUS.acknowledge);
  });
});

describe('negotiation', () => {
  it('insists on VERSION_1, on offered features, and on what the device accepts', () => {
    const { guest, fn, log } = build();
    fn.resume();
    guest.probe();
    const version1 = FEATURE.version1;
    expect(guest.negotiate(featureSet(3))).toBe(false);
    expect(guest.negotiate(featureSet(version1, 4))).toBe(false);
    expect(guest.negotiate(featureSet(version1, 5))).toBe(false);
    expect(guest.negotiate(featureSet(version1, 45))).toBe(false);
    expect(log.lines.length).toBeGreaterThan(0);
    expect(guest.negotiate(featureSet(version1, 3, 5))).toBe(true);
    guest.setCommon(COMMON.driverFeatureSelect, 4, 0);
    guest.setCommon(COMMON.driverFeature, 4, 0);
    expect(guest.common(COMMON.driverFeature, 4)).toBe((1 << 3) | (1 << 5));
    guest.setCommon(COMMON.driverFeatureSelect, 4, 7);
    expect(guest.common(COMMON.driverFeature, 4)).toBe(0);
  });

  it('keeps DRIVER_OK off without FEATURES_OK, and queues off before', () => {
    const { guest, fn, echo } = build();
    fn.resume();
    guest.probe();
    guest.status = STATUS.acknowledge | STATUS.driver | STATUS.driverOk;
    expect(guest.status).toBe(STATUS.acknowledge | STATUS.driver);
    guest.setupQueue(0);
    expect(guest.common(COMMON.queueEnable, 2)).toBe(0);
    expect(echo.calls).toEqual([]);
  });

  it('refuses bad queue registers, and changes while enabled', () => {
    const { guest } = started();
    guest.setCommon(COMMON.queueSelect, 2, 0);
    guest.setCommon(COMMON.queueSize, 2, 8);
    expect(guest.common(COMMON.queueSize, 2)).toBe(16);
    guest.status = 0;
    for (const size of [0, 3, 32]) guest.setCommon(COMMON.queueSize, 2, size);
    expect(guest.common(COMMON.queueSize, 2)).toBe(16);
    guest.setCommon(COMMON.queueVector, 2, 3);
    expect(guest.common(COMMON.queueVector, 2)).toBe(0xffff);
    guest.setCommon(COMMON.queueVector, 2, 2);
    expect(guest.common(COMMON.queueVector, 2)).toBe(2);
    guest.setCommon(COMMON.queueDesc, 4, 0xffff_fff0);
    guest.setCommon(COMMON.queueDesc + 4, 4, 0xffff_ffff);
    expect(guest.common(COMMON.queueDesc, 4)).toBe(0xffff_fff0);
    expect(guest.common(COMMON.queueDesc + 4, 4)).toBe(0xf_ffff);
  });

  it('asks for a reset when a queue is enabled in a bad place', () => {
    const { guest, fn } = build();
    fn.resume();
    guest.probe();
    guest.negotiate();
    guest.setCommon(COMMON.queueSelect, 2, 0);
    guest.setCommon(COMMON.queueDesc, 4, 0xdead_bee0);
    guest.setCommon(COMMON.queueEnable, 2, 1);
    expect(guest.status & STATUS.needsReset).toBe(STATUS.needsReset);
    guest.status = 0;
    expect(guest.status).toBe(0);
  });
});

describe('doorbells and interrupts', () => {
  it('rings by ioeventfd where there is one, and by plain writes otherwise', () => {
    const { guest, board, echo } = started();
    expect(board.doorbells.byAddress.size).toBe(2);
    guest.notify(1);
    expect(echo.calls).toEqual(['notify 1']);
    const address = [...board.doorbells.byAddress.keys()][0]!;
    board.mmio.write(address, 4, 0);
    board.mmio.write(address, 1, 0);
    board.mmio.write(address + 4 * 7, 4, 0);
    expect(echo.calls).toEqual(['notify 1', 'notify 0', 'notify 0']);
  });

  it('moves doorbells with the BAR and drops them with the driver', () => {
    const { guest, board } = started();
    board.write(SLOT, 0x10, 0xe800_0000);
    expect(Math.min(...board.doorbells.byAddress.keys())).toBe(0xe800_3000);
    board.write(SLOT, 4, 4, 2);
    expect(board.doorbells.byAddress.size).toBe(0);
    board.write(SLOT, 4, 6, 2);
    expect(board.doorbells.byAddress.size).toBe(2);
    guest.probe();
    guest.status = 0;
    expect(board.doorbells.byAddress.size).toBe(0);
  });

  it('uses the vector of each queue', () => {
    const { guest, board } = started();
    guest.queues[0]!.add(one);
    guest.queues[0]!.notify();
    guest.queues[1]!.add(one);
    guest.queues[1]!.notify();
    expect(board.msi.take()).toEqual(['fee00000:41', 'fee00000:42']);
    guest.setCommon(COMMON.queueSelect, 2, 0);
    guest.setCommon(COMMON.queueVector, 2, 0xffff);
    guest.queues[0]!.add(one);
    guest.queues[0]!.notify();
    expect(board.msi.take()).toEqual([]);
  });

  it('uses INTx and ISR without MSI-X', () => {
    const { guest, board, echo } = started({ msix: false });
    const irq = board.irqs[(SLOT + 3) & 3]!;
    guest.queues[0]!.add(one);
    guest.queues[0]!.notify();
    expect(irq.level).toBe(true);
    echo.transport.configChanged();
    expect(guest.isr()).toBe(3);
    expect(irq.level).toBe(false);
    expect(guest.isr()).toBe(0);
  });

  it('tells of configuration changes with a new generation', () => {
    const { guest, board, echo } = started();
    const before = guest.common(COMMON.configGeneration, 1);
    echo.transport.configChanged();
    expect(board.msi.take()).toEqual(['fee00000:40']);
    expect(guest.common(COMMON.configGeneration, 1)).not.toBe(before);
  });

  it('waits for bus mastering', () => {
    const { guest, board, echo } = started();
    board.write(SLOT, 4, 2, 2);
    guest.queues[0]!.add(one);
    guest.queues[0]!.notify();
    expect(echo.calls).toEqual([]);
    board.write(SLOT, 4, 6, 2);
    expect(guest.queues[0]!.takeAll()).toHaveLength(1);
  });
});

describe('faults and resets', () => {
  it('sets NEEDS_RESET, interrupts, and goes silent until the driver resets', () => {
    const { guest, board, echo, log } = started();
    guest.queues[0]!.offer(99);
    guest.queues[0]!.notify();
    expect(guest.status & STATUS.needsReset).toBe(STATUS.needsReset);
    expect(board.msi.take()).toEqual(['fee00000:40']);
    expect(log.lines.join()).toMatch(/queue 0: head 99/);
    echo.calls.length = 0;
    guest.queues[1]!.add(one);
    guest.queues[1]!.notify();
    expect(echo.calls).toEqual([]);
    expect(guest.negotiate()).toBe(true);
    guest.setupQueue(0).add(one);
    guest.start();
    expect(guest.queues[0]!.takeAll()).toHaveLength(1);
  });

  it('serves what was made available before DRIVER_OK', () => {
    const { guest, fn, echo } = build();
    fn.resume();
    guest.probe();
    guest.negotiate();
    guest.setupQueue(0).add(one);
    guest.queues[0]!.notify();
    expect(echo.calls).toEqual([]);
    guest.start();
    expect(guest.queues[0]!.takeAll()).toHaveLength(1);
  });

  it('shows the end of a reset only when the device is quiet', () => {
    const { guest, echo } = started();
    echo.quiet = false;
    guest.status = 0;
    expect(guest.status).not.toBe(0);
    guest.setCommon(COMMON.queueSelect, 2, 1);
    echo.transport.stopped();
    expect(guest.status).toBe(0);
    guest.setCommon(COMMON.queueSelect, 2, 0);
    expect(guest.common(COMMON.queueEnable, 2)).toBe(0);
  });

  it('reads back what was written at odd sizes, and ignores such writes', () => {
    const { guest } = started();
    const status = guest.status;
    guest.setCommon(COMMON.status, 4, 0);
    guest.setCommon(COMMON.queueSize, 1, 0);
    expect(guest.status).toBe(status);
    expect(guest.common(COMMON.status, 4) & 0xff).toBe(status);
    expect(guest.common(0x13, 1)).toBe(0);
  });
});

describe('saved state', () => {
  it('is taken over by a fresh device, doorbells and vectors included', () => {
    const first = started();
    first.guest.queues[0]!.add(one);
    first.guest.queues[0]!.notify();
    first.fn.pause();
    const payload = first.fn.schema.encode(first.fn.save());
    const second = build(first.memory, first.guest);
    second.fn.load(second.fn.schema.decode(payload));
    expect(second.fn.schema.encode(second.fn.save())).toEqual(payload);
    second.fn.resume();
    expect(second.board.doorbells.byAddress.size).toBe(2);
    second.guest.queues[0]!.setUsedEvent(1);
    second.guest.queues[0]!.add(one);
    second.guest.queues[0]!.notify();
    expect(second.guest.queues[0]!.takeAll().map(({ written }) => written)).toEqual([0, 1]);
    expect(second.board.msi.take()).toEqual(['fee00000:41']);
  });

  it('looks at all queues after a restore, whether or not a doorbell came', () => {
    const first = started();
    first.fn.pause();
    first.guest.queues[1]!.add(one);
    const second = build(first.memory, first.guest);
    second.fn.load(second.fn.schema.decode(first.fn.schema.encode(first.fn.save())));
    second.fn.resume();
    expect(second.guest.queues[1]!.takeAll()).toHaveLength(1);
  });

  it('finishes a reset that was under way', () => {
    const first = started();
    first.echo.quiet = false;
    first.guest.status = 0;
    first.fn.pause();
    const second = build(first.memory, first.guest);
    second.fn.load(first.fn.save());
    expect(second.guest.status).not.toBe(0);
    second.fn.resume();
    expect(second.guest.status).toBe(0);
  });
});
