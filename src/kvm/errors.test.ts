import { describe, expect, it } from 'vitest';
import { VmmError } from '../base/error.ts';
import { guarded, toVmmError } from './errors.ts';

const native = (message: string, fields: object) => Object.assign(new Error(message), fields);

describe('errors of the native core', () => {
  it('an ioctl failure keeps its code, call and text', () => {
    const error = toVmmError(
      native('KVM_SET_MSRS: Invalid argument', {
        code: 'KVM_IOCTL',
        call: 'KVM_SET_MSRS',
        errno: 22,
      }),
    ) as VmmError;
    expect(error).toBeInstanceOf(VmmError);
    expect(error.code).toBe('KVM_IOCTL');
    expect(error.message).toMatch(/KVM_SET_MSRS: Invalid argument/);
  });

  it.each([
    [13, /group kvm/],
    [2, /firmware setup/],
    [16, /Another hypervisor/],
  ])('errno %i of opening /dev/kvm says what to do', (errno, hint) => {
    const error = toVmmError(
      native('x', { code: 'KVM_IOCTL', call: 'open(/dev/kvm)', errno }),
    ) as VmmError;
    expect(error.code).toBe('KVM_UNAVAILABLE');
    expect(error.hint).toMatch(hint);
  });

  it('leaves other errors alone', () => {
    const mine = new TypeError('x');
    expect(toVmmError(mine)).toBe(mine);
    expect(() =>
      guarded(() => {
        throw mine;
      }),
    ).toThrow(mine);
  });
});
