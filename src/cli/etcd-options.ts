/** `etcd:URL[,URL...]` of `--ft-arbiter`: members of one cluster, and how to talk to them. */
import { readFileSync, statSync } from 'node:fs';
import { messageOf, VmmError } from '../base/error.ts';
import type { EtcdArbiterOptions } from '../ft/shell/etcd-arbiter.ts';
import { badOption, parseDurationNs } from './options.ts';

const OPTION = '--ft-arbiter';
const PARAMETERS = ['ca', 'cert', 'key', 'user', 'password-file', 'lease', 'insecure'] as const;
const NAME_DEFAULT = 'tsvmm/guest';
const LEASE_DEFAULT = '5s';
const LEASE_MS_MIN = 1000;
const LEASE_MS_MAX = 60_000;
const MEMBERS_MAX = 16;

const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

/**
 * Parses the whole value. Each URL is a member, `http[s]://HOST[:PORT]`; any of them (by habit the last) may carry the guest's name
 * as its path and parameters: `ca`, `cert`, `key` (PEM files), `user`, `password-file`, `lease`, `insecure`.
 * @throws VmmError `OPTION`, `ARBITER_FILE`
 */
export function parseEtcd(value: string): EtcdArbiterOptions {
  const endpoints: string[] = [];
  const given = new Map<string, string>();
  const set = (name: string, to: string): void => {
    if ((given.get(name) ?? to) !== to) throw badOption(OPTION, value, `gives ${name} twice`);
    given.set(name, to);
  };
  for (const text of value.slice('etcd:'.length).split(',')) {
    const url = memberOf(value, text);
    const port = url.port === '' ? '2379' : url.port;
    endpoints.push(`${url.protocol}//${url.hostname}:${port}`);
    const path = decodeURIComponent(url.pathname).replace(/^\/+|\/+$/g, '');
    if (path !== '') set('name', path);
    for (const [name, to] of url.searchParams) {
      if (!(PARAMETERS as readonly string[]).includes(name)) {
        throw badOption(
          OPTION,
          value,
          `does not know '${name}'; it takes ${PARAMETERS.join(', ')}`,
        );
      }
      set(name, to);
    }
  }
  if (endpoints.length > MEMBERS_MAX) throw badOption(OPTION, value, 'names too many members');
  checkSecrecy(value, endpoints, given);
  const name = given.get('name') ?? NAME_DEFAULT;
  if (!/^[A-Za-z0-9._/-]{1,100}$/.test(name)) {
    throw badOption(OPTION, value, 'names the guest with more than letters, digits and ._/-');
  }
  const leaseMs = parseDurationNs(OPTION, given.get('lease') ?? LEASE_DEFAULT) / 1e6;
  if (!(leaseMs >= LEASE_MS_MIN && leaseMs <= LEASE_MS_MAX)) {
    throw badOption(OPTION, value, 'has a lease outside of 1s to 60s');
  }
  const user = given.get('user');
  const password = fileOf(given, 'password-file', true);
  if ((user === undefined) !== (password === undefined)) {
    throw badOption(OPTION, value, 'needs user and password-file together');
  }
  const ca = fileOf(given, 'ca', false);
  const cert = fileOf(given, 'cert', false);
  const key = fileOf(given, 'key', true);
  if ((cert === undefined) !== (key === undefined)) {
    throw badOption(OPTION, value, 'needs cert and key together');
  }
  return {
    endpoints,
    name,
    leaseMs,
    ...(ca !== undefined && { ca }),
    ...(cert !== undefined && { cert }),
    ...(key !== undefined && { key }),
    ...(user !== undefined && { user }),
    ...(password !== undefined && { password: password.replace(/\r?\n$/, '') }),
  };
}

function memberOf(value: string, text: string): URL {
  let url: URL | undefined;
  try {
    url = new URL(text);
  } catch {
    // Said below.
  }
  if (url === undefined || !/^https?:$/.test(url.protocol) || url.hostname === '') {
    throw badOption(OPTION, value, `'${text}' is no http://HOST:PORT or https://HOST:PORT`);
  }
  if (url.username !== '' || url.password !== '') {
    throw badOption(OPTION, value, 'shows a password to everybody; use user= and password-file=');
  }
  return url;
}

/** Whoever can forge a member's answer can make two hosts run the guest. */
function checkSecrecy(
  value: string,
  endpoints: readonly string[],
  given: Map<string, string>,
): void {
  const insecure = given.get('insecure');
  if (insecure !== undefined && insecure !== 'yes') {
    throw badOption(OPTION, value, "takes insecure only as 'yes'");
  }
  const open = endpoints.find((e) => e.startsWith('http:') && !LOOPBACK.test(new URL(e).hostname));
  if (open === undefined || insecure === 'yes') return;
  throw badOption(
    OPTION,
    value,
    `${open} is neither https nor on this machine: whoever can change its answers decides who runs the guest. Where nobody can, say insecure=yes`,
  );
}

/** Content of the file that a parameter names. */
function fileOf(given: Map<string, string>, name: string, secret: boolean): string | undefined {
  const path = given.get(name);
  if (path === undefined) return undefined;
  try {
    if (secret && (statSync(path).mode & 0o077) !== 0) {
      throw new VmmError('ARBITER_FILE', `${path} (${name}) can be read by other users`, {
        hint: `chmod 600 ${path}`,
      });
    }
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (error instanceof VmmError) throw error;
    throw new VmmError('ARBITER_FILE', `${path} (${name}) cannot be read: ${messageOf(error)}`, {
      cause: error,
    });
  }
}
