/**
 * Files that the value of `--ft-arbiter` names, by their whole path: the process that opens them may be another one than the one
 * that was typed (`tsvmm protect`), and one guest has one arbiter, however it was spelled. Used by run, standby and protect.
 */
import { resolve } from 'node:path';

/** Parameters of an etcd URL that name files (etcd-options.ts). */
const FILE_PARAMETER = /([?&](?:ca|cert|key|password-file)=)([^&,#]+)/g;

/** A path as a parameter of a URL in a list with commas. */
function encoded(path: string): string {
  return encodeURIComponent(path).replaceAll('%2F', '/');
}

/** `value` with relative paths taken from `folder`; all else stays as it is, what is wrong with it too. */
export function wholeArbiter(value: string, folder = process.cwd()): string {
  if (value.startsWith('lock:') && value.length > 5) {
    return `lock:${resolve(folder, value.slice(5))}`;
  }
  if (!value.startsWith('etcd:')) return value;
  return value.replace(FILE_PARAMETER, (typed, head: string, text: string) => {
    // As the URL will be read: with + for a space.
    const path = new URLSearchParams(`path=${text}`).get('path')!;
    return path.startsWith('/') ? typed : `${head}${encoded(resolve(folder, path))}`;
  });
}
