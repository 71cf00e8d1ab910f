import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseEtcd } from './etcd-options.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'tsvmm-etcd-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function file(name: string, text: string, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
}

describe('parseEtcd', () => {
  it('reads members, name and parameters', () => {
    expect(parseEtcd('etcd:http://127.0.0.1')).toEqual({
      endpoints: ['http://127.0.0.1:2379'],
      name: 'tsvmm/guest',
      leaseMs: 5000,
    });
    const [ca, cert] = [file('ca', 'CA', 0o644), file('cert', 'CERT', 0o644)];
    const [key, password] = [file('key', 'KEY'), file('password', 'secret\n')];
    const query = `ca=${ca}&cert=${cert}&key=${key}&user=u&password-file=${password}&lease=3s`;
    expect(parseEtcd(`etcd:https://a:1,https://[fe80::1]:2,https://c:3/shop/db?${query}`)).toEqual({
      endpoints: ['https://a:1', 'https://[fe80::1]:2', 'https://c:3'],
      name: 'shop/db',
      leaseMs: 3000,
      ca: 'CA',
      cert: 'CERT',
      key: 'KEY',
      user: 'u',
      password: 'secret',
    });
    expect(parseEtcd('etcd:http://db1:2379?insecure=yes').endpoints).toEqual(['http://db1:2379']);
  });

  it('says what is wrong', () => {
    const bad =
      (text: string): (() => unknown) =>
      () =>
        parseEtcd(`etcd:${text}`);
    expect(bad('')).toThrow(/is no http/);
    expect(bad('http://127.0.0.1,')).toThrow(/is no http/);
    expect(bad('ftp://a')).toThrow(/is no http/);
    expect(bad('http://db1:2379')).toThrow(/neither https nor on this machine/);
    expect(bad('http://127.0.0.1?insecure=no')).toThrow(/only as 'yes'/);
    expect(bad('https://u:p@a')).toThrow(/shows a password/);
    expect(bad('https://a/x,https://b/y')).toThrow(/gives name twice/);
    expect(bad('https://a?colour=red')).toThrow(/does not know 'colour'/);
    expect(bad('https://a/x%20y')).toThrow(/letters, digits/);
    expect(bad('https://a?lease=100ms')).toThrow(/outside of 1s to 60s/);
    expect(bad('https://a?lease=soon')).toThrow(/no duration/);
    expect(bad('https://a?user=u')).toThrow(/together/);
    expect(bad(`https://a?cert=${file('c', 'x')}`)).toThrow(/together/);
    expect(bad('https://a?ca=/nowhere')).toThrow(/cannot be read/);
    expect(bad(`https://a?cert=${file('c', 'x')}&key=${file('k', 'x', 0o644)}`)).toThrow(
      /other users/,
    );
  });
});
