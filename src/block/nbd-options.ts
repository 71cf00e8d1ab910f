import type { ConnectOptions } from './nbd-connect.ts';

/** How an NBD disk is opened, and how patient it is. */
export interface NbdOptions extends ConnectOptions {
  /** For messages: the address as it was given. */
  readonly name: string;
  readonly readonly?: boolean;
  /** Requests at a time. Default 128. */
  readonly maxRequests?: number;
  /** How long the guest waits for a server that is away before its requests fail. Default 60 000; Infinity: for ever. */
  readonly failAfterMs?: number;
  /** First pause before connecting again; doubles up to 5 s. Default 100. */
  readonly retryMs?: number;
  /** How long the first connection may take. Default 10 000. */
  readonly connectMs?: number;
  /** Bytes of unflushed writes that are remembered. Default 32 MiB. */
  readonly logBytes?: number;
}
