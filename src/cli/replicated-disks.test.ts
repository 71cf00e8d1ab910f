// When a host that was lost may come back with what differs: decided by guest, generation, transaction and image, never guessed.
import {
  existsSync,
  mkdtempSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { crc32c } from '../base/crc32c.ts';
import { ActivityFile, type ActivityState, activityPath } from '../ft/disk/activity-file.ts';
import type { Crc } from '../ft/disk/disk-log.ts';
import {
  activityParts,
  imageStamp,
  readActivity,
  removeActivity,
} from '../ft/disk/host-storage.ts';
import type { DiskOption } from './device-options.ts';
import type { Description } from './ft-description.ts';
import { NOTHING_KEPT, returnedAtStart } from './replicated-disks.ts';

const crc: Crc = (bytes, offset, length, previous) =>
  crc32c(bytes, offset, offset + length, previous);
const vm = '0123456789abcdef0123456789abcdef';
const folder = mkdtempSync(join(tmpdir(), 'tsvmm-return-'));
afterAll(() => rmSync(folder, { recursive: true }));

const local = ['a', 'b', 'c'].map((source) => ({ source }) as DiskOption);
const log: ActivityState = { vm, generation: 3, fromId: 40, image: 1, extents: [2, 5] };

function described(origin?: Description['origin'], readonly = [false, true, false]): Description {
  const disks = readonly.map((each) => ({ readonly: each }));
  return { vm, generation: 4, ...(origin && { origin }), disks } as Description;
}

function returned(
  change: Partial<ActivityState>,
  description = described({ generation: 3, id: 40 }),
) {
  const activity = new Map([
    ['a', log],
    ['c', { ...log, extents: [], ...change }],
  ]);
  return returnedAtStart(description, local, { ...NOTHING_KEPT, activity });
}

describe('the return of a lost host', () => {
  it('builds on logs of the very run that was taken over', () => {
    expect(returned({})).toEqual({ generation: 3, fromId: 40, extents: [[2, 5], [], []] });
    expect(returned({}, described({ generation: 3, id: 9000 }))).toBeDefined();
  });

  it('builds on nothing else', () => {
    // The log of another guest, of another run, of another standby's time, of one disk alone.
    expect(returned({ vm: vm.replace('0', 'f') })).toBeUndefined();
    expect(returned({ generation: 2 })).toBeUndefined();
    expect(returned({ fromId: 41 })).toBeUndefined();
    expect(
      returned({}, described({ generation: 3, id: 40 }, [false, false, false])),
    ).toBeUndefined();
    // A survivor of another run, one whose state is older than the log, a host that never took over.
    expect(returned({}, described({ generation: 2, id: 40 }))).toBeUndefined();
    expect(returned({}, described({ generation: 4, id: 40 }))).toBeUndefined();
    expect(returned({}, described({ generation: 3, id: 39 }))).toBeUndefined();
    expect(returned({}, described())).toBeUndefined();
    const none = described({ generation: 3, id: 40 });
    expect(returnedAtStart(none, local, NOTHING_KEPT)).toBeUndefined();
    expect(returned({}, described({ generation: 3, id: 40 }, [true, true, true]))).toBeUndefined();
  });
});

describe('the activity log beside an image', () => {
  let count = 0;
  async function image(): Promise<string> {
    const path = join(folder, `disk-${count++}.img`);
    writeFileSync(path, new Uint8Array(8192));
    const parts = activityParts(path, crc, () => {});
    await parts.flush();
    const file = await parts.open();
    await file.write({ ...log, image: parts.image });
    await file.close();
    parts.close();
    return path;
  }

  it('holds for the image as its owner left it', async () => {
    const path = await image();
    expect(await readActivity(path, crc)).toEqual({ ...log, image: imageStamp(path) });
    writeFileSync(path, 'x', { flag: 'r+' });
    expect(await readActivity(path, crc)).toBeDefined();
    removeActivity(path);
    expect(existsSync(activityPath(path))).toBe(false);
    expect(await readActivity(path, crc)).toBeUndefined();
    removeActivity(path);
  });

  it('does not hold for another image, nor for one that was changed later', async () => {
    const replaced = await image();
    writeFileSync(`${replaced}.new`, new Uint8Array(8192));
    renameSync(`${replaced}.new`, replaced);
    expect(await readActivity(replaced, crc)).toBeUndefined();
    const longer = await image();
    truncateSync(longer, 16384);
    expect(await readActivity(longer, crc)).toBeUndefined();
    const changed = await image();
    const now = Date.now() / 1000;
    utimesSync(changed, now + 30, now + 30);
    expect(await readActivity(changed, crc)).toBeDefined();
    utimesSync(changed, now + 120, now + 120);
    expect(await readActivity(changed, crc)).toBeUndefined();
    const voided = await image();
    const file = await activityParts(voided, crc, () => {}).open();
    expect(file).toBeInstanceOf(ActivityFile);
    await file.write(undefined);
    await file.close();
    expect(await readActivity(voided, crc)).toBeUndefined();
  });

  it('that cannot be removed is an error with a remedy', () => {
    // A folder in the place of the image's.
    const path = join(folder, 'file');
    writeFileSync(path, '');
    expect(() => removeActivity(join(path, 'disk.img'))).toThrow(/removing .* failed/);
  });
});
