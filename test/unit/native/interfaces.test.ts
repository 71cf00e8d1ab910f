/**
 * Disks and networks may not import what the addon exports, so each declares the part that it uses. Here the compiler holds
 * these declarations and the addon's together; nothing is left for a run but to say so.
 */
import { describe, expect, it } from 'vitest';
import type { BlockNative, NativeDisk } from '../../../src/block/native.ts';
import type {
  NativeBlockIo,
  NativeFdPoller,
  NativeIo,
  NativeTap,
} from '../../../src/kvm/native-io.ts';
import type { NetNative, NetNativePoller, NetNativeTap } from '../../../src/net/native.ts';

type Same<A, B> = [A, B] extends [B, A] ? true : false;
type Callable = (...args: never[]) => unknown;

/** Methods have the same parameters (also as many) and results; anything else is the same type. */
type SameMember<A, B> = A extends Callable
  ? B extends Callable
    ? Same<[Parameters<A>, ReturnType<A>], [Parameters<B>, ReturnType<B>]>
    : false
  : Same<A, B>;

/** The names of what `Part` declares unlike `Whole`; never when they agree. */
type Differences<Part, Whole> = {
  [K in keyof Part]: K extends keyof Whole
    ? SameMember<Part[K], Whole[K]> extends true
      ? never
      : K
    : K;
}[keyof Part];

type None<Names> = [Names] extends [never] ? true : Names;
type Args<T extends abstract new (...args: never) => unknown> = ConstructorParameters<T>;

// A line that does not compile names, in its type, what differs.
const disk: None<Differences<NativeDisk, NativeBlockIo>> = true;
const diskOptions: Same<Args<BlockNative['BlockIo']>, Args<NativeIo['BlockIo']>> = true;
const diskFunctions: None<Differences<Omit<BlockNative, 'BlockIo'>, NativeIo>> = true;
const tap: None<Differences<NetNativeTap, NativeTap>> = true;
const tapOptions: Same<Args<NetNative['TapDevice']>, Args<NativeIo['TapDevice']>> = true;
const poller: None<Differences<NetNativePoller, NativeFdPoller>> = true;
/** The addon's poller takes one argument more, which networks leave out. */
const pollerFits: NativeIo extends Pick<NetNative, 'FdPoller'> ? true : false = true;

interface Shifted {
  queue(tag: number, op: string): void;
  submit(more: number): void;
}
// It would be noticed: another type of an argument, and another number of them.
const noticed: Same<Differences<Shifted, NativeBlockIo>, 'queue' | 'submit'> = true;

describe('what rooms declare of the addon', () => {
  it('is what the addon exports', () => {
    const all = [disk, diskOptions, diskFunctions, tap, tapOptions, poller, pollerFits, noticed];
    expect(all).not.toContain(false);
  });
});
