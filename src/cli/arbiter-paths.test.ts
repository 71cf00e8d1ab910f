import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { wholeArbiter } from './arbiter-paths.ts';
import { protectRequest } from './control.ts';
import { parseEtcd } from './etcd-options.ts';
import { parseStandbyOptions } from './standby-options.ts';

describe('wholeArbiter', () => {
  it('takes relative paths from the folder of the command', () => {
    expect(wholeArbiter('lock:guest.lock', '/home/me')).toBe('lock:/home/me/guest.lock');
    expect(wholeArbiter('lock:../guest.lock', '/home/me')).toBe('lock:/home/guest.lock');
    expect(
      wholeArbiter('etcd:https://a:1,https://b:2/db?ca=ca.pem&cert=pki/c&key=./k&lease=3s', '/e'),
    ).toBe('etcd:https://a:1,https://b:2/db?ca=/e/ca.pem&cert=/e/pki/c&key=/e/k&lease=3s');
    expect(wholeArbiter('etcd:https://a?user=u&password-file=p,https://b?ca=x', '/e')).toBe(
      'etcd:https://a?user=u&password-file=/e/p,https://b?ca=/e/x',
    );
  });

  it('leaves everything else as it is', () => {
    for (const value of [
      'none',
      'lock:',
      'oracle',
      'lock:/shared/guest.lock',
      'etcd:',
      'etcd:https://a/key=x?lease=2s&user=ca',
      'etcd:https://a?ca=/etc/ca.pem&ca=',
    ]) {
      expect(wholeArbiter(value, '/home/me')).toBe(value);
    }
  });

  it('spells any folder so that the URL is read as meant', () => {
    const folder = mkdtempSync(join(tmpdir(), 'tsvmm a+b,c&d%20#é-'));
    try {
      writeFileSync(join(folder, 'my ca.pem'), 'CA');
      for (const typed of ['my+ca.pem', 'my%20ca.pem']) {
        const whole = wholeArbiter(`etcd:https://a,https://b/g?ca=${typed}&lease=2s`, folder);
        expect(parseEtcd(whole)).toMatchObject({ ca: 'CA', name: 'g', leaseMs: 2000 });
        expect(wholeArbiter(whole, '/elsewhere')).toBe(whole);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('what is typed', () => {
  it('reaches the guest with whole paths', () => {
    const here = process.cwd();
    const etcd = 'etcd:https://a/g?ca=ca.pem';
    for (const [arbiter, whole] of [
      ['lock:l', `lock:${here}/l`],
      [etcd, wholeArbiter(etcd, here)],
      [undefined, undefined],
    ] as const) {
      expect(protectRequest({ peer: 'b', key: 'k', ...(arbiter && { arbiter }) })).toMatchObject({
        'ft-peer': 'b',
        'ft-key': `${here}/k`,
        'ft-arbiter': whole,
      });
    }
    expect(parseStandbyOptions({ ftArbiter: 'lock:l' }).arbiter).toBe(`lock:${here}/l`);
  });
});
