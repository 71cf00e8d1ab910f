/** Entropy for the guest, from the host's generator. */
import { randomFillSync } from 'node:crypto';

/** Fills `bytes[start, end)` with random bytes fit for keys. */
export function entropy(bytes: Uint8Array, start: number, end: number): void {
  randomFillSync(bytes, start, end - start);
}
