/** The key that the two hosts of a guest share: read from a file, used as TLS pre-shared key. */
import { readFileSync, statSync } from 'node:fs';
import { messageOf, VmmError } from '../../base/error.ts';

const KEY_HEX_DIGITS = 64;
const HOW = 'Make one with: (umask 077; openssl rand -hex 32 >FILE) and copy it to the other host.';

/**
 * Reads a key: 64 hexadecimal digits.
 * @throws VmmError `FT_KEY`
 */
export function readKey(path: string): Uint8Array {
  let text: string;
  try {
    text = readFileSync(path, 'utf8').trim();
    if ((statSync(path).mode & 0o077) !== 0) {
      throw new VmmError('FT_KEY', `the key file '${path}' can be read or written by other users`, {
        hint: `chmod 600 ${path}`,
      });
    }
  } catch (error) {
    if (error instanceof VmmError) throw error;
    throw new VmmError('FT_KEY', `the key file '${path}' cannot be read: ${messageOf(error)}`, {
      hint: HOW,
      cause: error,
    });
  }
  if (text.length !== KEY_HEX_DIGITS || !/^[0-9a-fA-F]+$/.test(text)) {
    throw new VmmError(
      'FT_KEY',
      `the key file '${path}' does not hold ${KEY_HEX_DIGITS} hexadecimal digits`,
      {
        hint: HOW,
      },
    );
  }
  return Uint8Array.from(Buffer.from(text, 'hex'));
}
