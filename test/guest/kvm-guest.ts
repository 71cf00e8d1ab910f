/**
 * Small hand-made guests for the tests of src/kvm: a VM with a few pages, one of the processor's modes, and machine
 * code at CODE. The tests write the bytes themselves, with the assembly beside them.
 */
import {
  EXIT,
  type ExitSlot,
  type KvmHost,
  type KvmVm,
  REG,
  SLOT_WORD,
  type VmOptions,
} from '../../src/kvm/api.ts';
import { openKvmHost } from '../../src/kvm/host.ts';
import { Sregs } from '../../src/kvm/sregs.ts';

/** `user`: 64-bit ring 3, which also a KVM that emulates ring 0 runs natively; it has no port access. */
export type Mode = 'real' | 'protected32' | 'long' | 'user';

export const host: KvmHost = openKvmHost();
/** Where the code stands, guest physical and (all modes) linear. */
export const CODE = 0x8000;
/** Top of a free stack. */
export const STACK = 0x7000;
/** Free memory for data. */
export const DATA = 0x1_0000;
/** No memory here: accesses are MMIO exits. Mapped by the long mode page tables. */
export const MMIO = 0x10_0000;
export const RAM_BYTES = 0x10_0000;
/** No in-kernel device listens here. */
export const PORT = 0x90;

const TABLES = 0x1000;
const CR0_PE = 1n;
const CR0_PG = 0x8000_0000n;
const CR4_PAE = 0x20n;
const CR4_OSFXSR = 0x200n;
const EFER_LME_LMA = 0x500n;

/** The bytes of machine code written as `66 0f 7f 03`. */
export function hex(text: string): number[] {
  return text.split(' ').map((byte) => Number.parseInt(byte, 16));
}

export interface TestGuest {
  readonly vm: KvmVm;
  readonly memory: Uint8Array;
  readonly buffer: ArrayBuffer;
}

/** A VM with RAM_BYTES of memory (slot 0) and `code` at CODE, the first vCPU about to run it. */
export function makeGuest(
  mode: Mode,
  code: readonly number[],
  options: Partial<VmOptions> & { log?: boolean } = {},
): TestGuest {
  const { log, ...rest } = options;
  const vm = host.createVm({ vcpus: 1, ...rest });
  const buffer = vm.addMemory({ slot: 0, guestPhys: 0, sizeBytes: RAM_BYTES, log: log ?? false });
  const memory = new Uint8Array(buffer);
  memory.set(code, CODE);
  enterMode(vm, 0, mode, memory);
  return { vm, memory, buffer };
}

/** Points vCPU `vcpu` at CODE in `mode`. */
export function enterMode(vm: KvmVm, vcpu: number, mode: Mode, memory: Uint8Array): void {
  const bytes = vm.getSregs(vcpu);
  const sregs = new Sregs(bytes);
  const view = new DataView(bytes.buffer);
  const user = mode === 'user';
  const long = mode === 'long' || user;
  for (const segment of [0, 1, 2, 3, 4, 5]) {
    const at = segment * 24;
    const code = segment === 0;
    view.setBigUint64(at, 0n, true);
    view.setUint32(at + 8, mode === 'real' ? 0xffff : 0xffff_ffff, true);
    view.setUint16(
      at + 12,
      mode === 'real' ? 0 : user ? (code ? 0x1b : 0x13) : code ? 8 : 16,
      true,
    );
    view.setUint8(at + 14, code ? 0xb : 3);
    view.setUint8(at + 15, 1);
    view.setUint8(at + 16, user ? 3 : 0);
    view.setUint8(at + 17, mode === 'protected32' || (long && !code) ? 1 : 0);
    view.setUint8(at + 18, 1);
    view.setUint8(at + 19, long && code ? 1 : 0);
    view.setUint8(at + 20, mode === 'real' ? 0 : 1);
    view.setUint8(at + 22, 0);
  }
  if (mode !== 'real') sregs.setControl('cr0', sregs.control('cr0') | CR0_PE);
  if (long) {
    const flags = user ? 4n : 0n;
    // The first GiB, one to one, in 2 MiB pages.
    const tables = new DataView(memory.buffer, memory.byteOffset + TABLES, 0x3000);
    tables.setBigUint64(0, BigInt(TABLES + 0x1000 + 3) + flags, true);
    tables.setBigUint64(0x1000, BigInt(TABLES + 0x2000 + 3) + flags, true);
    for (let i = 0; i < 512; i++) {
      tables.setBigUint64(0x2000 + i * 8, BigInt(i) * 0x20_0000n + 0x83n + flags, true);
    }
    sregs.setControl('cr3', BigInt(TABLES));
    sregs.setControl('cr4', CR4_PAE | CR4_OSFXSR);
    sregs.setControl('efer', EFER_LME_LMA);
    sregs.setControl('cr0', sregs.control('cr0') | CR0_PE | CR0_PG);
  }
  vm.setSregs(vcpu, bytes);
  const regs = new BigUint64Array(18);
  regs[REG.rip] = BigInt(CODE);
  regs[REG.rsp] = BigInt(STACK);
  regs[REG.rflags] = 2n;
  vm.setRegs(vcpu, regs);
}

/** One exit, copied. */
export interface SeenExit {
  readonly kind: number;
  readonly address: number;
  readonly size: number;
  readonly count: number;
  readonly data: number[];
  readonly vcpu: number;
  readonly detail: number;
}

export function copyExit(slot: ExitSlot): SeenExit {
  const { words, data } = slot;
  return {
    kind: words[SLOT_WORD.kind]!,
    address: words[SLOT_WORD.addressHi]! * 2 ** 32 + words[SLOT_WORD.addressLo]!,
    size: words[SLOT_WORD.size]!,
    count: words[SLOT_WORD.count]!,
    data: [...data.subarray(0, words[SLOT_WORD.dataLength]!)],
    vcpu: words[SLOT_WORD.vcpu]!,
    detail: words[SLOT_WORD.detail]!,
  };
}

/** How a test's guest says that it is done: OUT of any byte to this port. */
export const DONE_PORT = 0x99;
/** out 0x99, al; hlt; jmp $-1 */
export const DONE = [0xe6, DONE_PORT, 0xf4, 0xeb, 0xfd] as const;

/**
 * Starts the VM and collects its exits until one to DONE_PORT or a terminal one, which stays open. `answer` may fill
 * the slot of a read.
 */
export function runToDone(
  vm: KvmVm,
  answer: (exit: SeenExit, slot: ExitSlot) => void = () => {},
): Promise<SeenExit[]> {
  return new Promise((resolve, reject) => {
    const seen: SeenExit[] = [];
    vm.start({
      onExit(vcpu) {
        const slot = vm.slots[vcpu]!;
        const exit = copyExit(slot);
        if (exit.kind === EXIT.pioOut && exit.address === DONE_PORT) {
          resolve(seen);
          return false;
        }
        seen.push(exit);
        const isIo = exit.kind >= EXIT.pioIn && exit.kind <= EXIT.mmioWrite;
        if (!isIo) {
          reject(new Error(`unexpected exit ${JSON.stringify(exit)}`));
          return false;
        }
        answer(exit, slot);
        return true;
      },
    });
  });
}
