/**
 * A conversation as text: one line per message and its bytes below, so that a change of the protocol shows up
 * as a change a reviewer reads. For tests and for people; not used while replicating.
 */
import { encodedBytesMax, encodeMessage } from './codec.ts';
import { describeMessage, type Message } from './message.ts';

/** One message and who said it. */
export interface Line {
  readonly from: 'primary' | 'standby';
  readonly message: Message;
}

/** Bytes as rows of 16, each with its offset. */
export function hexRows(bytes: Uint8Array): string {
  const rows: string[] = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = Array.from(bytes.subarray(at, at + 16), (b) => b.toString(16).padStart(2, '0'));
    rows.push(`    ${at.toString(16).padStart(4, '0')}  ${row.join(' ')}`);
  }
  return rows.join('\n');
}

/** The whole conversation. */
export function transcript(lines: readonly Line[]): string {
  let text = '';
  for (const { from, message } of lines) {
    const bytes = new Uint8Array(encodedBytesMax(message));
    const end = encodeMessage(bytes, 0, message);
    text += `${from === 'primary' ? '>' : '<'} ${describeMessage(message)}\n${hexRows(bytes.subarray(0, end))}\n`;
  }
  return text;
}
