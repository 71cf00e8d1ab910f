/**
 * The chip of the Intel 82540EM: register accesses are sorted here and go to its units (transmit, receive, interrupts,
 * EEPROM, PHY). It knows guest memory, a network backend, a clock and an interrupt line; pci.ts puts it on a bus.
 * See README.md for what is left out.
 */
import type { Clock, Timer } from '../../src/base/clock.ts';
import { GuestComplaints, type Logger } from '../../src/base/log.ts';
import type { IrqLine } from '../../src/bus/interrupts.ts';
import type { AccessSize, IoRegion } from '../../src/bus/io-bus.ts';
import type { GuestMemory } from '../../src/memory/guest-memory.ts';
import {
  type FrameBatch,
  type NetBackend,
  type NetHandler,
  VNET_HEADER_BYTES,
} from '../../src/net/backend.ts';
import { requireState } from '../../src/snapshot/schema.ts';
import { EEPROM_WORDS, Eeprom, eepromImage } from './eeprom.ts';
import { DEADLINES, InterruptUnit } from './interrupts.ts';
import { Phy } from './phy.ts';
import { ReceiveUnit } from './receive.ts';
import { areRegisters, RegisterFile } from './registers.ts';
import {
  CTRL,
  CTRL_EXT,
  ICR,
  MDIC,
  RAH,
  RCTL,
  RDTR,
  REG,
  REGISTER_SPACE,
  STAT,
  STATUS,
} from './spec.ts';
import { bytesOf, type E1000State, isDelay, words16, words32 } from './state.ts';
import { Statistics } from './statistics.ts';
import { type FrameSink, isTransmitState, TransmitUnit } from './transmit.ts';

/** What a chip is built from. */
export interface E1000Options {
  /** For messages. */
  readonly id: string;
  /** Station address, 6 bytes. */
  readonly mac: Uint8Array;
  readonly memory: GuestMemory;
  readonly backend: NetBackend;
  readonly clock: Clock;
  readonly irq: IrqLine;
  readonly log: Logger;
}

/** IOADDR keeps bits 19:0 (8254x SDM, 13.2.2.1). */
const IO_ADDRESS_MASK = 0xfffff;
const PACKET_BUFFER_KIB = 64;

export class E1000 implements NetHandler {
  /** The register window, 128 KiB (8254x SDM, 13.2.1). */
  readonly mmio: IoRegion;
  /** The I/O window, IOADDR and IODATA (8254x SDM, 13.2.2). */
  readonly io: IoRegion;
  readonly #file = new RegisterFile();
  readonly #words = this.#file.words;
  readonly #backend: NetBackend;
  readonly #clock: Clock;
  readonly #eeprom: Eeprom;
  readonly #phy: Phy;
  readonly #interrupts: InterruptUnit;
  readonly #statistics = new Statistics(this.#words);
  readonly #transmit: TransmitUnit;
  readonly #receive: ReceiveUnit;
  readonly #again: Timer;
  #ioAddress = 0;
  #running = false;
  #mayDma = true;
  /** Whether a transmit run waits for a turn of its own, for DMA or for {@link resume}. */
  #sendWanted = false;
  #loopback = false;
  /** While true, changes of the link are not reported: building, and power-on. */
  #resetting = true;

