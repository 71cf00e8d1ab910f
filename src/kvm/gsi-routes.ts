/** GSI routing tables: the default one of a PC, and the native form. */
import { VmmError } from '../base/error.ts';
import type { GsiRoute } from './api.ts';
import { ROUTE_ROW_WORDS } from './native.ts';

const CHIP = { 'pic-master': 0, 'pic-slave': 1, ioapic: 2 } as const;
const PINS = { 'pic-master': 8, 'pic-slave': 8, ioapic: 24 } as const;

/**
 * ISA interrupts 0-15 to the PICs and the IOAPIC, 16-23 to the IOAPIC. The timer (0) is wired to IOAPIC pin 2, as the
 * interrupt source override of a PC's MADT says; nothing else reaches that pin.
 */
export function defaultGsiRoutes(): GsiRoute[] {
  const routes: GsiRoute[] = [];
  for (let gsi = 0; gsi < 16; gsi++) {
    routes.push({ gsi, kind: gsi < 8 ? 'pic-master' : 'pic-slave', pin: gsi % 8 });
    if (gsi !== 2) routes.push({ gsi, kind: 'ioapic', pin: gsi === 0 ? 2 : gsi });
  }
  for (let gsi = 16; gsi < 24; gsi++) routes.push({ gsi, kind: 'ioapic', pin: gsi });
  return routes;
}

export function encodeGsiRoutes(routes: readonly GsiRoute[]): Uint32Array {
  const rows = new Uint32Array(routes.length * ROUTE_ROW_WORDS);
  for (const [i, route] of routes.entries()) {
    const at = i * ROUTE_ROW_WORDS;
    rows[at] = route.gsi;
    if (route.kind === 'msi') {
      rows[at + 1] = 1;
      rows[at + 2] = route.address % 0x1_0000_0000;
      rows[at + 3] = Math.floor(route.address / 0x1_0000_0000);
      rows[at + 4] = route.data;
    } else {
      if (!(Number.isInteger(route.pin) && route.pin >= 0 && route.pin < PINS[route.kind])) {
        throw new VmmError('KVM_ROUTE', `${route.kind} has no pin ${route.pin}`);
      }
      rows[at + 2] = CHIP[route.kind];
      rows[at + 3] = route.pin;
    }
  }
  return rows;
}
