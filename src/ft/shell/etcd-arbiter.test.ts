import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { MemoryLog } from '../../base/log.ts';
import { EtcdArbiter, type EtcdArbiterOptions } from './etcd-arbiter.ts';

/** A transaction as it is sent. */
interface Txn {
  readonly compare: readonly { readonly key: string; readonly mod_revision?: string }[];
  readonly success: readonly Op[];
  readonly failure: readonly Op[];
}

interface Op {
  readonly request_range?: { readonly key: string };
  readonly request_put?: { readonly key: string; readonly value: string };
  readonly request_delete_range?: { readonly key: string };
}

interface Kv {
  value: string;
  revision: number;
}

/** What a member does with the next requests. */
type Mode =
  | 'well'
  /** The request happens, the answer never comes. */
  | 'lose-answer'
  /** The answer comes, but late. */
  | 'late'
  | 'garbage'
  | 'not-json'
  | 'huge'
  | 'error'
  | 'other-cluster'
  | 'other-key';

/** A cluster of one mind: members that share a store and answer as etcd's gateway does. */
class Gateway {
  readonly store = new Map<string, Kv>();
  revision = 1;
  readonly servers: Server[] = [];
  readonly modes: Mode[] = [];
  requests = 0;
  /** Runs before each transaction is decided. */
  before: (() => void) | undefined;
  password: string | undefined;
  tokens = new Set<string>();
  lateMs = 0;

  async start(members: number): Promise<string[]> {
    for (let i = 0; i < members; i++) {
      const server = createServer((request, answer) => this.#serve(i, request, answer));
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      this.servers.push(server);
      this.modes.push('well');
    }
    return this.servers.map((s) => `http://127.0.0.1:${(s.address() as AddressInfo).port}`);
  }

  stop(member: number): void {
    this.servers[member]!.closeAllConnections();
    this.servers[member]!.close();
  }

  close(): void {
    for (let i = 0; i < this.servers.length; i++) this.stop(i);
  }

  text(key: string): Record<string, unknown> | undefined {
    const kv = this.store.get(Buffer.from(key).toString('base64'));
    return kv && JSON.parse(Buffer.from(kv.value, 'base64').toString());
  }

  put(key: string, value: string): void {
    this.store.set(Buffer.from(key).toString('base64'), {
      value: Buffer.from(value).toString('base64'),
      revision: ++this.revision,
    });
  }

  #serve(member: number, request: IncomingMessage, answer: ServerResponse): void {
    const parts: Buffer[] = [];
    request.on('data', (part: Buffer) => parts.push(part));
    request.on('end', () => {
      this.requests++;
      const mode = this.modes[member]!;
      const reply = (status: number, body: unknown): void => {
        answer.writeHead(status, { 'content-type': 'application/json' });
        answer.end(typeof body === 'string' ? body : JSON.stringify(body));
      };
      const body = JSON.parse(Buffer.concat(parts).toString());
      if (request.url === '/v3/auth/authenticate') {
        if (body.password !== this.password)
          return reply(400, { error: 'no', code: 3, message: 'no' });
        const token = `token-${this.tokens.size}`;
        this.tokens.add(token);
        return reply(200, { header: {}, token });
      }
      if (this.password !== undefined && !this.tokens.has(request.headers.authorization ?? '')) {
        return reply(401, { error: 'etcdserver: invalid auth token', code: 16 });
      }
      if (mode === 'error')
        return reply(503, { error: 'no leader', code: 14, message: 'no leader' });
      if (mode === 'not-json') return reply(200, '<html>');
      if (mode === 'huge') return reply(200, `"${'x'.repeat(100_000)}"`);
      if (mode === 'garbage') {
        return reply(200, {
          header: { cluster_id: '1', revision: 'soon' },
          succeeded: true,
          responses: [{}, {}],
        });
      }
      this.before?.();
      const result = this.#txn(body, mode);
      if (mode === 'lose-answer') return;
      if (mode === 'late') setTimeout(() => reply(200, result), this.lateMs);
      else reply(200, result);
    });
  }

  #txn(body: Txn, mode: Mode): unknown {
    const { store } = this;
    const header = {
      cluster_id: mode === 'other-cluster' ? '2' : '1',
      member_id: '5',
      revision: '0',
    };
    const met = body.compare.every(
      (c) => String(store.get(c.key)?.revision ?? 0) === (c.mod_revision ?? '0'),
    );
    const range = (key: string): unknown => {
      const kv = store.get(key);
      if (kv === undefined) return { response_range: {} };
      const shown = mode === 'other-key' ? Buffer.from('other').toString('base64') : key;
      return {
        response_range: {
          kvs: [{ key: shown, value: kv.value, mod_revision: String(kv.revision) }],
          count: '1',
        },
      };
    };
    const ops = met ? body.success : body.failure;
    if (ops.some((op) => op.request_put || op.request_delete_range)) this.revision++;
    const responses = ops.map((op) => {
      if (op.request_range) return range(op.request_range.key);
      if (op.request_put) {
        store.set(op.request_put.key, { value: op.request_put.value, revision: this.revision });
        return { response_put: {} };
      }
      store.delete(op.request_delete_range!.key);
      return { response_delete_range: {} };
    });
    header.revision = String(this.revision);
    return { header, ...(met && { succeeded: true }), responses };
  }
}

