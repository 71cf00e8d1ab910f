/** Opens a network as the operator describes it; kinds that few guests use are imported when asked for. Called by the board. */
import type { Logger } from '../base/log.ts';
import type { NetBackend } from './backend.ts';
import type { NetNative } from './native.ts';
import { NoNetwork } from './none.ts';
import type { StreamAddress } from './stream.ts';
import { openTap } from './tap.ts';

/** The outside part of a network option. */
export type NetSpec =
  | { readonly kind: 'tap'; readonly name: string }
  | {
      readonly kind: 'stream';
      readonly address: StreamAddress;
      readonly mode?: 'connect' | 'listen';
    }
  | {
      readonly kind: 'user';
      readonly tcpForward?: readonly string[];
      readonly udpForward?: readonly string[];
    }
  | { readonly kind: 'none' };

/** What networks need of the machine. */
export interface NetParts {
  readonly native: NetNative;
  readonly log: Logger;
  /** `KvmMemoryMap.native`: lets large frames leave without a copy. */
  readonly memoryMap?: object;
  /** Wall-clock nanoseconds, for capture files. */
  readonly wallNs: () => number;
}

/** Opens `spec`, with a capture file in front of it if asked for; VmmError NET_*. */
export async function openNet(
  parts: NetParts,
  spec: NetSpec,
  capturePath?: string,
): Promise<NetBackend> {
  const backend = await openPlain(parts, spec);
  if (capturePath === undefined) return backend;
  try {
    const { openCapture } = await import('./pcap.ts');
    return openCapture(backend, parts.log, { path: capturePath, wallNs: parts.wallNs });
  } catch (error) {
    await backend.close();
    throw error;
  }
}

async function openPlain(parts: NetParts, spec: NetSpec): Promise<NetBackend> {
  const { log } = parts;
  switch (spec.kind) {
    case 'tap':
      return openTap(parts.native, log, { name: spec.name, memoryMap: parts.memoryMap });
    case 'stream': {
      const { openStream } = await import('./stream.ts');
      return openStream(log, { address: spec.address, ...(spec.mode && { mode: spec.mode }) });
    }
    case 'user': {
      const { openUserNet } = await import('./user.ts');
      return openUserNet(log, {
        ...(spec.tcpForward && { tcpForward: spec.tcpForward }),
        ...(spec.udpForward && { udpForward: spec.udpForward }),
      });
    }
    case 'none':
      return new NoNetwork();
  }
}
