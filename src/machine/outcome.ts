/** How a run can end: what the machine reports and the command line turns into an exit status. */

/** How a guest's run ended. */
export type Outcome =
  /** The guest switched itself off (ACPI S5, KVM shutdown event). */
  | { readonly kind: 'power-off' }
  /** The guest asked for a reset and resets end the run here. */
  | { readonly kind: 'reset' }
  /** The guest wrote to the debug-exit port; `status` is the exit status to use. */
  | { readonly kind: 'debug-exit'; readonly status: number }
  /** Ended from outside. */
  | { readonly kind: 'stopped' }
  /** It cannot go on. */
  | { readonly kind: 'error'; readonly message: string };
