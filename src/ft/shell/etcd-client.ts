/**
 * The part of etcd's HTTP/JSON gateway (v3, in every server since 3.4) that the arbiter needs: one transaction at a time, on two
 * keys, at whichever of several members answers. Keys, values and tokens travel as base64, 64-bit numbers as strings.
 *
 * What a server answers is checked field by field; anything unexpected is an error, never an answer. A transaction may be tried at
 * the next member when one did not answer: it names the revisions it expects, so it can happen only once.
 */
import type { Agent as HttpAgent } from 'node:http';
import type { Agent as HttpsAgent } from 'node:https';
import { createRequire } from 'node:module';
import { messageOf } from '../../base/error.ts';

/** Where the cluster is and how to talk to it. */
export interface EtcdAccess {
  /** `http://HOST:PORT` or `https://HOST:PORT`, all members of one cluster. */
  readonly endpoints: readonly string[];
  /** PEM: whom to believe, and who this is. */
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly user?: string;
  readonly password?: string;
  /** How long one member may take to answer. */
  readonly attemptMs: number;
}

/** One key of a transaction and what becomes of it. */
export interface EtcdChange {
  readonly key: string;
  /** Revision of the key's last change that is expected; 0 where there must be no such key. */
  readonly revision: number;
  /** The new value; null deletes the key, undefined leaves it. */
  readonly value: string | null | undefined;
}

/** A key as a transaction found it. */
export interface EtcdValue {
  readonly revision: number;
  readonly value: string;
}

/** What came of a transaction. */
export type EtcdOutcome =
  | { readonly done: true; readonly revision: number }
  /** What is there, in the order of the keys; undefined for no such key. */
  | { readonly done: false; readonly found: readonly (EtcdValue | undefined)[] };

// Loaded with the first client: few guests have one.
const load = createRequire(import.meta.url);
const http = (): typeof import('node:http') => load('node:http');
const https = (): typeof import('node:https') => load('node:https');

/** Longest answer that is read. */
const ANSWER_BYTES_MAX = 64 * 1024;

/** An answer that is no success, or none that can be understood. */
class EtcdError extends Error {
  readonly unauthenticated: boolean;
  constructor(message: string, unauthenticated = false) {
    super(message);
    this.unauthenticated = unauthenticated;
  }
}

type Json = Readonly<Record<string, unknown>>;

function base64(text: string): string {
  return Buffer.from(text, 'utf8').toString('base64');
}

function objectOf(value: unknown, what: string): Json {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json;
  throw new EtcdError(`its answer has no ${what}`);
}

function listOf(value: unknown, what: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw new EtcdError(`its answer has no list of ${what}`);
}

/** A 64-bit number, which the gateway writes as a string. */
function numberOf(value: unknown, what: string): number {
  const number = typeof value === 'string' && /^\d{1,16}$/.test(value) ? Number(value) : Number.NaN;
  if (!Number.isSafeInteger(number)) throw new EtcdError(`its answer has no usable ${what}`);
  return number;
}

/** See the module's head. */
export class EtcdClient {
  readonly #access: EtcdAccess;
  readonly #agents: { readonly http: HttpAgent; readonly https: HttpsAgent };
  /** The member that answered last. */
  #current = 0;
  #cluster = '';
  #token: string | undefined;

