/**
 * A Linux TAP interface. Attaches to one that exists (made by `ip tuntap add dev tap0 mode tap`), or makes one that lives
 * as long as the backend. Checksum and segmentation offloads pass through the virtio header both ways.
 *
 * The link is up while the interface is. When it is removed under a running guest the link goes down, what the guest
 * sends is lost, and the backend attaches again once an interface of that name is back.
 */
import { codeOf, messageOf, VmmError } from '../base/error.ts';
import type { Logger } from '../base/log.ts';
import {
  type FrameBatch,
  MAX_ENTRY_BYTES,
  NET_OFFLOAD,
  type NetBackend,
  type NetHandler,
  type NetInfo,
} from './backend.ts';
import type { NetNative, NetNativePoller, NetNativeTap } from './native.ts';

export interface TapOptions {
  /** Interface name; may hold `%d` with `create`. */
  readonly name: string;
  /** Make the interface instead of attaching to an existing one. */
  readonly create?: boolean;
  /** How often to look at the interface's state. Default 1000. */
  readonly watchMs?: number;
  /** `KvmMemoryMap.native`: the backend then sends from guest memory too. */
  readonly memoryMap?: object | undefined;
}

const READABLE = 1;
const WRITABLE = 2;
const IFF_UP = 1;
const EAGAIN = -11;
const OFFLOADS = NET_OFFLOAD.csum | NET_OFFLOAD.tso4 | NET_OFFLOAD.tso6 | NET_OFFLOAD.tsoEcn;

/** Opens the interface; VmmError NET_TAP* says what is missing and how to get it. */
export function openTap(native: NetNative, log: Logger, options: TapOptions): TapBackend {
  try {
    return new TapBackend(native, log, options);
  } catch (error) {
    throw tapError(options, error);
  }
}

function tapError(options: TapOptions, error: unknown): unknown {
  const { name } = options;
  const cause = { cause: error };
  switch (codeOf(error)) {
    case 'ENODEV':
      return new VmmError('NET_TAP_MISSING', `there is no interface ${name}`, {
        hint: `Make it: ip tuntap add dev ${name} mode tap user $USER && ip link set ${name} up`,
        ...cause,
      });
    case 'ENOENT':
      return new VmmError('NET_TAP', 'this host has no /dev/net/tun', {
        hint: 'Load the module (modprobe tun), or give the container that device.',
        ...cause,
      });
    case 'EPERM':
    case 'EACCES':
      return new VmmError('NET_TAP_DENIED', `no permission to use interface ${name}`, {
        hint: `Let root make it for you: ip tuntap add dev ${name} mode tap user $USER`,
        ...cause,
      });
    case 'EBUSY':
      return new VmmError('NET_TAP_BUSY', `interface ${name} is in use by another process`, {
        hint: 'Each guest needs an interface of its own.',
        ...cause,
      });
    case 'EINVAL':
      return new VmmError(
        'NET_TAP_KIND',
        `interface ${name} is not a TAP that can be shared this way`,
        {
          hint: `It must be made with "mode tap" and without "multi_queue": ip tuntap add dev ${name} mode tap`,
          ...cause,
        },
      );
    default:
      return error instanceof VmmError
        ? error
        : new VmmError('NET_TAP', `cannot open interface ${name}: ${messageOf(error)}`, cause);
  }
}

export class TapBackend implements NetBackend {
  readonly info: NetInfo;
  linkUp = false;
  readonly sendsGuestMemory: boolean;
  readonly #memoryMap: object | undefined;
  readonly #native: NetNative;
  readonly #log: Logger;
  readonly #name: string;
  readonly #watch: NodeJS.Timeout;
  #tap: NetNativeTap | undefined;
  #poller: NetNativePoller | undefined;
  #handler: NetHandler | undefined;
  #receiving = false;
  #blocked = false;
  #offloads = 0;
  #closed = false;

  constructor(native: NetNative, log: Logger, options: TapOptions) {
    this.#native = native;
    this.#log = log;
    this.#memoryMap = options.memoryMap;
    this.sendsGuestMemory = options.memoryMap !== undefined;
    const tap = new native.TapDevice(options.name, options.create === true);
    this.#name = tap.name;
    try {
      tap.setUp(true);
    } catch (error) {
      // An interface made for this user: only root may change its state.
      if (options.create === true || codeOf(error) !== 'EPERM') {
        tap.close();
        throw error;
      }
    }
    this.info = {
      name: `tap ${this.#name}`,
      sendOffloads: OFFLOADS,
      receiveOffloads: OFFLOADS,
      mtu: tap.getMtu(),
    };
    this.#attach(tap);
    this.linkUp = (tap.getFlags() & IFF_UP) !== 0;
    this.#watch = setInterval(() => this.#look(), options.watchMs ?? 1000);
    this.#watch.unref();
  }

