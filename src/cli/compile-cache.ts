/**
 * Lets Node keep the compiled code of what is imported later, in the user's own cache folder (Node 22 and newer; elsewhere
 * nothing happens). The system's temporary folder, Node's default, belongs to everybody: code is not taken from there.
 * NODE_DISABLE_COMPILE_CACHE=1 turns it off.
 */
import module from 'node:module';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';

/** Called by main.ts before it imports a command. */
export function enableCompileCache(): void {
  const enable = (module as { enableCompileCache?: (folder: string) => unknown })
    .enableCompileCache;
  if (enable === undefined) return;
  const base = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
  if (isAbsolute(base)) enable(join(base, 'tsvmm'));
}