  constructor(access: EtcdAccess) {
    this.#access = access;
    const { ca, cert, key } = access;
    this.#agents = {
      http: new (http().Agent)({ keepAlive: true, maxSockets: 2 }),
      https: new (https().Agent)({
        keepAlive: true,
        maxSockets: 2,
        ca,
        cert,
        key,
        minVersion: 'TLSv1.2',
      }),
    };
  }

  /** Reads keys at one instant, linearizably. @throws Error when no member gives a sound answer */
  async read(keys: readonly string[]): Promise<readonly (EtcdValue | undefined)[]> {
    const ranges = keys.map((key) => ({ request_range: { key: base64(key) } }));
    return this.#call({ compare: [], success: ranges, failure: [] }, (answer) => {
      if (answer.succeeded !== true) throw new EtcdError('its answer is about something else');
      return found(answer, keys);
    });
  }

  /** Changes all keys or none. @throws Error when it is not known what became of it */
  async swap(changes: readonly EtcdChange[]): Promise<EtcdOutcome> {
    const compare = changes.map(({ key, revision }) => ({
      key: base64(key),
      target: 'MOD',
      result: 'EQUAL',
      mod_revision: String(revision),
    }));
    const success = changes
      .filter(({ value }) => value !== undefined)
      .map(({ key, value }) =>
        typeof value === 'string'
          ? { request_put: { key: base64(key), value: base64(value) } }
          : { request_delete_range: { key: base64(key) } },
      );
    const keys = changes.map(({ key }) => key);
    const failure = keys.map((key) => ({ request_range: { key: base64(key) } }));
    return this.#call({ compare, success, failure }, (answer): EtcdOutcome => {
      if (answer.succeeded !== true) return { done: false, found: found(answer, keys) };
      const responses = listOf(answer.responses, 'responses');
      if (responses.length !== success.length) {
        throw new EtcdError('its answer is about something else');
      }
      const { revision } = objectOf(answer.header, 'header');
      return { done: true, revision: numberOf(revision, 'revision') };
    });
  }

  close(): void {
    this.#agents.http.destroy();
    this.#agents.https.destroy();
  }

  /** Asks one member after the other, beginning with the one that answered last. */
  async #call<T>(transaction: unknown, understood: (answer: Json) => T): Promise<T> {
    const { endpoints } = this.#access;
    let first = '';
    for (let tries = 0; tries < endpoints.length; tries++) {
      const endpoint = endpoints[this.#current]!;
      try {
        return understood(await this.#ask(endpoint, '/v3/kv/txn', transaction));
      } catch (error) {
        if (first === '') first = `${endpoint}: ${messageOf(error)}`;
        this.#current = (this.#current + 1) % endpoints.length;
      }
    }
    throw new EtcdError(
      endpoints.length === 1 ? first : `no member gives an answer that can be used (${first}, ...)`,
    );
  }

  async #ask(endpoint: string, path: string, body: unknown): Promise<Json> {
    const { user, password = '' } = this.#access;
    for (let again = false; ; again = true) {
      if (user !== undefined && this.#token === undefined) {
        const login = await this.#post(endpoint, '/v3/auth/authenticate', { name: user, password });
        if (typeof login.token !== 'string') throw new EtcdError('its answer has no token');
        this.#token = login.token;
      }
      try {
        const answer = await this.#post(endpoint, path, body);
        this.#checkCluster(answer);
        return answer;
      } catch (error) {
        const expired = error instanceof EtcdError && error.unauthenticated && user !== undefined;
        if (!expired || again) throw error;
        this.#token = undefined;
      }
    }
  }

  /** Two clusters under one name would be two arbiters. */
  #checkCluster(answer: Json): void {
    const cluster = objectOf(answer.header, 'header').cluster_id;
    if (typeof cluster !== 'string' || cluster === '') throw new EtcdError('it names no cluster');
    if (this.#cluster === '') this.#cluster = cluster;
    if (this.#cluster !== cluster) throw new EtcdError('it belongs to another cluster');
  }

  #post(endpoint: string, path: string, body: unknown): Promise<Json> {
    const { attemptMs } = this.#access;
    const secure = endpoint.startsWith('https:');
    const bytes = Buffer.from(JSON.stringify(body));
    return new Promise<Json>((resolve, reject) => {
      const options = {
        method: 'POST',
        agent: secure ? this.#agents.https : this.#agents.http,
        headers: {
          'content-type': 'application/json',
          'content-length': bytes.length,
          ...(this.#token !== undefined && { authorization: this.#token }),
        },
      };
      const request = (secure ? https() : http()).request(endpoint + path, options, (answer) => {
        const parts: Buffer[] = [];
        let length = 0;
        answer.on('data', (part: Buffer) => {
          length += part.length;
          if (length > ANSWER_BYTES_MAX) request.destroy(new EtcdError('its answer is too long'));
          else parts.push(part);
        });
        answer.on('error', reject);
        answer.on('end', () => {
          try {
            resolve(understand(answer.statusCode ?? 0, Buffer.concat(parts).toString('utf8')));
          } catch (error) {
            reject(error);
          }
        });
      });
      const timer = setTimeout(
        () => request.destroy(new EtcdError(`no answer within ${attemptMs} ms`)),
        attemptMs,
      );
      request.on('error', reject);
      request.on('close', () => {
        clearTimeout(timer);
        // After an answer this changes nothing.
        reject(new EtcdError('the connection ended before the answer'));
      });
      request.end(bytes);
    });
  }
}

/** The body of an answer. @throws EtcdError for everything but a success */
function understand(status: number, text: string): Json {
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    throw new EtcdError(`its answer is no JSON (status ${status})`);
  }
  const answer = objectOf(body, 'object');
  if (status === 200 && answer.error === undefined) return answer;
  const { code } = answer;
  const said = [answer.message, answer.error].find((s) => typeof s === 'string') ?? '';
  const sentence = String(said)
    .replace(/[^\x20-\x7e]/g, '?')
    .slice(0, 200);
  throw new EtcdError(`status ${status} ${sentence}`, code === 16 || status === 401);
}

/** What ranges over `keys` found. */
function found(answer: Json, keys: readonly string[]): readonly (EtcdValue | undefined)[] {
  const responses = listOf(answer.responses, 'responses');
  if (responses.length !== keys.length) throw new EtcdError('its answer is about something else');
  return responses.map((response, i) => {
    const range = objectOf(objectOf(response, 'response').response_range, 'range');
    if (range.kvs === undefined) return undefined;
    const kvs = listOf(range.kvs, 'keys');
    if (kvs.length === 0) return undefined;
    const kv = objectOf(kvs[0], 'key');
    if (kvs.length > 1 || kv.key !== base64(keys[i]!)) {
      throw new EtcdError('its answer is about another key');
    }
    const { value = '' } = kv;
    if (typeof value !== 'string') throw new EtcdError('its answer has no value');
    const revision = numberOf(kv.mod_revision, 'revision');
    if (revision === 0) throw new EtcdError('its answer has no revision');
    return { revision, value: Buffer.from(value, 'base64').toString('utf8') };
  });
}
