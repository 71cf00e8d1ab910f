/** Where the other host is, and the key that both share: what is read of them on the command line. */
import { readKey } from '../ft/shell/key.ts';
import { badOption } from './options.ts';

/** Where a standby listens where nothing is said. */
const FT_PORT = 4444;

/** `HOST`, `HOST:PORT`, `[v6]:PORT`, `PORT`: where a standby listens or is found. */
export function parseEndpoint(
  option: string,
  value: string,
  defaultHost: string,
): { host: string; port: number } {
  // The source systems wrote kemari:tcp:HOST:PORT and tcp:HOST:PORT[,ft_mode].
  const plain = value
    .replace(/^kemari:/, '')
    .replace(/^tcp:/, '')
    .replace(/,ft_mode$/, '');
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]*))(?::(\d+))?$/.exec(plain);
  const onlyPort = /^\d+$/.test(plain);
  const host = onlyPort ? '' : (match?.[1] ?? match?.[2]);
  const port = Number(onlyPort ? plain : (match?.[3] ?? FT_PORT));
  if (host === undefined || !Number.isInteger(port) || port > 65535) {
    throw badOption(option, value, 'is no HOST[:PORT]');
  }
  return { host: host === '' || host === '0' ? defaultHost : host, port };
}

/**
 * The source system wrote `migrate -d blk tcp:HOST:PORT` for a copy of all storage, and `blk inc` for one over a common base:
 * both are understood in front of a peer. @returns the peer, and how disks are copied that say nothing themselves
 */
export function parseBlockWords(peer: string): {
  readonly peer: string;
  readonly copies: 'full' | 'incremental' | undefined;
} {
  const match = /^(?:-d\s+)?blk\s+(inc\s+)?(\S+)$/.exec(peer);
  if (match === null) return { peer, copies: undefined };
  return { peer: match[2]!, copies: match[1] === undefined ? 'full' : 'incremental' };
}

/** Reads `--ft-key`, if given. */
export function keyOf(path: string | undefined): Uint8Array | undefined {
  return path === undefined ? undefined : readKey(path);
}
