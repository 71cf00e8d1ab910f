import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/base/clock.ts';
import { MemoryLog } from '../../src/base/log.ts';
import { NET_OFFLOAD, type NetInfo, VNET_HEADER_BYTES } from '../../src/net/backend.ts';
import { VirtioPciFunction } from '../../src/virtio/pci-function.ts';
import type { VirtioPciState } from '../../src/virtio/pci-state.ts';
import { FEATURE, featureSet, hasFeature, STATUS } from '../../src/virtio/spec.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { PciTestBoard } from '../../test/support/pci-board.ts';
import { frameTo, TestNet } from '../../test/support/test-net.ts';
import { testMemory, VirtioDriver } from '../../test/support/virtio-driver.ts';
import { CONTROL, CONTROL_MAC, CONTROL_RX, NET_CONFIG, NET_FEATURE, NET_STATUS } from './spec.ts';
import { VirtioNet, type VirtioNetState } from './virtio-net.ts';

const SLOT = 3;
const MAC = [0x52, 0x54, 0, 1, 2, 3];
const ALL_OFFLOADS = NET_OFFLOAD.csum | NET_OFFLOAD.tso4 | NET_OFFLOAD.tso6 | NET_OFFLOAD.tsoEcn;

function world(info: Partial<NetInfo> = {}) {
  const board = new PciTestBoard();
  const memory = testMemory(0x10_0000);
  const log = new MemoryLog();
  const clock = new ManualClock();
  const driver = new VirtioDriver(board, memory, SLOT);
  /** What each device of this world is wired to; a step goes to the one it is meant for. */
  const wiring = new Map<unknown, () => void>();
  return { board, memory, log, clock, driver, wiring, net: new TestNet(info) };
}
type World = ReturnType<typeof world>;

function attach(w: World) {
  w.board = new PciTestBoard(w.board.msi, w.board.irqs);
  w.driver.board = w.board;
  const { memory, clock, log, board, net } = w;
  const device = new VirtioNet({
    id: 'net0',
    memory,
    backend: net,
    clock,
    mac: Uint8Array.from(MAC),
  });
  const fn = new VirtioPciFunction({ device, memory, clock, log, doorbells: board.doorbells });
  board.bus.add(fn.pci, { slot: SLOT });
  w.wiring.set(fn, () => {
    w.board = board;
    w.driver.board = board;
    net.setHandler(device);
  });
  return { fn, device };
}

function begin(w: World, features?: ReturnType<typeof featureSet>): void {
  w.driver.probe();
  w.driver.enableMsix(4);
  const offered = w.driver.offered();
  // Without EVENT_IDX interrupts are as many as there are batches.
  const plain = { low: offered.low & ~(1 << FEATURE.eventIdx), high: offered.high };
  expect(w.driver.negotiate(features ?? { ...plain, low: plain.low >>> 0 })).toBe(true);
  for (let i = 0; i < 3; i++) w.driver.setupQueue(i);
  w.driver.start();
}

function started(info: Partial<NetInfo> = {}, features?: ReturnType<typeof featureSet>) {
  const w = world(info);
  const { fn, device } = attach(w);
  fn.resume();
  begin(w, features);
  const [rx, tx, ctrl] = w.driver.queues as [
    (typeof w.driver.queues)[0],
    (typeof w.driver.queues)[0],
    (typeof w.driver.queues)[0],
  ];
  return { ...w, fn, device, rx, tx, ctrl };
}
type Rig = ReturnType<typeof started>;

/** Sends `frame` behind a zero header, or `header`. */
function send(w: World, frame: Uint8Array, header = new Uint8Array(VNET_HEADER_BYTES)): void {
  const at = w.driver.allocate(header.length + frame.length);
  w.memory.write(at, header);
  w.memory.write(at + header.length, frame);
  w.driver.queues[1]!.add([
    { address: at, length: header.length },
    { address: at + header.length, length: frame.length },
  ]);
}

function offer(w: World, length: number): number {
  const address = w.driver.allocate(length);
  w.driver.queues[0]!.add([{ address, length, write: true }]);
  return address;
}

function read(w: World, address: number, length: number): Uint8Array {
  const out = new Uint8Array(length);
  w.memory.read(address, out);
  return out;
}

