#!/usr/bin/env node
/**
 * What the bundle begins with (scripts/bundle.mjs): loads the command with code that was compiled before, from the user's own cache
 * folder. Node 22 and newer do that by themselves; for Node 20 the chunks of the bundle are loaded here, each with V8's code cache.
 * The system's temporary folder, Node's default, belongs to everybody: code is not taken from there, nor from a folder that
 * others can write. NODE_DISABLE_COMPILE_CACHE=1 turns all of it off.
 */
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  writeSync,
} from 'node:fs';
import module, { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Script } from 'node:vm';

/** Digest of the chunks, 64 hexadecimal digits, put in by the bundler: V8 itself compares no more than the length of a source. */
declare const BUILD_DIGEST: string;

/** What cached code belongs to: this build, this engine. Its length stands in front of it, as text. */
const HEAD_BYTES = 128;
const LENGTH_DIGITS = 12;
/** What others may not do with the folder. */
const WRITABLE_BY_OTHERS = 0o022;

const nodeRequire = createRequire(import.meta.url);
const folder = dirname(fileURLToPath(import.meta.url));

function cacheFolder(): string | undefined {
  if (process.env.NODE_DISABLE_COMPILE_CACHE) return undefined;
  const base = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
  return isAbsolute(base) ? join(base, 'tsvmm') : undefined;
}

type ChunkBody = (
  exports: object,
  require: (id: string) => unknown,
  module: { exports: object },
  filename: string,
  dirname: string,
) => void;

/** Chunks with their compiled code, in which `import()` does not work. Whatever is wrong with the cache: the chunk is compiled. */
class CachedChunks {
  readonly #cache: string;
  readonly #loaded = new Map<string, { exports: object }>();
  readonly #compiled: [string, Script][] = [];

  /** @param cache where compiled code is kept */
  constructor(cache: string) {
    this.#cache = cache;
    process.once('exit', (status) => {
      // A run that ended early has compiled little of what others need.
      if (status === 0) this.#keep();
    });
  }

  /** `require` of the chunks: their own names, else Node's. */
  readonly require = (id: string): unknown => {
    if (!id.startsWith('./')) return nodeRequire(id);
    const name = id.slice(2);
    const known = this.#loaded.get(name);
    if (known !== undefined) return known.exports;
    const filename = join(folder, name);
    const source = readFileSync(filename, 'utf8');
    const cachedData = this.#read(name);
    const script = new Script(
      `(function (exports, require, module, __filename, __dirname) {${source}\n})`,
      {
        filename,
        ...(cachedData && { cachedData }),
      },
    );
    if (script.cachedDataRejected !== false) this.#compiled.push([name, script]);
    const chunk = { exports: {} };
    this.#loaded.set(name, chunk);
    const body = script.runInThisContext() as ChunkBody;
    body(chunk.exports, this.require, chunk, filename, folder);
    return chunk.exports;
  };

  #head(bytes: number): string {
    const { version, arch } = process;
    const length = String(bytes).padStart(LENGTH_DIGITS);
    return `${length} ${BUILD_DIGEST} ${version} ${arch}`.padEnd(HEAD_BYTES - 1).concat('\n');
  }

  #read(name: string): Buffer | undefined {
    try {
      const kept = readFileSync(join(this.#cache, name));
      if (kept.toString('latin1', 0, HEAD_BYTES) !== this.#head(kept.length - HEAD_BYTES)) return;
      return kept.subarray(HEAD_BYTES);
    } catch {
      return undefined;
    }
  }

  #keep(): void {
    try {
      for (const [name, script] of this.#compiled) {
        const code = script.createCachedData();
        const path = join(this.#cache, name);
        const draft = `${path}.${process.pid}`;
        const fd = openSync(draft, 'wx', 0o600);
        writeSync(fd, this.#head(code.length));
        writeSync(fd, code);
        // Behind a name there is nothing but whole code, also after a power failure: V8 does not look.
        fsyncSync(fd);
        closeSync(fd);
        renameSync(draft, path);
      }
    } catch {
      // The next run compiles again.
    }
  }
}

/** Whether only this user can put something there. */
function isOwn(path: string): boolean {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const { uid, mode } = statSync(path);
    return uid === process.getuid!() && (mode & WRITABLE_BY_OTHERS) === 0;
  } catch {
    return false;
  }
}

function load(): void {
  const folderWanted = cacheFolder();
  const cache = folderWanted !== undefined && isOwn(folderWanted) ? folderWanted : undefined;
  const { enableCompileCache } = module as {
    enableCompileCache?: (path: string) => unknown;
  };
  if (cache !== undefined && enableCompileCache === undefined) {
    new CachedChunks(cache).require('./commands.cjs');
    return;
  }
  if (cache !== undefined) enableCompileCache?.(cache);
  nodeRequire('./commands.cjs');
}

load();
