import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { IoBus } from '../../src/bus/io-bus.ts';
import { deviceConformance } from '../../test/support/device-conformance.ts';
import { access, anyAccess } from '../../test/support/region-access.ts';
import { I8042 } from './i8042.ts';
import {
  COMMAND,
  I8042_CONTROL_PORT,
  I8042_DATA_PORT,
  NO_ANSWER,
  NO_DEVICE,
  STATUS,
  SYSTEM_CONTROL_A_PORT,
} from './spec.ts';

function mapped(device: I8042): IoBus {
  const bus = new IoBus('ports');
  bus.map(I8042_DATA_PORT, 1, device.data);
  bus.map(I8042_CONTROL_PORT, 1, device.control);
  bus.map(SYSTEM_CONTROL_A_PORT, 1, device.systemControlA);
  return bus;
}

function rig() {
  let resets = 0;
  const device = new I8042({ id: 'i8042', onReset: () => resets++ });
  const bus = mapped(device);
  const status = (): number => bus.read(I8042_CONTROL_PORT, 1);
  const data = (value: number): void => bus.write(I8042_DATA_PORT, 1, value);
  const answer = (): number => bus.read(I8042_DATA_PORT, 1);
  /** Gives a command and returns the answer, or -1 when there is none. */
  const command = (value: number): number => {
    bus.write(I8042_CONTROL_PORT, 1, value);
    return (status() & STATUS.outputFull) !== 0 ? answer() : -1;
  };
  return { device, bus, status, data, answer, command, resets: () => resets };
}

describe('I8042', () => {
  it('resets on 0xfe, on every pulse of bit 0, by the output port and by port 0x92', () => {
    const { bus, command, data, resets } = rig();
    command(0xfe);
    expect(resets()).toBe(1);
    command(0xf0);
    expect(resets()).toBe(2);
    command(0xff);
    command(0xfd);
    expect(resets()).toBe(2);
    command(COMMAND.writeOutputPort);
    data(0xce);
    expect(resets()).toBe(3);
    bus.write(SYSTEM_CONTROL_A_PORT, 1, 2);
    bus.write(SYSTEM_CONTROL_A_PORT, 1, 3);
    expect(resets()).toBe(4);
  });

  it('passes its self-test and says so in the status', () => {
    const { command, status } = rig();
    expect(status() & STATUS.system).toBe(0);
    expect(command(COMMAND.selfTest)).toBe(0x55);
    expect(status()).toBe(STATUS.unlocked | STATUS.system | STATUS.command);
  });

  it('has nothing plugged in, and says it at once', () => {
    const { command, data, answer, status } = rig();
    expect(command(COMMAND.testKeyboard)).toBe(NO_DEVICE);
    expect(command(COMMAND.testAux)).toBe(NO_DEVICE);
    for (const lead of [-1, COMMAND.writeAux]) {
      if (lead >= 0) command(lead);
      data(0xff);
      expect(status() & (STATUS.outputFull | STATUS.timeout)).toBe(0x41);
      expect(answer()).toBe(NO_ANSWER);
      expect(status() & (STATUS.outputFull | STATUS.timeout)).toBe(0);
    }
  });

  it('keeps its memory and the command byte', () => {
    const { command, data } = rig();
    command(COMMAND.writeRam);
    data(0x45);
    expect(command(COMMAND.readRam)).toBe(0x45);
    command(COMMAND.disableKeyboard);
    expect(command(COMMAND.readRam)).toBe(0x55);
    command(COMMAND.enableKeyboard);
    command(COMMAND.disableAux);
    expect(command(COMMAND.readRam)).toBe(0x65);
    command(COMMAND.enableAux);
    command(COMMAND.writeRam + 31);
    data(7);
    expect([command(COMMAND.readRam + 31), command(COMMAND.readRam)]).toEqual([7, 0x45]);
  });

  it('shows one A20 bit in all places', () => {
    const { bus, command, data } = rig();
    const a20 = (): number[] => [
      (command(COMMAND.readOutputPort) >> 1) & 1,
      bus.read(SYSTEM_CONTROL_A_PORT, 1) >> 1,
    ];
    expect(a20()).toEqual([1, 1]);
    command(COMMAND.disableA20);
    expect(a20()).toEqual([0, 0]);
    bus.write(SYSTEM_CONTROL_A_PORT, 1, 2);
    expect(a20()).toEqual([1, 1]);
    command(COMMAND.writeOutputPort);
    data(0xcd);
    expect(a20()).toEqual([0, 0]);
    command(COMMAND.enableA20);
    expect(a20()).toEqual([1, 1]);
  });

  it('echoes what is put into its output buffer', () => {
    const { command, data, answer } = rig();
    command(COMMAND.writeKeyboardOutput);
    data(0x1c);
    expect(answer()).toBe(0x1c);
  });

  it('forgets a command whose data never came when the next one is given', () => {
    const { command, data, answer } = rig();
    command(COMMAND.writeRam);
    command(COMMAND.enableKeyboard);
    data(0x12);
    expect(answer()).toBe(NO_ANSWER);
  });

  it('answers commands that it does not know with silence', () => {
    const { command } = rig();
    for (const unknown of [0x00, 0x40, 0x80, 0xa0, 0xac, 0xc1, 0xe0]) {
      expect(command(unknown)).toBe(-1);
    }
  });
});

/** The three ports as offsets 0, 1, 2 of one region. */
const PLACES = [I8042_DATA_PORT, I8042_CONTROL_PORT, SYSTEM_CONTROL_A_PORT];

deviceConformance('i8042', {
  world: () => ({ resets: [] as string[] }),
  attach: ({ resets }) => new I8042({ id: 'i8042', onReset: () => resets.push('reset') }),
  steps: fc.oneof(
    anyAccess(PLACES.length),
    fc.record({
      write: fc.constant(true),
      offset: fc.constant(1),
      size: fc.constant(1 as const),
      value: fc.constantFrom(0x20, 0x60, 0x61, 0xaa, 0xab, 0xd0, 0xd1, 0xd2, 0xd4, 0xdd, 0xfe),
    }),
  ),
  perform: (_world, device, step) =>
    access(mapped(device), { ...step, offset: PLACES[step.offset]! }),
  observe: ({ resets }) => resets,
  impossible: (good) => [
    { ...good, ram: new Uint8Array(31) },
    { ...good, outputPort: 0xce },
    { ...good, pending: COMMAND.selfTest },
    { ...good, timedOut: true },
  ],
});
