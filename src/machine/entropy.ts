/** Entropy for the guest, from the host's generator. */
import { createRequire } from 'node:module';

type Crypto = typeof import('node:crypto');

// Loaded when the guest asks: no guest has to wait for it at its start.
const load = createRequire(import.meta.url);

/** Fills `bytes[start, end)` with random bytes fit for keys. */
export function entropy(bytes: Uint8Array, start: number, end: number): void {
  const { randomFillSync } = load('node:crypto') as Crypto;
  randomFillSync(bytes, start, end - start);
}