const gateways: Gateway[] = [];
const arbiters: EtcdArbiter[] = [];
afterEach(async () => {
  for (const arbiter of arbiters.splice(0)) await arbiter.close();
  for (const gateway of gateways.splice(0)) gateway.close();
});

async function cluster(members = 1): Promise<{ gateway: Gateway; endpoints: string[] }> {
  const gateway = new Gateway();
  gateways.push(gateway);
  return { gateway, endpoints: await gateway.start(members) };
}

const clock = { aheadNs: 0 };
const nowNs = (): number => performance.now() * 1e6 + clock.aheadNs;
const log = new MemoryLog();

function arbiter(
  endpoints: string[],
  token: string,
  change: Partial<EtcdArbiterOptions> = {},
): EtcdArbiter {
  const made = new EtcdArbiter(
    { endpoints, name: 'g', leaseMs: 1000, ...change },
    { nowNs, token, log },
  );
  arbiters.push(made);
  return made;
}

const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

async function until(test: () => boolean): Promise<void> {
  for (const end = performance.now() + 5000; !test(); await sleep(5)) {
    if (performance.now() > end) throw new Error('waited in vain');
  }
}

const RECORD = { kind: 'record', generation: 1, inSync: 'b1' } as const;
const ACQUIRE = { kind: 'acquire', generation: 1, instance: 'b1' } as const;

