/**
 * Turns vCPU exits into bus accesses: string port I/O into single ones, 8-byte and odd-sized memory accesses into
 * what the bus takes. Exits that end the run go to the owner. Nothing here allocates.
 */
import { unreachable } from '../base/assert.ts';
import type { AccessSize, IoBus } from '../bus/io-bus.ts';
import {
  COALESCED_ENTRY_BYTES,
  COALESCED_WORD,
  EXIT,
  type ExitSlot,
  isTerminalExit,
  type KvmVm,
  SLOT_WORD,
} from '../kvm/api.ts';

/** What the dispatcher asks of its owner. */
export interface ExitOwner {
  /** The machine is about to reset or stop: accesses reach no device any more. */
  readonly deaf: boolean;
  /** A vCPU ended in a way that it cannot go on from (see `isTerminalExit`). */
  terminalExit(vcpu: number, slot: ExitSlot): void;
}

/** Dispatches the exits of one VM onto its two buses. */
export class ExitDispatcher {
  readonly #vm: KvmVm;
  readonly #ports: IoBus;
  readonly #mmio: IoBus;
  readonly #owner: ExitOwner;

  constructor(vm: KvmVm, ports: IoBus, mmio: IoBus, owner: ExitOwner) {
    this.#vm = vm;
    this.#ports = ports;
    this.#mmio = mmio;
    this.#owner = owner;
  }

  /** Handles the exit that waits in `vcpu`'s slot; true when the vCPU may go on. */
  dispatch(vcpu: number): boolean {
    const slot = this.#vm.slots[vcpu]!;
    const words = slot.words;
    const kind = words[SLOT_WORD.kind]!;
    if (isTerminalExit(kind)) {
      this.#owner.terminalExit(vcpu, slot);
      return false;
    }
    const address = words[SLOT_WORD.addressHi]! * 0x1_0000_0000 + words[SLOT_WORD.addressLo]!;
    const size = words[SLOT_WORD.size]!;
    if (this.#owner.deaf) {
      if (kind === EXIT.pioIn || kind === EXIT.mmioRead) {
        slot.data.fill(0xff, 0, words[SLOT_WORD.dataLength]!);
      }
      return true;
    }
    switch (kind) {
      case EXIT.pioOut: {
        const bytes = size * words[SLOT_WORD.count]!;
        for (let at = 0; at < bytes; at += size) {
          this.#ports.write(address, size as AccessSize, load(slot.view, at, size));
        }
        return true;
      }
      case EXIT.pioIn: {
        const bytes = size * words[SLOT_WORD.count]!;
        for (let at = 0; at < bytes; at += size) {
          store(slot.view, at, size, this.#ports.read(address, size as AccessSize));
        }
        return true;
      }
      case EXIT.mmioWrite:
        this.#mmioWrite(address, size, slot.view, 0);
        return true;
      case EXIT.mmioRead:
        for (let at = 0; at < size; ) {
          const part = partSize(size - at);
          store(slot.view, at, part, this.#mmio.read(address + at, part));
          at += part;
        }
        return true;
      default:
        // Debug, hypercall and halt exits are asked for by nothing on this board; going on is harmless.
        return true;
    }
  }

  /** Handles `count` entries of the coalesced ring. */
  coalesced(count: number): void {
    if (this.#owner.deaf) return;
    const { words, bytes } = this.#vm.coalesced;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const stride = COALESCED_ENTRY_BYTES / 4;
    for (let i = 0; i < count; i++) {
      const at = i * stride;
      const address =
        words[at + COALESCED_WORD.addressHi]! * 0x1_0000_0000 +
        words[at + COALESCED_WORD.addressLo]!;
      const size = words[at + COALESCED_WORD.size]!;
      const data = (at + COALESCED_WORD.data) * 4;
      if (words[at + COALESCED_WORD.kind] === EXIT.pioOut) {
        this.#ports.write(address, size as AccessSize, load(view, data, size));
      } else {
        this.#mmioWrite(address, size, view, data);
      }
    }
  }

  #mmioWrite(address: number, size: number, view: DataView, data: number): void {
    for (let at = 0; at < size; ) {
      const part = partSize(size - at);
      this.#mmio.write(address + at, part, load(view, data + at, part));
      at += part;
    }
  }
}

function partSize(left: number): AccessSize {
  return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

function load(view: DataView, at: number, size: number): number {
  if (size === 1) return view.getUint8(at);
  return size === 2 ? view.getUint16(at, true) : view.getUint32(at, true);
}

function store(view: DataView, at: number, size: number, value: number): void {
  if (size === 1) view.setUint8(at, value);
  else if (size === 2) view.setUint16(at, value, true);
  else view.setUint32(at, value, true);
}

/** What a terminal exit means, for people. */
export function describeTerminalExit(slot: ExitSlot): string {
  const { words, data } = slot;
  const kind = words[SLOT_WORD.kind]!;
  const detail = words[SLOT_WORD.detail]!;
  const rip = `0x${(words[SLOT_WORD.ripHi]! * 0x1_0000_0000 + words[SLOT_WORD.ripLo]!).toString(16)}`;
  switch (kind) {
    case EXIT.shutdown:
      return `the guest's processor shut down after a triple fault at ${rip}`;
    case EXIT.systemEvent:
      return `KVM reported system event ${detail}`;
    case EXIT.internalError: {
      const bytes = Buffer.from(data.subarray(0, words[SLOT_WORD.dataLength]!)).toString('hex');
      const what =
        detail === 1 ? 'cannot emulate an instruction' : `failed internally (suberror ${detail})`;
      return `KVM ${what} at ${rip}${bytes === '' ? '' : `, instruction bytes ${bytes}`}`;
    }
    case EXIT.failEntry:
      return `the processor refused the guest's state at ${rip} (hardware reason 0x${words[SLOT_WORD.detail64Lo]!.toString(16)})`;
    case EXIT.runError:
      return `KVM_RUN failed with errno ${detail}`;
    case EXIT.unknown:
      return `KVM stopped the guest for reason ${detail}, which this program does not know`;
    default:
      return unreachable(kind as never, 'terminal exit');
  }
}
