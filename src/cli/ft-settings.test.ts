import { describe, expect, it } from 'vitest';
import { changeSettings, parsePeers, parseSettings, SETTINGS_DEFAULTS } from './ft-settings.ts';
import { parseStandbyOptions } from './standby-options.ts';

describe('settings of protection', () => {
  it('are read on top of what held before', () => {
    const said: Record<string, string> = { 'ft-policy': 'kemari', 'ft-interval': '5ms' };
    const now = parseSettings((name) => said[name]);
    expect(now).toEqual({ ...SETTINGS_DEFAULTS, policy: 'kemari', intervalNs: 5e6 });
    expect(changeSettings({ 'ft-max-downtime': '1s' }, now)).toEqual({
      ...now,
      maxDowntimeNs: 1e9,
    });
  });

  it.each([
    [{}, /takes ft-policy=/],
    [{ 'ft-policy': 'fast' }, /^ft-policy fast: is none of adaptive, kemari, periodic$/],
    [{ 'ft-interval': '0ms' }, /^ft-interval 0ms: is not between 100us and 1m$/],
    [{ 'ft-interval': '2m' }, /is not between/],
    [{ 'ft-max-downtime': 'soon' }, /is no duration/],
    [{ 'ft-timeout': '1s' }, /cannot be set; tsvmm set takes/],
    [{ 'ft-policy': 7 }, /cannot be set/],
  ])('one sentence for what cannot be set: %j', (changes, sentence) => {
    expect(() => changeSettings(changes, SETTINGS_DEFAULTS)).toThrow(sentence);
  });

  it('list peers in order, each once', () => {
    const peers = parsePeers('--ft-peer', 'hostb,hostc:5,kemari:tcp:hostd:6,[::1]:7');
    expect(peers.map(({ host, port }) => `${host} ${port}`)).toEqual([
      'hostb 4444',
      'hostc 5',
      'hostd 6',
      '::1 7',
    ]);
    expect(() => parsePeers('--ft-peer', 'a,,b')).toThrow(/of no length/);
    expect(() => parsePeers('--ft-peer', 'a,b,a:4444')).toThrow(/names a:4444 twice/);
    const many = Array.from({ length: 17 }, (_, i) => `h${i}`).join();
    expect(() => parsePeers('--ft-peer', many)).toThrow(/more than 16/);
  });

  it('are what a standby does once the guest runs there', () => {
    const options = parseStandbyOptions({
      listen: '127.0.0.1:1',
      ftPeer: '127.0.0.1:2,localhost',
      ftMaxDowntime: '50ms',
      ftOnPeerLoss: 'pause',
    });
    expect(options.peers.map(({ host }) => host)).toEqual(['127.0.0.1', 'localhost']);
    expect(() => parseStandbyOptions({ ftPeer: 'localhost,a' })).toThrow(/the peer a needs a key/);
    expect(options.settings).toMatchObject({ maxDowntimeNs: 50e6, onPeerLoss: 'pause' });
    expect(parseStandbyOptions({}).peers).toEqual([]);
  });
});