  /** The interface's name (of interest with `create` and `%d`). */
  get interfaceName(): string {
    return this.#name;
  }

  setHandler(handler: NetHandler): void {
    this.#handler = handler;
    this.#arm();
  }

  send(batch: FrameBatch, from: number): number {
    const count = batch.count - from;
    if (this.#tap === undefined) return count;
    const { bytes, offsets, lengths } = batch;
    const taken =
      batch.tailCount === 0
        ? this.#tap.writeBatch(bytes, offsets, lengths, from, count)
        : this.#tap.writeScattered(
            bytes,
            offsets,
            lengths,
            from,
            count,
            batch.tailAddresses,
            batch.tailLengths,
            batch.tailEnds,
          );
    if (taken < 0) {
      this.#lost();
      return count;
    }
    if (taken < count && !this.#blocked) {
      this.#blocked = true;
      this.#arm();
    }
    return taken;
  }

  receive(batch: FrameBatch, maxFrames: number): number {
    if (this.#tap === undefined) return 0;
    const max = Math.min(maxFrames, batch.maxFrames - batch.count);
    const count = this.#tap.readBatch(
      batch.bytes,
      batch.used,
      batch.offsets,
      batch.lengths,
      batch.count,
      max,
      MAX_ENTRY_BYTES,
    );
    if (count > 0) {
      batch.count += count;
      batch.used = batch.offsets[batch.count - 1]! + batch.lengths[batch.count - 1]!;
      return count;
    }
    if (count < 0 && count !== EAGAIN) this.#lost();
    return 0;
  }

  setReceiveEnabled(enabled: boolean): void {
    if (this.#receiving === enabled) return;
    this.#receiving = enabled;
    this.#arm();
  }

  setReceiveOffloads(bits: number): void {
    this.#offloads = bits & OFFLOADS;
    this.#tap?.setOffload(this.#offloads);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#watch);
    this.#detach();
  }

  #attach(tap: NetNativeTap): void {
    this.#tap = tap;
    if (this.#memoryMap !== undefined) tap.setMemory(this.#memoryMap);
    this.#poller = new this.#native.FdPoller(tap.fd, (events) => this.#event(events));
    this.#arm();
  }

  #detach(): void {
    this.#poller?.close();
    this.#tap?.close();
    this.#poller = undefined;
    this.#tap = undefined;
  }

  #arm(): void {
    const events =
      this.#handler === undefined
        ? 0
        : (this.#receiving ? READABLE : 0) | (this.#blocked ? WRITABLE : 0);
    if (events === 0) this.#poller?.stop();
    else this.#poller?.start(events);
  }

  #event(events: number): void {
    if (events < 0) {
      this.#lost();
      return;
    }
    if ((events & WRITABLE) !== 0 && this.#blocked) {
      this.#blocked = false;
      this.#arm();
      this.#handler!.writable();
    }
    if ((events & READABLE) !== 0 && this.#receiving && !this.#closed) this.#handler!.receivable();
  }

  #setLink(up: boolean): void {
    if (this.linkUp === up) return;
    this.linkUp = up;
    this.#handler?.linkChanged(up);
  }

  /** The interface was removed. Called inside backend calls too, so the handler hears of it later. */
  #lost(): void {
    if (this.#tap === undefined) return;
    this.#log.warn(`interface ${this.#name} is gone; the guest's link is down until it is back`);
    this.#detach();
    setImmediate(() => {
      if (this.#closed) return;
      this.#setLink(false);
      if (!this.#blocked) return;
      this.#blocked = false;
      this.#handler?.writable();
    });
  }

  #look(): void {
    if (this.#tap !== undefined) {
      const flags = this.#tap.getFlags();
      if (flags < 0) this.#lost();
      else this.#setLink((flags & IFF_UP) !== 0);
      return;
    }
    try {
      const tap = new this.#native.TapDevice(this.#name, false);
      tap.setOffload(this.#offloads);
      this.#attach(tap);
      this.#log.info(`interface ${this.#name} is back`);
      this.#setLink((tap.getFlags() & IFF_UP) !== 0);
    } catch {
      // Not there yet: looked for again at the next tick.
    }
  }
}
