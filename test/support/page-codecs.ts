/** The two implementations of the page stream, for the fuzzer that holds them together. */
import type { PageCodec } from '../../src/ft/wire/page-fuzz.ts';
import { decodePages, PageEncoder } from '../../src/ft/wire/page-stream.ts';
import { loadAddon } from '../../src/kvm/addon.ts';
import { MemoryMapHandle } from '../../src/kvm/memory-map.ts';
import type { NativeKvm } from '../../src/kvm/native.ts';
import { loadNativeIo } from '../../src/kvm/native-io.ts';

/** Plain TypeScript: what the other one is compared with. */
export const plainCodec: PageCodec = {
  name: 'the plain one',
  encoder: (cachePages) => new PageEncoder(cachePages),
  decoder(memory) {
    const pages = memory.byteLength / 4096;
    const committed = (page: number): Uint8Array | undefined =>
      page < pages ? new Uint8Array(memory, page * 4096, 4096) : undefined;
    return (stream, start, end, list, first, staging, offset) =>
      decodePages(stream, start, end, committed, list, first, staging, offset);
  },
};

/** The native addon's. */
export function nativeCodec(): PageCodec {
  const io = loadNativeIo();
  const addon = loadAddon() as NativeKvm;
  return {
    name: 'the native one',
    encoder: (cachePages) => new io.PageEncoder(cachePages),
    decoder(memory) {
      const map = new MemoryMapHandle(new addon.MemoryMap());
      map.addRange(0, memory);
      return (stream, start, end, list, first, staging, offset) =>
        io.decodePages(stream, start, end, map.native, list, first, staging, offset);
    },
  };
}
