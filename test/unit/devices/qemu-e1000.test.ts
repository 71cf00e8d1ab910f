/**
 * The same driver on the e1000 here and on QEMU's: the frames that leave must be equal, and what registers read. QEMU
 * runs stopped, takes the accesses on its qtest interface and writes what leaves to a capture file. Receiving is not
 * compared: a stopped QEMU takes no frame. Skipped, with the reason, without QEMU.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { E1000 } from '../../../devices/e1000/e1000.ts';
import { ManualClock } from '../../../src/base/clock.ts';
import { silentLog } from '../../../src/base/log.ts';
import type { IoRegion } from '../../../src/bus/io-bus.ts';
import { GuestMemory } from '../../../src/memory/guest-memory.ts';
import {
  E1000Driver,
  LAYOUT,
  E1000_REG as R,
  ScriptedNet,
  TX,
} from '../../support/e1000-driver.ts';
import { type PacketOptions, packet, payload } from '../../support/e1000-packets.ts';

const QEMU = 'qemu-system-x86_64';
const missing = spawnSync(QEMU, ['--version']).status !== 0;
if (missing) {
  process.stdout.write(`skipped: the comparison of the e1000 with QEMU needs ${QEMU}\n`);
}

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);
const BAR = 0xfebc0000;
const SLOT = 3;

/** The driver's memory; every write is also a line for QEMU. */
class RecordedMemory extends GuestMemory {
  readonly lines: string[];

  constructor(buffer: ArrayBuffer, lines: string[]) {
    super([{ base: 0, buffer }]);
    this.lines = lines;
  }

  override writeU32(address: number, value: number): void {
    this.lines.push(`writel ${address} ${value}`);
    super.writeU32(address, value);
  }

  override writeU64(address: number, value: number): void {
    this.lines.push(`writeq ${address} ${value}`);
    super.writeU64(address, value);
  }

  override write(address: number, source: Uint8Array): boolean {
    const text = Buffer.from(source).toString('hex');
    this.lines.push(`write ${address} ${source.length} 0x${text}`);
    return super.write(address, source);
  }
}

/** What left a card, and what its registers read. */
interface Outcome {
  readonly frames: string[];
  readonly reads: number[];
}

/** Runs `script` on the card here. @returns the accesses too, as lines for QEMU */
function here(script: (driver: E1000Driver) => void): Outcome & { readonly lines: string[] } {
  const buffer = new ArrayBuffer(LAYOUT.bytes);
  const memory = new GuestMemory([{ base: 0, buffer }]);
  const net = new ScriptedNet();
  const options = { id: 'here', mac: MAC, memory, backend: net, clock: new ManualClock() };
  const chip = new E1000({ ...options, irq: { set() {} }, log: silentLog });
  chip.resume();
  const lines: string[] = [];
  const reads: number[] = [];
  const recorder: IoRegion = {
    name: 'recorder',
    read(offset, size) {
      const value = chip.mmio.read(offset, size) >>> 0;
      lines.push(`readl ${BAR + offset}`);
      reads.push(value);
      return value;
    },
    write(offset, size, value) {
      lines.push(`writel ${BAR + offset} ${value}`);
      chip.mmio.write(offset, size, value);
    },
  };
  script(new E1000Driver(new RecordedMemory(buffer, lines), recorder));
  return { frames: net.takeFrames().map((f) => Buffer.from(f).toString('hex')), reads, lines };
}

/** The frames of a capture file (libpcap, little-endian). */
function captured(file: string): string[] {
  const bytes = readFileSync(file);
  const frames: string[] = [];
  for (let at = 24; at < bytes.length; ) {
    const length = bytes.readUInt32LE(at + 8);
    frames.push(bytes.subarray(at + 16, at + 16 + length).toString('hex'));
    at += 16 + length;
  }
  return frames;
}

