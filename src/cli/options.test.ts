import { describe, expect, it } from 'vitest';
import { parseCount, parseDurationNs, parseSize, parseSpec, requireText } from './options.ts';

describe('option values', () => {
  it('reads sizes with units', () => {
    expect(parseSize('--memory', '256M')).toBe(256 * 2 ** 20);
    expect(parseSize('--memory', '1.5g')).toBe(1.5 * 2 ** 30);
    expect(parseSize('--memory', '2GiB')).toBe(2 ** 31);
    expect(parseSize('--memory', '4096')).toBe(4096);
    for (const bad of ['', 'x', '-1', '0', '1.3', '12Q', '1e9', '9999999T']) {
      expect(() => parseSize('--memory', bad)).toThrow(/^--memory /);
    }
  });

  it('reads counts and durations', () => {
    expect(parseCount('--cpus', '4', 1, 64)).toBe(4);
    for (const bad of ['0', '65', '1.5', '', '0x2', 'two']) {
      expect(() => parseCount('--cpus', bad, 1, 64)).toThrow(/1 to 64/);
    }
    expect(parseDurationNs('--ft-interval', '20ms')).toBe(20e6);
    expect(parseDurationNs('--ft-interval', '0.5s')).toBe(5e8);
    expect(() => parseDurationNs('--ft-interval', '20')).toThrow(/20ms/);
  });

  it('splits device specifications', () => {
    const spec = parseSpec('--disk', 'a,,b.img,readonly,serial=x=y', ['readonly', 'serial']);
    expect(spec.main).toBe('a,b.img');
    expect([...spec.values]).toEqual([
      ['readonly', ''],
      ['serial', 'x=y'],
    ]);
    expect(() => parseSpec('--disk', 'a,colour=red', ['readonly'])).toThrow(
      /'colour'; it takes readonly/,
    );
    expect(() => parseSpec('--disk', 'a,readonly,readonly', ['readonly'])).toThrow(/twice/);
  });

  it('keeps an error to one line, whatever the value', () => {
    expect(() => parseSize('--memory', 'a\nb\u001b[2J')).toThrow(
      /^--memory a\\u000ab\\u001b\[2J: is no size/,
    );
    expect(() => parseSize('--memory', 'x'.repeat(5000))).toThrow(/^--memory x{500}\.\.\.: /);
    expect(() => requireText('--kernel', 'a\u2028b')).toThrow(/a\\u2028b: must be text/);
    requireText('--append', 'a\tb ü');
  });
});