  constructor(options: E1000Options) {
    const { id, memory, backend, clock, irq, log } = options;
    const words = this.#words;
    const complaints = new GuestComplaints(log, clock, id);
    this.#backend = backend;
    this.#clock = clock;
    this.#eeprom = new Eeprom(eepromImage(options.mac));
    this.#phy = new Phy(clock, () => this.#updateLink());
    this.#interrupts = new InterruptUnit(words, clock, irq);
    this.#receive = new ReceiveUnit(
      words,
      memory,
      this.#interrupts,
      this.#statistics,
      complaints,
      backend,
    );
    this.#again = clock.timer(() => this.#send());
    this.#transmit = new TransmitUnit(
      words,
      memory,
      this.#interrupts,
      this.#statistics,
      complaints,
      this.#sink(),
      () => {
        this.#sendWanted = true;
        this.#again.arm(clock.nowNs());
      },
    );
    this.mmio = {
      name: `${id} registers`,
      read: (offset, size) => this.#readPart(offset, size),
      write: (offset, size, value) => this.#writePart(offset, size, value),
    };
    this.io = {
      name: `${id} I/O`,
      read: (offset) => this.#readIo(offset),
      write: (offset, size, value) => this.#writeIo(offset, size, value),
    };
    backend.setReceiveOffloads(0);
    backend.setHandler(this);
    this.#phy.setCable(backend.linkUp);
    this.#powerOn();
  }

  /** Frames go to the network, or come back in loopback (RCTL.LBM, or the PHY's own). */
  #sink(): FrameSink {
    const backend = this.#backend;
    const looped = () => this.#loopback;
    return {
      get offloads() {
        return looped() ? 0 : backend.info.sendOffloads;
      },
      send: (batch: FrameBatch, from: number) => {
        if (!looped()) return backend.send(batch, from);
        for (let i = from; i < batch.count; i++) this.#receive.loopback(batch, i);
        return batch.count - from;
      },
    };
  }

  /** Power-on state. The EEPROM keeps what was written to it. */
  reset(): void {
    this.#powerOn();
    this.#interrupts.reset();
  }

  #powerOn(): void {
    this.#ioAddress = 0;
    this.#resetting = true;
    this.#phy.powerOn();
    this.#resetting = false;
    this.#defaults();
  }

  /** What CTRL.RST resets: everything but the PHY and what the board configures (8254x SDM, 13.4.1). */
  #defaults(): void {
    this.#file.reset();
    this.#eeprom.reset();
    this.#transmit.reset();
    this.#sendWanted = false;
    this.#receive.reset();
    this.#again.cancel();
    this.#loopback = this.#loops();
    this.#loadAddress();
    this.#words[REG.status >>> 2] = this.#status();
  }

  /** Receive address 0 comes from the EEPROM (8254x SDM, 13.5.2). */
  #loadAddress(): void {
    const mac = this.#eeprom.words;
    this.#words[REG.ral >>> 2] = (mac[0]! | (mac[1]! << 16)) >>> 0;
    this.#words[REG.rah >>> 2] = (mac[2]! | RAH.av) >>> 0;
  }

  /** STATUS as link and CTRL have it (8254x SDM, 13.4.2). */
  #status(): number {
    const ctrl = this.#words[REG.ctrl >>> 2]!;
    const mode = this.#phy.mode;
    const up = this.#phy.linkUp && (ctrl & CTRL.slu) !== 0;
    const speed = (ctrl & CTRL.frcspd) !== 0 ? (ctrl >>> CTRL.speedShift) & 3 : mode.speed;
    const full = (ctrl & CTRL.frcdpx) !== 0 ? (ctrl & CTRL.fd) !== 0 : mode.fullDuplex;
    return (
      (full ? STATUS.fd : 0) |
      (up ? STATUS.lu : 0) |
      (speed << STATUS.speedShift) |
      (mode.speed << STATUS.asdvShift)
    );
  }

  #updateLink(): void {
    if (this.#resetting) return;
    this.#updateLoopback();
    const before = this.#words[REG.status >>> 2]!;
    const after = this.#status();
    this.#words[REG.status >>> 2] = after;
    if (((before ^ after) & STATUS.lu) !== 0) this.#interrupts.raise(ICR.lsc);
  }

  #loops(): boolean {
    const mode = this.#words[REG.rctl >>> 2]! & RCTL.lbmMask;
    return this.#phy.loopback || mode === RCTL.lbmMask;
  }

  /** What waited for the network need not once it comes back instead. */
  #updateLoopback(): void {
    const loopback = this.#loops();
    if (loopback === this.#loopback) return;
    this.#loopback = loopback;
    this.#transmit.writable();
    this.#send();
  }

  #readPart(offset: number, size: AccessSize): number {
    if (offset >= REGISTER_SPACE) return 0;
    const value = this.#read(this.#file.canonical(offset));
    return size === 4 ? value : value >>> (8 * (offset & 3));
  }

  /** Registers take whole words; other writes are dropped (8254x SDM, 13.2.1). */
  #writePart(offset: number, size: AccessSize, value: number): void {
    if (size !== 4 || (offset & 3) !== 0 || offset >= REGISTER_SPACE) return;
    this.#write(this.#file.canonical(offset), value);
  }

  #readIo(offset: number): number {
    if (offset < 4) return this.#ioAddress >>> (8 * offset);
    if (offset >= 8) return 0;
    const address = this.#ioAddress & ~3;
    const value = address < REGISTER_SPACE ? this.#read(this.#file.canonical(address)) : 0;
    return value >>> (8 * (offset - 4));
  }

  #writeIo(offset: number, size: AccessSize, value: number): void {
    if (size !== 4) return;
    if (offset === 0) this.#ioAddress = value & IO_ADDRESS_MASK;
    else if (offset === 4) this.#writePart(this.#ioAddress, 4, value);
  }

  #read(register: number): number {
    switch (register) {
      case REG.icr:
        return this.#interrupts.readCause();
      case REG.eecd:
        return this.#eeprom.readEecd();
      case REG.eerd:
        return this.#eeprom.readEerd();
      default:
        if (register >= STAT.first && register <= STAT.last) return this.#statistics.read(register);
        return this.#words[register >>> 2]!;
    }
  }

  #write(register: number, value: number): void {
    switch (register) {
      case REG.tdt:
        this.#file.writePlain(register, value);
        this.#send();
        return;
      case REG.icr:
        this.#interrupts.clearCause(value);
        return;
      case REG.ics:
        this.#interrupts.raise(value);
        return;
      case REG.ims:
        this.#interrupts.enable(value);
        return;
      case REG.imc:
        this.#interrupts.disable(value);
        return;
      case REG.eecd:
        this.#eeprom.writeEecd(value);
        return;
      case REG.eerd:
        this.#eeprom.writeEerd(value);
        return;
      case REG.mdic:
        this.#words[register >>> 2] = this.#phy.access(value);
        if ((value & MDIC.interrupt) !== 0) this.#interrupts.raise(ICR.mdac);
        return;
      case REG.ctrl:
        this.#writeControl(value);
        return;
      default:
        this.#file.writePlain(register, value);
        this.#written(register, value);
    }
  }

  /** What follows a write of a register that keeps its value. */
  #written(register: number, value: number): void {
    switch (register) {
      case REG.rdt:
      case REG.rdh:
      case REG.rdlen:
      case REG.rdbal:
      case REG.rdbah:
        this.#receive.update();
        return;
      case REG.rctl:
        this.#receive.update();
        this.#updateLoopback();
        return;
      case REG.tctl:
        this.#send();
        return;
      case REG.tdh:
      case REG.tdlen:
      case REG.tdbal:
      case REG.tdbah:
        this.#transmit.abandon();
        return;
      case REG.rdtr:
        if ((value & RDTR.fpd) !== 0) this.#interrupts.flushReceive();
        return;
      case REG.itr:
        this.#interrupts.throttleChanged();
        return;
      case REG.ctrlExt:
        if ((value & CTRL_EXT.eeRst) !== 0) this.#loadAddress();
        return;
      case REG.pba: {
        const receive = Math.min(this.#words[register >>> 2]! & 0xffff, PACKET_BUFFER_KIB);
        this.#words[register >>> 2] = receive | ((PACKET_BUFFER_KIB - receive) << 16);
        return;
      }
      default:
    }
  }

  #writeControl(value: number): void {
    if ((value & CTRL.rst) !== 0) {
      this.#defaults();
      this.#interrupts.reset();
      return;
    }
    const before = this.#words[REG.ctrl >>> 2]!;
    this.#file.writePlain(REG.ctrl, value);
    if ((value & ~before & CTRL.phyRst) !== 0) this.#phy.reset();
    this.#updateLink();
  }

  #send(): void {
    this.#sendWanted = !(this.#running && this.#mayDma);
    if (!this.#sendWanted) this.#transmit.run();
  }

  /** Whether the chip may read and write guest memory (PCI bus mastering); true at first. */
  setDma(allowed: boolean): void {
    if (allowed === this.#mayDma) return;
    this.#mayDma = allowed;
    if (!this.#running) return;
    if (allowed) this.#receive.resume();
    else this.#receive.pause();
    if (this.#sendWanted) this.#send();
  }

  /** From the backend. */
  receivable(): void {
    this.#receive.receivable();
  }

  /** From the backend. */
  writable(): void {
    this.#transmit.writable();
    this.#send();
  }

  /** From the backend: the cable. While paused it is looked at again on resume. */
  linkChanged(up: boolean): void {
    if (this.#running) this.#phy.setCable(up);
  }

  pause(): void {
    this.#running = false;
    this.#again.cancel();
    this.#interrupts.pause();
    this.#phy.pause();
    this.#receive.pause();
  }

  resume(): void {
    this.#running = true;
    this.#phy.resume();
    this.#interrupts.resume();
    this.#phy.setCable(this.#backend.linkUp);
    if (this.#mayDma) this.#receive.resume();
    // A turn of its own, as it would have been without the pause.
    if (this.#sendWanted) this.#again.arm(this.#clock.nowNs());
  }

  /** The state, a deep copy. */
  save(): E1000State {
    const { contexts, packet, bytes, segmentsSent } = this.#transmit.save();
    return {
      registers: this.#file.save(),
      asserted: this.#interrupts.asserted,
      delays: this.#interrupts.saveDelays(),
      eeprom: bytesOf(this.#eeprom.words),
      eerd: this.#eeprom.eerd,
      microwire: this.#eeprom.saveWire(),
      phy: bytesOf(this.#phy.registers),
      negotiationLeftNs: this.#phy.negotiationLeftNs,
      cable: this.#phy.cable,
      linkLost: this.#phy.linkLost,
      ioAddress: this.#ioAddress,
      contexts: bytesOf(contexts),
      packet: bytesOf(packet),
      packetBytes: bytes,
      segmentsSent,
      // What waited for this network is offered to the next.
      sendWanted: this.#sendWanted || this.#transmit.blocked,
      heldFrame: this.#receive.saveHeld(),
    };
  }

  /**
   * Takes over a decoded state.
   * @throws VmmError `STATE_INVALID`
   */
  load(state: E1000State): void {
    const { microwire, heldFrame } = state;
    requireState(state.delays.length === DEADLINES, 'e1000 delays');
    requireState(state.delays.every(isDelay), 'e1000 delay is no time');
    requireState(isDelay(state.negotiationLeftNs), 'e1000 negotiation time');
    requireState(microwire.bits <= 9 && microwire.dataBits <= 16, 'e1000 EEPROM shift count');
    requireState(microwire.address < EEPROM_WORDS, 'e1000 EEPROM address');
    requireState(microwire.command < 512, 'e1000 EEPROM command');
    requireState(state.ioAddress <= IO_ADDRESS_MASK, 'e1000 IOADDR');
    requireState(
      heldFrame.length === 0 || heldFrame.length > VNET_HEADER_BYTES,
      'e1000 held frame',
    );
    const transmit = {
      contexts: words32(state.contexts),
      packet: words32(state.packet),
      bytes: state.packetBytes,
      segmentsSent: state.segmentsSent,
    };
    requireState(isTransmitState(transmit), 'e1000 transmit packet');
    requireState(areRegisters(state.registers), 'e1000 register holds an impossible bit');
    this.#transmit.load(transmit);
    this.#file.load(state.registers);
    this.#interrupts.load(state.delays, state.asserted);
    this.#eeprom.load(words16(state.eeprom), microwire, state.eerd);
    const { negotiationLeftNs, cable, linkLost } = state;
    this.#phy.load(words16(state.phy), negotiationLeftNs, cable, linkLost);
    this.#receive.loadHeld(heldFrame);
    this.#ioAddress = state.ioAddress;
    this.#sendWanted = state.sendWanted;
    this.#loopback = this.#loops();
  }
}