function onQemu(lines: readonly string[]): Outcome {
  const config = (register: number) => 0x80000000 + (SLOT << 11) + register;
  const all = [
    `outl 0xcf8 ${config(0x10)}`,
    `outl 0xcfc ${BAR}`,
    `outl 0xcf8 ${config(4)}`,
    'outw 0xcfc 7',
    ...lines,
    'outb 0xf4 0',
  ];
  const directory = mkdtempSync(join(tmpdir(), 'tsvmm-qemu-e1000-'));
  try {
    const file = join(directory, 'frames.pcap');
    const options =
      '-machine pc -accel tcg -S -m 16 -nodefaults -display none -monitor none ' +
      `-netdev hubport,id=n,hubid=0 -object filter-dump,id=d,netdev=n,file=${file} ` +
      `-device e1000,addr=${SLOT},mac=52:54:00:12:34:56,netdev=n ` +
      '-device isa-debug-exit,iobase=0xf4,iosize=1 -qtest stdio -qtest-log none';
    const input = `${all.join('\n')}\n`;
    const run = { input, encoding: 'utf8', timeout: 30_000, maxBuffer: 2 ** 26 } as const;
    const { stdout, stderr } = spawnSync(QEMU, options.split(' '), run);
    const answers = stdout.trim().split('\n');
    expect(answers.length, stderr).toBeGreaterThanOrEqual(all.length - 1);
    const reads = all.flatMap((line, i) =>
      line.startsWith('readl') ? [Number(answers[i]!.split(' ')[1])] : [],
    );
    return { frames: captured(file), reads };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** Runs `script` on both and compares. @returns how many frames left */
function compare(script: (driver: E1000Driver) => void): number {
  const { lines, frames, reads } = here((driver) => {
    driver.set(R.CTRL, 0x241);
    driver.setupTx(64);
    script(driver);
  });
  const theirs = onQemu(lines);
  expect(frames).toEqual(theirs.frames);
  expect(reads).toEqual(theirs.reads);
  return frames.length;
}

function segmentation(driver: E1000Driver, options: PacketOptions, mss: number, vle = 0): void {
  const frame = packet({ ...options, prepare: 'tso' });
  const v4 = options.version === 4;
  const l4 = v4 ? 34 : 54;
  driver.putContext({
    ip: [14, v4 ? 24 : 14, v4 ? 33 : 0],
    l4: [l4, l4 + 16, 0],
    header: frame.length - options.payload.length,
    payload: options.payload.length,
    mss,
    tcp: true,
    ipv4: v4,
    tse: true,
  });
  driver.putData(frame, v4 ? 3 : 2, TX.TSE | vle, 0x2064, 900);
  driver.kick();
}

describe.skipIf(missing)("the e1000 and QEMU's", () => {
  it('agree on what a driver finds: EEPROM address, PHY, counters that clear', () => {
    compare((driver) => {
      for (const register of [2, 3]) driver.phyRead(register);
      for (const word of [0, 1, 2]) driver.eepromRead(word);
      for (const register of [R.RAL0, R.RAH0, R.VET, 0x1000]) driver.get(register);
      driver.microwire(6, 1, undefined, 2);
    });
  });

  it('agree on legacy packets and the counters', () => {
    // QEMU does not pad what it transmits, so nothing here is shorter than 60 bytes.
    const frames = compare((driver) => {
      for (const n of [60, 61, 800, 1514]) driver.putLegacy(Uint8Array.from(payload(n, 6)));
      const whole = Uint8Array.from(payload(700, 4));
      const at = driver.buffer(whole);
      driver.put(at, 300, 0);
      driver.put(at + 300, 1, 0);
      driver.kick();
      driver.get(R.TDH);
      driver.put(at + 301, 399 | TX.EOP | TX.RS, 0);
      driver.kick();
      for (const register of [0x40d4, 0x4080, 0x40d8, 0x40dc, 0x40e8, 0x40ec, 0x40d4, R.TDH]) {
        driver.get(register);
      }
    });
    expect(frames).toBe(5);
  });

  it('agree on the segmentation of IPv4', () => {
    // QEMU counts the IPv6 header in the payload length of IPv6 segments.
    const one: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(5000), id: 9 };
    const frames = compare((driver) => {
      segmentation(driver, { ...one, flags: 0x19 }, 1300);
      segmentation(driver, { ...one, payload: payload(1300), seq: 0xfffffff0 }, 700);
      driver.get(R.TDH);
    });
    expect(frames).toBe(6);
  });

  it('agree on checksum insertion by the context', () => {
    const frames = compare((driver) => {
      const tcp: PacketOptions = { version: 4, protocol: 'tcp', payload: payload(333) };
      driver.putContext({ ip: [14, 24, 33], l4: [34, 50, 0], tcp: true });
      for (const popts of [0, 1, 2, 3]) {
        const bytes = packet({ ...tcp, prepare: 'csum' });
        bytes.fill(0, 24, 26);
        driver.putData(bytes, popts, 0, 0, 100);
      }
      driver.putContext({ ip: [14, 24, 33], l4: [34, 40, 200] });
      const udp: PacketOptions = { version: 4, protocol: 'udp', payload: payload(333) };
      driver.putData(packet({ ...udp, prepare: 'csum' }), 2);
      driver.kick();
    });
    expect(frames).toBe(5);
  });

  it('agree on inserted tags', () => {
    const frames = compare((driver) => {
      driver.set(R.CTRL, 0x40000241);
      const tag = TX.EOP | TX.VLE | TX.RS;
      driver.putLegacy(Uint8Array.from(payload(100, 6)), tag, 0, 0, 0x2064);
      driver.putLegacy(Uint8Array.from(payload(60, 6)), tag, 0, 0, 0x0065);
      driver.putLegacy(Uint8Array.from(payload(102, 6)));
      segmentation(driver, { version: 4, protocol: 'tcp', payload: payload(900) }, 400, TX.VLE);
      driver.kick();
    });
    expect(frames).toBe(6);
  });
});
