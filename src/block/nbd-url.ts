/** Addresses of network block devices, as the NBD project's URI specification writes them. */
import { VmmError } from '../base/error.ts';

/** Where an export is. */
export interface NbdAddress {
  readonly target: { readonly path: string } | { readonly host: string; readonly port: number };
  /** Name of the export; empty for the server's default. */
  readonly exportName: string;
}

const DEFAULT_PORT = 10809;
const MAX_NAME_BYTES = 4096;

/** Whether `text` is meant as an NBD address. */
export function isNbdUrl(text: string): boolean {
  return /^nbds?(\+unix)?:/.test(text);
}

/** Parses `nbd://host[:port]/export` or `nbd+unix:///export?socket=PATH`; VmmError NBD_URL. */
export function parseNbdUrl(text: string): NbdAddress {
  const fail = (why: string, cause?: unknown) =>
    new VmmError('NBD_URL', `${text} is not a usable NBD address: ${why}`, {
      hint: 'Write nbd://host:port/export or nbd+unix:///export?socket=/path/to/socket',
      cause,
    });
  let url: URL;
  let exportName: string;
  try {
    url = new URL(text);
    exportName = decodeURIComponent(url.pathname.replace(/^\//, ''));
  } catch (error) {
    throw fail('it cannot be parsed', error);
  }
  if (Buffer.byteLength(exportName) > MAX_NAME_BYTES) throw fail('the export name is too long');
  if (url.protocol === 'nbd+unix:') {
    const path = url.searchParams.get('socket');
    if (path === null || path === '') throw fail('the socket is missing');
    if (url.host !== '') throw fail('a unix socket has no host');
    return { target: { path }, exportName };
  }
  if (url.protocol === 'nbds:' || url.protocol === 'nbds+unix:')
    throw fail('encrypted connections (TLS) are not supported');
  if (url.protocol !== 'nbd:') throw fail(`${url.protocol} is not NBD`);
  const host = url.hostname.replace(/^\[|\]$/g, '');
  if (host === '') throw fail('the host is missing');
  return { target: { host, port: url.port === '' ? DEFAULT_PORT : Number(url.port) }, exportName };
}
