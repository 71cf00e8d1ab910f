/** A {@link Machine} as replication sees it. */
import { createHash } from 'node:crypto';
import type { AccessSize } from '../bus/io-bus.ts';
import type { ReplicatedGuest } from '../ft/shell/guest.ts';
import { TRIGGER_SPACE } from '../ft/wire/tap-log.ts';
import type { Machine } from './machine.ts';
import { decodeMachineState } from './machine-state.ts';

/** Wraps an assembled machine. */
export function replicatedGuest(machine: Machine): ReplicatedGuest {
  const { vm, memory, ram, board, config } = machine;
  const frames = memory.ranges.at(-1)!.end / 4096;
  const words = new Uint32Array(Math.ceil(frames / 32));
  return {
    memory,
    map: ram.map,
    get running() {
      return machine.running;
    },
    pause: () => machine.pause(),
    resume: () => machine.resume(),
    saveContainer: () => machine.saveContainer(),
    checkContainer(container) {
      const { devices } = decodeMachineState(config, container);
      board.check(devices);
      devices.end();
    },
    loadContainer(container, elapsedNs) {
      machine.loadContainer(container, { elapsedNs: BigInt(Math.round(elapsedNs)) });
    },
    setDirtyLog: (on) => ram.setDirtyLog(on),
    harvest(list) {
      vm.harvestDirtyBits(words);
      memory.dirty.mergeInto(words);
      return takeBits(words, list);
    },
    replayWrite(space, size, address, low, high) {
      const bus = space === TRIGGER_SPACE.pio ? board.ports : board.mmio;
      bus.write(address, Math.min(size, 4) as AccessSize, low);
      if (size === 8) bus.write(address + 4, 4, high);
    },
  };
}

/** Moves set bits into `list` as numbers, ascending; what does not fit stays set. */
function takeBits(words: Uint32Array, list: Uint32Array): number {
  let count = 0;
  for (let index = 0; index < words.length; index++) {
    let word = words[index]!;
    if (word === 0) continue;
    while (word !== 0) {
      if (count === list.length) {
        words[index] = word;
        return count;
      }
      const bit = 31 - Math.clz32(word & -word);
      list[count++] = index * 32 + bit;
      word &= word - 1;
    }
    words[index] = 0;
  }
  return count;
}

/** What both hosts must agree on about the processor, as a SHA-256 in hexadecimal: CPUID table and list of MSRs. */
export function cpuDigest(machine: Machine): string {
  const hash = createHash('sha256');
  hash.update(machine.vm.getCpuid(0));
  hash.update(machine.vm.getVcpuState(0).msrIndices);
  return hash.digest('hex');
}