describe('EtcdArbiter', () => {
  it('begins, records, keeps its lease, and gives it back', async () => {
    const { gateway, endpoints } = await cluster();
    const a = arbiter(endpoints, 'a');
    expect(await a.begin()).toBe(1);
    expect(await a.request(RECORD)).toEqual({ result: 'ok', generation: 1, sentence: '' });
    expect(gateway.text('g/record')).toMatchObject({ generation: 1, inSync: 'b1', handed: false });
    const first = a.lease.untilNs;
    await until(() => a.lease.untilNs > first + 300e6);
    expect(a.lease.valid).toBe(true);
    await a.close();
    expect(a.lease.valid).toBe(false);
    expect(gateway.text('g/owner')).toBeUndefined();
    const b = arbiter(endpoints, 'b');
    expect(await b.request(ACQUIRE)).toMatchObject({ result: 'ok', generation: 2 });
    expect(b.lease.valid).toBe(true);
  });

  it('goes on at another member when one dies, does not answer, or answers rubbish', async () => {
    const { gateway, endpoints } = await cluster(3);
    const a = arbiter(endpoints, 'a');
    await a.begin();
    const events: string[] = [];
    a.lease.setEvents({
      changed: () => events.push('changed'),
      superseded: () => events.push('superseded'),
    });
    gateway.stop(0);
    expect((await a.request(RECORD)).result).toBe('ok');
    for (const mode of [
      'error',
      'not-json',
      'huge',
      'garbage',
      'other-cluster',
      'other-key',
      'lose-answer',
    ] as const) {
      // The client stays with the member that answered last: 1 or 2.
      gateway.modes[1] = mode;
      gateway.modes[2] = 'well';
      expect((await a.request(RECORD)).result, mode).toBe('ok');
      gateway.modes[1] = 'well';
      gateway.modes[2] = mode;
      expect((await a.request(RECORD)).result, mode).toBe('ok');
    }
    expect(a.lease.valid).toBe(true);
    expect(events).not.toContain('superseded');
  });

  it('takes rubbish for no authority', async () => {
    const { gateway, endpoints } = await cluster();
    const a = arbiter(endpoints, 'a');
    await a.begin();
    await a.request(RECORD);
    const b = arbiter(endpoints, 'b');
    for (const mode of ['error', 'not-json', 'huge', 'garbage', 'other-key'] as const) {
      gateway.modes[0] = mode;
      const verdict = await b.request(ACQUIRE);
      expect(verdict, mode).toMatchObject({ result: 'unreachable', generation: 0 });
      expect(verdict.sentence, mode).toMatch(/^http:\/\/127/);
    }
    gateway.modes[0] = 'well';
    gateway.put('g/record', '{"version":1,"generation":"1","inSync":"b1","handed":true,"by":""}');
    expect((await b.request(ACQUIRE)).sentence).toMatch(/damaged/);
    gateway.put('g/record', 'null');
    expect((await b.request(ACQUIRE)).sentence).toMatch(/something else/);
    gateway.put('g/record', '{"version":2}');
    expect((await b.request(ACQUIRE)).sentence).toMatch(/another version/);
    expect(b.lease.valid).toBe(false);
  });

  it('ends its lease by itself when nobody answers, before anybody else can take it', async () => {
    const { gateway, endpoints } = await cluster();
    const a = arbiter(endpoints, 'a');
    await a.begin();
    await a.request(RECORD);
    gateway.modes[0] = 'error';
    const before = nowNs();
    await until(() => !a.lease.valid);
    expect(nowNs() - before).toBeLessThan(850e6);
    gateway.modes[0] = 'well';
    // Nobody took the guest: it is there again.
    await until(() => a.lease.valid);
  });

  it('does not count an answer that came late from its arrival', async () => {
    const { gateway, endpoints } = await cluster();
    const a = arbiter(endpoints, 'a', { leaseMs: 2000 });
    await a.begin();
    gateway.modes[0] = 'late';
    gateway.lateMs = 300;
    const sent = nowNs();
    await a.request({ ...RECORD, inSync: '' });
    // A beat may have been on its way when the request was made: then both were late.
    expect(a.lease.untilNs).toBeLessThan(sent + 1600e6 + 400e6);
    expect(nowNs() - sent).toBeGreaterThan(290e6);
  });

  it('is over at once when the clock says so, however long the process was stopped', async () => {
    const { endpoints } = await cluster();
    const a = arbiter(endpoints, 'a');
    await a.begin();
    expect(a.lease.valid).toBe(true);
    clock.aheadNs += 10e9;
    expect(a.lease.valid).toBe(false);
  });

  it('lets a standby take over after a lease of silence, and tells the old primary', async () => {
    const { endpoints } = await cluster();
    const a = arbiter(endpoints, 'a');
    const b = arbiter(endpoints, 'b');
    await a.begin();
    await a.request(RECORD);
    const events: string[] = [];
    a.lease.setEvents({ changed: () => {}, superseded: (g) => events.push(`superseded ${g}`) });
    expect((await b.request(ACQUIRE)).sentence).toMatch(/not run out/);
    const gateway = gateways[0]!;
    await a.close();
    const c = arbiter(endpoints, 'c');
    expect(await c.begin()).toBe(2);
    expect((await b.request(ACQUIRE)).generation).toBe(2);
    gateway.put('g/record', '{"version":1,"generation":3,"inSync":"","handed":false,"by":"d"}');
    gateway.put('g/owner', '{"version":1,"token":"d","beat":1,"leaseMs":1000}');
    c.lease.setEvents({ changed: () => {}, superseded: (g) => events.push(`superseded ${g}`) });
    await until(() => events.includes('superseded 3'));
    expect(c.lease.valid).toBe(false);
  });

  it('loses a race in the middle of its transaction and says why', async () => {
    const { gateway, endpoints } = await cluster();
    const b = arbiter(endpoints, 'b');
    gateway.put('g/record', '{"version":1,"generation":1,"inSync":"b1","handed":true,"by":"a"}');
    let calls = 0;
    gateway.before = () => {
      if (++calls !== 2) return;
      gateway.put('g/record', '{"version":1,"generation":2,"inSync":"","handed":false,"by":"x"}');
      gateway.put('g/owner', '{"version":1,"token":"x","beat":1,"leaseMs":1000}');
    };
    expect(await b.request(ACQUIRE)).toMatchObject({ result: 'refused', generation: 2 });
    expect(b.lease.valid).toBe(false);
  });

  it('logs in, and again when the token has expired', async () => {
    const { gateway, endpoints } = await cluster();
    gateway.password = 'secret';
    const a = arbiter(endpoints, 'a', { user: 'tsvmm', password: 'secret' });
    expect(await a.begin()).toBe(1);
    gateway.tokens.clear();
    expect((await a.request(RECORD)).result).toBe('ok');
    const wrong = arbiter(endpoints, 'w', { user: 'tsvmm', password: 'guess' });
    expect((await wrong.request(ACQUIRE)).result).toBe('unreachable');
  });

  it('says who is in the way, and what cannot be reached', { timeout: 30_000 }, async () => {
    const [taken, dead] = [await cluster(), await cluster()];
    const a = arbiter(taken.endpoints, 'a');
    await a.begin();
    dead.gateway.modes[0] = 'error';
    await Promise.all([
      expect(arbiter(taken.endpoints, 'b').begin()).rejects.toThrow(/running already/),
      expect(arbiter(dead.endpoints, 'c').begin()).rejects.toThrow(/cannot be asked: .*no leader/),
    ]);
  });
});
