/** The saved state of the debug console: none, a byte leaves at once. */
import { schema } from '../../src/snapshot/schema.ts';

export type DebugConsoleState = Record<never, never>;

export const debugConsoleSchema = schema<DebugConsoleState>('debug-console', 1, {});
