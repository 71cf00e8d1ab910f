/**
 * The guest's RAM: host buffers, the KVM memory slots that show them to the vCPUs (with the legacy hole and the
 * shadow area cut out), and the {@link GuestMemory} through which the VMM reads and writes them.
 */
import { alignUp } from '../base/bits.ts';
import { VmmError } from '../base/error.ts';
import type { KvmHost, KvmMemoryMap, KvmVm } from '../kvm/api.ts';
import { PAGE_SIZE } from '../memory/dirty-set.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { CONVENTIONAL_END, type RamPiece, SHADOW_END } from './layout.ts';
import { SHADOW_SEGMENTS, ShadowMap } from './shadow-map.ts';

/** Firmware images end at 4 GiB and are at most this large. */
const FIRMWARE_MAX_BYTES = 1 << 20;
const FIRMWARE_SLOT = 0;
const SHADOW_SLOT = 1;
const FIRST_RAM_SLOT = SHADOW_SLOT + SHADOW_SEGMENTS.length;

/** See the module's head. */
export class GuestRam {
  readonly memory: GuestMemory;
  /** The same RAM for native I/O and copies, whatever the vCPUs see of it at the moment. */
  readonly map: KvmMemoryMap;
  readonly shadow: ShadowMap;
  readonly #vm: KvmVm;
  readonly #ramSlots: number[] = [];
  readonly #rom: ArrayBuffer | undefined;

  /**
   * Allocates and maps everything.
   * @param firmware image for the top of the 32-bit space, if the machine boots firmware
   * @throws VmmError `BOOT_IMAGE` when the firmware's size is impossible, `KVM_*` when the host refuses
   */
  constructor(
    host: KvmHost,
    vm: KvmVm,
    pieces: readonly RamPiece[],
    firmware: Uint8Array | undefined,
  ) {
    this.#vm = vm;
    const init = pieces.map(({ base, size }) => ({ base, buffer: vm.createBuffer(size) }));
    this.memory = new GuestMemory(init);
    this.map = host.createMemoryMap();
    for (const { base, buffer } of init) this.map.addRange(base, buffer);
    let slot = FIRST_RAM_SLOT;
    const map = (guestPhys: number, end: number, buffer: ArrayBuffer, offset: number): void => {
      if (end <= guestPhys) return;
      vm.mapAlias({ slot, guestPhys, sizeBytes: end - guestPhys, buffer, offset });
      this.#ramSlots.push(slot++);
    };
    for (const { base, buffer } of init) {
      if (base === 0) {
        map(0, CONVENTIONAL_END, buffer, 0);
        map(SHADOW_END, buffer.byteLength, buffer, SHADOW_END);
      } else {
        map(base, base + buffer.byteLength, buffer, 0);
      }
    }
    if (firmware !== undefined) {
      if (firmware.length === 0 || firmware.length > FIRMWARE_MAX_BYTES) {
        throw new VmmError(
          'BOOT_IMAGE',
          `the firmware image has ${firmware.length} bytes; it must have 1 to ${FIRMWARE_MAX_BYTES}`,
          { hint: 'Give a PC BIOS image such as bios-256k.bin of SeaBIOS.' },
        );
      }
      const rom = vm.createBuffer(alignUp(Math.max(firmware.length, 2 * 2 ** 16), PAGE_SIZE));
      const bytes = new Uint8Array(rom).fill(0xff);
      bytes.set(firmware, rom.byteLength - firmware.length);
      vm.mapAlias({
        slot: FIRMWARE_SLOT,
        guestPhys: 2 ** 32 - rom.byteLength,
        sizeBytes: rom.byteLength,
        buffer: rom,
        offset: 0,
        readonly: true,
      });
      this.#rom = rom;
    }
    this.shadow = new ShadowMap({
      vm,
      firstSlot: SHADOW_SLOT,
      ram: init[0]!.buffer,
      rom: this.#rom,
    });
  }

  /** Turns KVM's dirty log on or off for all RAM. */
  setDirtyLog(on: boolean): void {
    for (const slot of this.#ramSlots) this.#vm.setDirtyLog(slot, on);
    this.shadow.setDirtyLog(on);
  }
}
