import { expect, it } from 'vitest';
import { ManualClock } from '../base/clock.ts';
import { MemoryLog } from '../base/log.ts';
import { DebugLog } from './debug-log.ts';

function write(debug: DebugLog, text: string): void {
  for (const byte of Buffer.from(text, 'latin1')) debug.byte(byte);
}

it('logs one line per line, without what terminals would obey', () => {
  const log = new MemoryLog();
  const debug = new DebugLog(new ManualClock(), log);
  write(debug, 'SeaBIOS (version 1)\r\n\n\x1b[2Jred\xff\nunfinished');
  expect(log.lines).toEqual(['debug firmware: SeaBIOS (version 1)', 'debug firmware: ?[2Jred?']);
});

it('bounds the length of a line and the number of lines', () => {
  const log = new MemoryLog();
  const clock = new ManualClock();
  const debug = new DebugLog(clock, log);
  write(debug, `${'x'.repeat(100_000)}\n`);
  expect(log.lines).toEqual([`debug firmware: ${'x'.repeat(200)}...`]);
  for (let i = 0; i < 5000; i++) write(debug, 'again\n');
  expect(log.lines.length).toBe(400);
  clock.advance(10e9);
  write(debug, 'later\n');
  expect(log.lines.at(-1)).toBe('debug firmware: later (4601 lines before it were left out)');
});