/** Performs a control command: how many answers came, and what stands where the answer belongs. */
function tryCommand(w: World, group: number, code: number, ...data: number[]): [number, number] {
  const at = w.driver.allocate(3 + data.length);
  w.memory.write(at, Uint8Array.of(group, code, ...data, 0xee));
  const ctrl = w.driver.queues[2]!;
  ctrl.add([
    { address: at, length: 2 },
    { address: at + 2, length: data.length },
    { address: at + 2 + data.length, length: 1, write: true },
  ]);
  ctrl.notify();
  return [ctrl.takeAll().length, w.memory.readU8(at + 2 + data.length)];
}

/** Performs a control command; the answer. */
function command(w: World, group: number, code: number, ...data: number[]): number {
  const [answers, answer] = tryCommand(w, group, code, ...data);
  expect(answers).toBe(1);
  return answer;
}

const u32 = (value: number) => [value & 0xff, (value >> 8) & 0xff, 0, 0];

describe('VirtioNet configuration', () => {
  it('shows address, link, MTU', () => {
    const { driver } = started({ mtu: 1400 });
    expect([0, 1, 2, 3, 4, 5].map((i) => driver.config(i, 1))).toEqual(MAC);
    expect(driver.config(NET_CONFIG.status, 2)).toBe(NET_STATUS.linkUp);
    expect(driver.config(NET_CONFIG.mtu, 2)).toBe(1400);
  });

  it('offers only the offloads that the backend has', () => {
    const none = started().driver.offered();
    const all = started({
      sendOffloads: ALL_OFFLOADS,
      receiveOffloads: ALL_OFFLOADS,
    }).driver.offered();
    const { csum, guestCsum, guestTso4, hostTso6, ctrlGuestOffloads, mtu } = NET_FEATURE;
    for (const feature of [csum, guestCsum, guestTso4, hostTso6, ctrlGuestOffloads]) {
      expect(hasFeature(none, feature)).toBe(false);
      expect(hasFeature(all, feature)).toBe(true);
    }
    expect(hasFeature(none, mtu)).toBe(false);
  });

  it('insists on the dependencies of features', () => {
    const w = world({ sendOffloads: ALL_OFFLOADS });
    attach(w).fn.resume();
    w.driver.probe();
    const { version1 } = FEATURE;
    expect(w.driver.negotiate(featureSet(version1, NET_FEATURE.hostTso4))).toBe(false);
    expect(w.driver.negotiate(featureSet(version1, NET_FEATURE.ctrlRx))).toBe(false);
    expect(w.driver.negotiate(featureSet(version1, NET_FEATURE.hostTso4, NET_FEATURE.csum))).toBe(
      true,
    );
  });

  it('tells the driver when the link changes, and keeps changes while paused for later', () => {
    const w = started();
    w.net.setLink(false);
    expect(w.driver.config(NET_CONFIG.status, 2)).toBe(0);
    expect(w.board.msi.take()).toEqual(['fee00000:40']);
    w.fn.pause();
    w.net.setLink(true);
    expect(w.board.msi.take()).toEqual([]);
    w.fn.resume();
    expect(w.driver.config(NET_CONFIG.status, 2)).toBe(NET_STATUS.linkUp);
    expect(w.board.msi.take()).toEqual(['fee00000:40']);
  });

  it('keeps the MTU that the driver was told, and refuses a network that takes less', () => {
    const w = started({ mtu: 9000 });
    w.fn.pause();
    const state = w.fn.save();
    const smaller = attach(world({ mtu: 1500 })).fn;
    expect(() => smaller.check(state)).toThrow(/net0: the guest was told an MTU of 9000, .* 1500/);
    const unknown = attach(world());
    // One that was not offered the feature cannot have agreed to it.
    expect(() => unknown.fn.check(state)).toThrow(/agreed features/);
    const larger = world({ mtu: 65521 });
    const { fn } = attach(larger);
    fn.load(state);
    expect(fn.save().device.mtu).toBe(9000);
    fn.reset();
    expect(fn.save().device.mtu).toBe(65521);
  });

  it('asks the guest to announce itself until it has', () => {
    const w = started();
    expect(w.device.announce()).toBe(true);
    expect(w.driver.config(NET_CONFIG.status, 2)).toBe(3);
    expect(w.board.msi.take()).toEqual(['fee00000:40']);
    expect(command(w, CONTROL.announce, 0)).toBe(0);
    expect(w.driver.config(NET_CONFIG.status, 2)).toBe(1);
    // State stands still while paused.
    w.fn.pause();
    w.board.msi.take();
    expect(w.device.announce()).toBe(true);
    expect([w.driver.config(NET_CONFIG.status, 2), w.board.msi.take()]).toEqual([1, []]);
    w.fn.reset();
    expect(w.device.announce()).toBe(false);
  });
});

