/**
 * Loads the native addon: native/binding.cjs finds the file built in this checkout, or the platform package. The
 * variable TSVMM_NATIVE names another file (the sanitizer build). Only this room knows that there is an addon.
 */
import { createRequire } from 'node:module';
import { messageOf, VmmError } from '../base/error.ts';

let loaded: unknown;

/** The addon's exports; VmmError NATIVE_MISSING when it cannot be loaded. */
export function loadAddon(): unknown {
  if (loaded !== undefined) return loaded;
  const path = process.env.TSVMM_NATIVE ?? '#native';
  try {
    loaded = createRequire(import.meta.url)(path);
  } catch (error) {
    throw new VmmError('NATIVE_MISSING', `the native addon cannot be loaded: ${messageOf(error)}`, {
      hint: 'In a checkout run `npm run build:native`; an installed package needs Linux on x86-64 with glibc and its optional dependency tsvmm-linux-x64-gnu.',
      cause: error,
    });
  }
  return loaded;
}
