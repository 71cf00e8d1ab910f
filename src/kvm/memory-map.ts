/** KvmMemoryMap over the native one. */
import { assert } from '../base/assert.ts';
import type { KvmMemoryMap } from './api.ts';
import { guarded } from './errors.ts';
import type { NativeMemoryMap } from './native.ts';

export class MemoryMapHandle implements KvmMemoryMap {
  readonly native: NativeMemoryMap;

  constructor(native: NativeMemoryMap) {
    this.native = native;
  }

  addRange(
    guestPhys: number,
    buffer: ArrayBuffer,
    offset = 0,
    sizeBytes: number = buffer.byteLength - offset,
  ): void {
    this.native.addRange(guestPhys, buffer, offset, sizeBytes);
  }

  removeRange(guestPhys: number): void {
    this.native.removeRange(guestPhys);
  }

  gather(pages: Uint32Array, count: number, dst: Uint8Array): void {
    assert(count <= pages.length, 'count is within the list');
    this.native.gather(pages, count, dst);
  }

  beginGather(
    pages: Uint32Array,
    count: number,
    dst: Uint8Array,
    blocks: Uint32Array,
    blockPages: number,
  ): void {
    assert(count <= pages.length, 'count is within the list');
    this.native.beginGather(pages, count, dst, blocks, blockPages);
  }

  endGather(): void {
    this.native.endGather();
  }

  scatter(pages: Uint32Array, count: number, src: Uint8Array): void {
    assert(count <= pages.length, 'count is within the list');
    this.native.scatter(pages, count, src);
  }

  allocate(sizeBytes: number): Uint8Array {
    return guarded(() => new Uint8Array(this.native.allocate(sizeBytes)));
  }

  read(guestPhys: number, dst: Uint8Array): void {
    guarded(() => this.native.read(guestPhys, dst));
  }

  write(guestPhys: number, src: Uint8Array): void {
    guarded(() => this.native.write(guestPhys, src));
  }
}