describe('VirtioNet transmit', () => {
  it('hands frames with their headers to the backend, in order', () => {
    const w = started();
    for (let i = 0; i < 3; i++) send(w, frameTo([i, 0, 0, 0, 0, 0], 60 + i, i));
    w.tx.notify();
    expect(w.net.sent.map(({ length }) => length)).toEqual([72, 73, 74]);
    expect(w.net.sent[2]!.subarray(12)).toEqual(frameTo([2, 0, 0, 0, 0, 0], 62, 2));
    expect(w.tx.takeAll()).toHaveLength(3);
    expect(w.board.msi.take()).toEqual(['fee00000:42']);
  });

  it.each([true, false])(
    'lets large frames leave from guest memory while the backend can (to the end: %s), in order with small ones',
    (still) => {
      const w = started();
      w.net.memory = w.memory;
      w.net.room = 5;
      const sizes = [60, 9000, 9001, 61, 5000, 62, 4000];
      for (const [i, size] of sizes.entries()) send(w, frameTo(MAC, size, i));
      // One cut so fine that copying is the better way.
      const fine = frameTo(MAC, 4000, 9);
      const at = w.driver.allocate(12 + fine.length);
      w.memory.write(at + 12, fine);
      const parts = Array.from({ length: 100 }, (_, i) => ({
        address: at + 12 + i * 40,
        length: 40,
      }));
      w.tx.add([{ address: at, length: 12 }, ...parts]);
      w.tx.notify();
      expect(w.net.sent).toHaveLength(5);
      const expected = [...sizes.map((size, i) => frameTo(MAC, size, i)), fine];
      if (still) {
        w.net.becomeWritable(100);
      } else {
        // The backend looks at frames from here on (a checkpoint holds them): what waits becomes copies.
        w.net.memory = undefined;
        w.net.becomeWritable(2);
        expect(w.net.sent).toHaveLength(7);
        w.net.becomeWritable(100);
      }
      expect(w.net.sent.map((entry) => entry.subarray(12))).toEqual(expected);
      expect(w.net.tails).toBe(still ? 4 : 3);
      expect(w.tx.takeAll()).toHaveLength(8);
    },
  );

  it('leaves in the ring what the backend does not take, and goes on when it can', () => {
    const w = started();
    w.net.room = 2;
    for (let i = 0; i < 100; i++) send(w, frameTo(MAC, 60, i));
    w.tx.notify();
    expect(w.net.sent).toHaveLength(2);
    expect(w.tx.takeAll()).toHaveLength(2);
    w.tx.notify();
    expect(w.net.sent).toHaveLength(2);
    w.net.becomeWritable(50);
    expect(w.tx.takeAll()).toHaveLength(50);
    w.net.becomeWritable(1000);
    expect(w.tx.takeAll()).toHaveLength(48);
    expect(w.net.sent.map((entry) => entry.at(-1))).toEqual(
      Array.from({ length: 100 }, (_, i) => i),
    );
  });

  it('sends what was outstanding after a restore, in order', () => {
    const w = started();
    w.net.room = 1;
    for (let i = 0; i < 5; i++) send(w, frameTo(MAC, 60, i));
    w.tx.notify();
    w.fn.pause();
    const payload = w.fn.schema.encode(w.fn.save());
    const { fn } = attach(w);
    fn.load(fn.schema.decode(payload));
    w.net.room = 100;
    fn.resume();
    expect(w.net.sent.map((entry) => entry.at(-1))).toEqual([0, 1, 2, 3, 4]);
    expect(w.tx.takeAll()).toHaveLength(5);
  });

  it('shows the driver what has left while more leaves', () => {
    const w = started();
    const at = w.driver.allocate(100);
    w.memory.fill(at, 100, 0);
    for (let i = 0; i < 100; i++) w.tx.add([{ address: at, length: 100 }]);
    const take = w.net.send.bind(w.net);
    const shown: number[] = [];
    w.net.send = (batch, from) => {
      shown.push(w.tx.takeAll().length);
      return take(batch, from);
    };
    w.tx.notify();
    expect(shown).toEqual([0, 64]);
    expect(w.tx.takeAll()).toHaveLength(36);
  });

  it('lets a guest that never stops sending have a bounded turn', () => {
    const w = started();
    const at = w.driver.allocate(100);
    w.memory.fill(at, 100, 0);
    const heads = Array.from({ length: 64 }, () => w.tx.add([{ address: at, length: 100 }]));
    const take = w.net.send.bind(w.net);
    // The guest offers each chain again at once, without waiting for the used ring, a thousand times.
    let more = 1000;
    w.net.send = (batch, from) => {
      const count = take(batch, from);
      for (let i = 0; i < count && more > 0; i++, more--) w.tx.offer(heads[i]!);
      return count;
    };
    w.tx.notify();
    const first = w.net.sent.length;
    expect(first).toBeGreaterThanOrEqual(256);
    expect(first).toBeLessThanOrEqual(320);
    w.clock.advance(0);
    expect(w.net.sent.length).toBe(1064);
  });

  it('passes agreed offloads on and drops frames that ask for others', () => {
    const gso = Uint8Array.of(1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 7, 0);
    const yes = started({ sendOffloads: ALL_OFFLOADS });
    send(yes, frameTo(MAC, 4000), gso);
    yes.tx.notify();
    expect([...yes.net.sent[0]!.subarray(0, 12)]).toEqual([
      1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0,
    ]);
    const no = started();
    send(no, frameTo(MAC, 4000), gso);
    send(no, frameTo(MAC, 60));
    no.tx.notify();
    expect(no.net.sent).toHaveLength(1);
    expect(no.tx.takeAll()).toHaveLength(2);
    const bad = started({ sendOffloads: ALL_OFFLOADS });
    send(bad, frameTo(MAC, 60), Uint8Array.of(1, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0));
    send(bad, frameTo(MAC, 60), Uint8Array.of(1, 3, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0));
    bad.tx.notify();
    expect(bad.net.sent).toHaveLength(0);
    expect(bad.tx.takeAll()).toHaveLength(2);
  });

  it('drops runts and giants and says so', () => {
    const w = started();
    send(w, new Uint8Array(5));
    w.tx.add([{ address: 0x1000, length: 0x2_0000 }]);
    send(w, frameTo(MAC, 60));
    w.tx.notify();
    expect(w.net.sent).toHaveLength(1);
    expect(w.tx.takeAll()).toHaveLength(3);
    expect(w.log.lines.length).toBe(2);
  });
});

