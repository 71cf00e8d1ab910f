/** Parsers of option values that several commands share. Each error is one sentence that names the option. */
import { VmmError } from '../base/error.ts';
import { CONTROL, shown } from '../base/text.ts';

/** The error of an option value. */
export function badOption(option: string, value: string, why: string): VmmError {
  return new VmmError('OPTION', `${option} ${shown(value)}: ${shown(why)}`);
}

/** Throws where `value` has line ends and other control characters: no path, name or number has them. */
export function requireText(option: string, value: string): void {
  if (value.replaceAll('\t', '').search(CONTROL) < 0) return;
  throw badOption(option, value, 'must be text without control characters');
}

const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  K: 2 ** 10,
  M: 2 ** 20,
  G: 2 ** 30,
  T: 2 ** 40,
};

/** `256M`, `2G`, `1048576`: bytes, with a unit of 1024 steps. */
export function parseSize(option: string, value: string): number {
  const match = /^(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?$/i.exec(value);
  if (match === null) throw badOption(option, value, 'is no size; write it like 256M or 2G');
  const bytes = Number(match[1]) * UNITS[match[2]!.toUpperCase()]!;
  if (!Number.isSafeInteger(bytes) || bytes <= 0) {
    throw badOption(option, value, 'is not a positive whole number of bytes');
  }
  return bytes;
}

/** A whole number in [low, high]. */
export function parseCount(option: string, value: string, low: number, high: number): number {
  const count = /^\d+$/.test(value) ? Number(value) : Number.NaN;
  if (!(count >= low && count <= high)) {
    throw badOption(option, value, `is no whole number from ${low} to ${high}`);
  }
  return count;
}

/** `20ms`, `1s`, `500us`: nanoseconds. */
export function parseDurationNs(option: string, value: string): number {
  const match = /^(\d+(?:\.\d+)?)(us|ms|s|m)$/.exec(value);
  if (match === null) throw badOption(option, value, 'is no duration; write it like 20ms or 1s');
  const unit = { us: 1e3, ms: 1e6, s: 1e9, m: 60e9 }[match[2] as 'us' | 'ms' | 's' | 'm'];
  return Number(match[1]) * unit;
}

/** `main,key=value,flag`: the part before the first comma, and the rest by key (a bare flag has the value `''`). */
export interface Spec {
  readonly main: string;
  readonly values: ReadonlyMap<string, string>;
}

/**
 * Splits a device specification. A comma inside a value is written `,,`.
 * @param known the keys that the option takes
 */
export function parseSpec(option: string, value: string, known: readonly string[]): Spec {
  const parts: string[] = [''];
  for (let i = 0; i < value.length; i++) {
    if (value[i] !== ',') parts[parts.length - 1] += value[i]!;
    else if (value[i + 1] === ',') {
      parts[parts.length - 1] += ',';
      i++;
    } else parts.push('');
  }
  const values = new Map<string, string>();
  for (const part of parts.slice(1)) {
    const equals = part.indexOf('=');
    const key = equals < 0 ? part : part.slice(0, equals);
    if (!known.includes(key)) {
      throw badOption(option, value, `does not know '${key}'; it takes ${known.join(', ')}`);
    }
    if (values.has(key)) throw badOption(option, value, `gives '${key}' twice`);
    values.set(key, equals < 0 ? '' : part.slice(equals + 1));
  }
  return { main: parts[0]!, values };
}
