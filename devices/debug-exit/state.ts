/** The saved state of the debug-exit port: none, it acts at once. */
import { schema } from '../../src/snapshot/schema.ts';

export type DebugExitState = Record<never, never>;

export const debugExitSchema = schema<DebugExitState>('debug-exit', 1, {});