describe('VirtioNet receive', () => {
  it('reads the backend only while there are buffers', () => {
    const w = started();
    w.net.arrive(frameTo(MAC, 60, 1));
    w.net.arrive(frameTo(MAC, 61, 2));
    w.net.pump();
    expect(w.net.receiveEnabled).toBe(false);
    expect(w.net.incoming).toHaveLength(2);
    const first = offer(w, 1526);
    w.rx.notify();
    expect(w.net.receiveEnabled).toBe(true);
    w.net.pump();
    expect(w.net.receiveEnabled).toBe(false);
    expect(w.rx.takeAll()).toEqual([{ head: expect.any(Number), written: 72 }]);
    expect([...read(w, first, 12)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    expect(read(w, first + 12, 60)).toEqual(frameTo(MAC, 60, 1));
    const second = offer(w, 1526);
    w.rx.notify();
    w.net.pump();
    expect(w.rx.takeAll()[0]?.written).toBe(73);
    expect(read(w, second + 12, 61)).toEqual(frameTo(MAC, 61, 2));
    expect(w.board.msi.take()).toEqual(['fee00000:41', 'fee00000:41']);
  });

  it('spreads a frame over merged buffers, and waits until there are enough', () => {
    const w = started();
    const frame = frameTo(MAC, 2000, 7);
    const buffers = [offer(w, 1000), offer(w, 1000)];
    w.rx.notify();
    w.net.arrive(frame);
    w.net.pump();
    expect(w.rx.take()).toBeUndefined();
    buffers.push(offer(w, 1000));
    w.rx.notify();
    expect(w.rx.takeAll().map(({ written }) => written)).toEqual([1000, 1000, 12]);
    expect(w.memory.readU16(buffers[0]! + 10)).toBe(3);
    expect(read(w, buffers[0]! + 12, 988)).toEqual(frame.subarray(0, 988));
    expect(read(w, buffers[2]!, 12)).toEqual(frame.subarray(1988));
  });

  it('asks for a notification when a frame waits for more buffers, with EVENT_IDX too', () => {
    const w = world();
    attach(w).fn.resume();
    w.driver.probe();
    begin(w, w.driver.offered());
    const rx = w.driver.queues[0]!;
    offer(w, 500);
    rx.notify();
    w.net.arrive(frameTo(MAC, 1000));
    w.net.pump();
    expect(rx.availEvent).toBe(1);
  });

  it('drops a frame that no buffer can hold when buffers are not merged', () => {
    const w = started({}, featureSet(FEATURE.version1));
    offer(w, 100);
    w.rx.notify();
    w.net.arrive(frameTo(MAC, 1000));
    w.net.arrive(frameTo(MAC, 60));
    w.net.pump();
    expect(w.rx.takeAll().map(({ written }) => written)).toEqual([72]);
  });

  it('turns receive offloads on as agreed and as the driver changes them', () => {
    const w = started({ receiveOffloads: ALL_OFFLOADS });
    expect(w.net.receiveOffloads).toBe(ALL_OFFLOADS);
    const header = Uint8Array.of(1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0);
    const at = offer(w, 5000);
    w.rx.notify();
    w.net.arrive(frameTo(MAC, 4000), header);
    w.net.pump();
    expect([...read(w, at, 12)]).toEqual([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0]);
    const { guestOffloads } = CONTROL;
    expect(command(w, guestOffloads, 0, 2, 0, 0, 0, 0, 0, 0, 0)).toBe(0);
    expect(w.net.receiveOffloads).toBe(NET_OFFLOAD.csum);
    expect(command(w, guestOffloads, 0, 1, 0, 0, 0, 0, 0, 0, 0)).toBe(1);
    expect(command(w, guestOffloads, 0, 0, 0, 0, 0, 0, 0, 0, 0)).toBe(0);
    offer(w, 5000);
    w.rx.notify();
    w.net.arrive(frameTo(MAC, 4000), header);
    w.net.pump();
    expect(w.rx.takeAll()).toHaveLength(1);
    w.driver.status = 0;
    expect(w.net.receiveEnabled).toBe(false);
  });
});

describe('VirtioNet filter', () => {
  const BROADCAST = [255, 255, 255, 255, 255, 255];
  const MULTICAST = [0x33, 0x33, 0, 0, 0, 1];
  const OTHER = [0x52, 0x54, 0, 9, 9, 9];

  function passes(w: Rig, frame: Uint8Array): boolean {
    offer(w, 2000);
    w.rx.notify();
    w.net.arrive(frame);
    w.net.pump();
    const got = w.rx.takeAll().length > 0;
    return got;
  }

  it('passes everything until the driver says otherwise', () => {
    const w = started();
    expect(passes(w, frameTo(OTHER, 60))).toBe(true);
    expect(command(w, CONTROL.rx, CONTROL_RX.promisc, 0)).toBe(0);
    expect(passes(w, frameTo(OTHER, 60))).toBe(false);
    expect(passes(w, frameTo(MAC, 60))).toBe(true);
    expect(passes(w, frameTo(BROADCAST, 60))).toBe(true);
    expect(passes(w, frameTo(MULTICAST, 60))).toBe(false);
  });

  it('follows modes, tables and a new address', () => {
    const w = started();
    command(w, CONTROL.rx, CONTROL_RX.promisc, 0);
    expect(command(w, CONTROL.rx, CONTROL_RX.allMulti, 1)).toBe(0);
    expect(passes(w, frameTo(MULTICAST, 60))).toBe(true);
    command(w, CONTROL.rx, CONTROL_RX.allMulti, 0);
    const { tableSet, addrSet } = CONTROL_MAC;
    expect(command(w, CONTROL.mac, tableSet, ...u32(1), ...OTHER, ...u32(1), ...MULTICAST)).toBe(0);
    expect(passes(w, frameTo(OTHER, 60))).toBe(true);
    expect(passes(w, frameTo(MULTICAST, 60))).toBe(true);
    expect(passes(w, frameTo([0x33, 0x33, 0, 0, 0, 2], 60))).toBe(false);
    expect(command(w, CONTROL.mac, tableSet, ...u32(9), ...OTHER)).toBe(1);
    const many = Array.from({ length: 70 * 6 }, () => 0x33);
    expect(command(w, CONTROL.mac, tableSet, ...u32(0), ...u32(70), ...many)).toBe(0);
    expect(passes(w, frameTo([0x33, 0x33, 0, 0, 0, 2], 60))).toBe(true);
    expect(passes(w, frameTo(OTHER, 60))).toBe(false);
    expect(command(w, CONTROL.mac, addrSet, ...OTHER)).toBe(0);
    expect(w.driver.config(5, 1)).toBe(9);
    expect(passes(w, frameTo(OTHER, 60))).toBe(true);
    expect(command(w, CONTROL.rx, CONTROL_RX.noUni, 1)).toBe(0);
    expect(passes(w, frameTo(OTHER, 60))).toBe(false);
    expect(command(w, CONTROL.rx, CONTROL_RX.noBroadcast, 1)).toBe(0);
    expect(passes(w, frameTo(BROADCAST, 60))).toBe(false);
    w.driver.status = 0;
    begin(w);
    expect(w.driver.config(5, 1)).toBe(3);
  });

  it('filters by VLAN once that was agreed', () => {
    const tagged = (id: number) => {
      const frame = frameTo(MAC, 64);
      frame.set([0x81, 0, 0x60 | (id >> 8), id & 0xff], 12);
      return frame;
    };
    const w = started();
    expect(passes(w, tagged(5))).toBe(false);
    expect(passes(w, tagged(0))).toBe(true);
    expect(command(w, CONTROL.vlan, 0, 5, 0)).toBe(0);
    expect(passes(w, tagged(5))).toBe(true);
    expect(command(w, CONTROL.vlan, 1, 5, 0)).toBe(0);
    expect(passes(w, tagged(5))).toBe(false);
    expect(command(w, CONTROL.vlan, 0, 0, 0x10)).toBe(1);
    const plain = started({}, featureSet(FEATURE.version1));
    expect(passes(plain, tagged(5))).toBe(true);
  });

  it('answers commands it does not know, or that were not agreed on, with an error', () => {
    const w = started();
    expect(command(w, 9, 0, 1)).toBe(1);
    expect(command(w, CONTROL.rx, 9, 1)).toBe(1);
    expect(command(w, CONTROL.mac, 9, 1)).toBe(1);
    expect(command(w, CONTROL.rx, 0)).toBe(1);
    expect(command(w, CONTROL.guestOffloads, 0, 0, 0, 0, 0, 0, 0, 0, 0)).toBe(1);
    const bare = started({}, featureSet(FEATURE.version1, NET_FEATURE.ctrlVq));
    expect(command(bare, CONTROL.rx, CONTROL_RX.promisc, 0)).toBe(1);
    bare.ctrl.add([{ address: 0x1000, length: 1 }]);
    const behind = bare.driver.allocate(4);
    bare.memory.writeU8(behind + 3, 0xee);
    bare.ctrl.add([
      { address: behind, length: 2 },
      { address: behind + 3, length: 1, write: true },
    ]);
    bare.ctrl.notify();
    expect(bare.driver.status & STATUS.needsReset).toBe(STATUS.needsReset);
    // What comes behind it is not looked at.
    expect(bare.memory.readU8(behind + 3)).toBe(0xee);
  });
});

type Step =
  | { readonly do: 'send'; readonly length: number }
  | { readonly do: 'offer'; readonly length: number }
  | { readonly do: 'arrive'; readonly length: number }
  | { readonly do: 'room'; readonly length: number }
  | { readonly do: 'promisc' | 'link'; readonly on: boolean }
  | { readonly do: 'begin' };

deviceConformance<World, VirtioPciFunction<VirtioNetState>, Step>('virtio-net', {
  world,
  attach: (w) => attach(w).fn,
  steps: fc.oneof(
    fc.record({ do: fc.constant<'send'>('send'), length: fc.nat(3000) }),
    fc.record({ do: fc.constant<'offer'>('offer'), length: fc.integer({ min: 12, max: 2000 }) }),
    fc.record({ do: fc.constant<'arrive'>('arrive'), length: fc.integer({ min: 14, max: 3000 }) }),
    fc.record({ do: fc.constant<'room'>('room'), length: fc.nat(5) }),
    fc.record({ do: fc.constantFrom<'promisc' | 'link'>('promisc', 'link'), on: fc.boolean() }),
    fc.record({ do: fc.constant<'begin'>('begin') }),
  ),
  perform(w, device, step) {
    w.wiring.get(device)?.();
    if (step.do === 'begin' || w.driver.queues[0] === undefined) begin(w);
    const [rx, tx] = w.driver.queues;
    let answered: [number, number] | undefined;
    switch (step.do) {
      case 'send':
        if (tx!.free > 2) send(w, frameTo(MAC, step.length < 14 ? 14 : step.length, step.length));
        tx!.notify();
        break;
      case 'offer':
        if (rx!.free > 0) offer(w, step.length);
        rx!.notify();
        break;
      case 'arrive':
        w.net.arrive(frameTo(MAC, step.length, step.length));
        break;
      case 'room':
        w.net.becomeWritable(step.length);
        break;
      case 'promisc':
        // A device with damaged state need not answer.
        answered = tryCommand(w, CONTROL.rx, CONTROL_RX.promisc, step.on ? 1 : 0);
        break;
      case 'link':
        w.net.setLink(step.on);
        break;
      default:
    }
    w.net.pump();
    return [answered, rx!.takeAll(), tx!.takeAll(), w.driver.config(NET_CONFIG.status, 2)];
  },
  runs: 12,
  maxSteps: 24,
  observe: (w) => [w.board.msi.messages, w.net.sent.map((entry) => [entry.length, entry.at(-1)])],
  impossible: (good: VirtioPciState<VirtioNetState>) => [
    { ...good, device: { ...good.device, status: 4 } },
    { ...good, device: { ...good.device, receiveOffloads: 1 } },
    { ...good, device: { ...good.device, pending: [new Uint8Array(3)] } },
    {
      ...good,
      device: { ...good.device, filter: { ...good.device.filter, unicast: new Uint8Array(5) } },
    },
    { ...good, device: { ...good.device, filter: { ...good.device.filter, modes: 64 } } },
  ],
});

describe('VirtioNet and a guest without manners', () => {
  it('stays upright whatever is in its rings', () => {
    const pokes = fc.array(fc.tuple(fc.nat(2), fc.nat(0x1fff), fc.nat(0xff)), { maxLength: 8 });
    fc.assert(
      fc.property(fc.array(pokes, { maxLength: 12 }), (rounds) => {
        const w = started({ sendOffloads: ALL_OFFLOADS, receiveOffloads: ALL_OFFLOADS });
        for (const round of rounds) {
          if ((w.driver.status & STATUS.needsReset) !== 0) begin(w);
          for (const [queue, offset, value] of round) {
            w.memory.writeU8(w.driver.queues[queue]!.desc + offset, value);
          }
          if (w.driver.queues[1]!.free > 2) send(w, frameTo(MAC, 100));
          if (w.driver.queues[0]!.free > 0) offer(w, 1000);
          w.net.arrive(frameTo(MAC, 500));
          for (let i = 0; i < 3; i++) w.driver.notify(i);
          w.net.pump();
          w.clock.advance(1);
        }
        expect(w.fn.running || (w.driver.status & STATUS.needsReset) !== 0).toBe(true);
      }),
    );
  });
});
