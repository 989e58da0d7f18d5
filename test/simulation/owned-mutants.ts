/** Guards of owned pools (mutants.ts): what keeps catalog and kernel together, and others' devices out of it. */
import type { Mutant } from './mutants.ts'

const pools = 'src/agent/owned-pools'

export const ownedMutants: readonly Mutant[] = [
  {
    name: 'owned-intent-before-act',
    world: 'owned',
    guard: 'that something is to be made is on record before the kernel is told',
    file: `${pools}/pool-intents.ts`,
    from: 'await this.#catalog.ownedPools.begin(intent)\n',
    to: 'const begun = this.#catalog.ownedPools.begin(intent)\n    begun.catch(() => undefined)\n'
  },
  {
    name: 'owned-half-done',
    world: 'owned',
    guard: 'an interrupted change is completed where the kernel shows that it was made',
    file: 'src/agent/catalog/reconcile.ts',
    from: 'if (kernelDidIt === true && (active.transactionId === transactionId || active.transactionId === next)) {',
    to: 'if (kernelDidIt === true && active.transactionId === next) {'
  },
  {
    name: 'owned-intent-contradicted',
    world: 'owned',
    guard: 'a thin device that was created at another transaction is not the one that was begun',
    unseen: 'it would go on record with the transaction that was begun, and from then on be told to be another one',
    file: 'src/agent/catalog/reconcile.ts',
    from: 'const contradicted = device !== undefined && device.transactionId !== intent.transactionId',
    to: 'const contradicted = device !== undefined && device.transactionId === -1n'
  },
  {
    name: 'owned-replaced',
    world: 'owned',
    guard: 'a thin device that has taken the place of another is neither deleted nor snapshotted in its name',
    file: `${pools}/thins.ts`,
    from: 'if (there?.creationTime === thin.creationTime && there.transactionId === thin.transactionId) return\n',
    to: 'if (there) return\n'
  },
  {
    name: 'owned-only-device',
    world: 'owned',
    guard: 'no snapshot is taken of a volume that another process has activated',
    file: `${pools}/active-pool.ts`,
    from: 'if (!foreign) return devices[0]',
    to: 'if (foreign ?? true) return devices.find(({ info }) => info.uuid === thinUuid(thin))'
  },
  {
    name: 'owned-survey-by-number',
    world: 'owned',
    guard: 'a device that is renamed while all are looked at is seen',
    file: 'src/agent/node/survey.ts',
    from: 'for (const { major, minor } of await deviceMapper.list()) {\n    const number = { major, minor }',
    to: 'for (const { name: number } of await deviceMapper.list()) {'
  },
  {
    name: 'owned-suspended-origin',
    world: 'owned',
    guard: 'an active origin is suspended while a snapshot of it is taken',
    file: 'src/devicemapper/thin/pool.ts',
    from: 'await this.#deviceMapper.suspend(activeOrigin, { deadlineMs: SUSPEND_DEADLINE_MS })\n      await message()',
    to: 'await message()'
  },
  {
    name: 'owned-resumed-after-a-failure',
    world: 'owned',
    guard: 'what was left suspended is resumed at the next start',
    file: `${pools}/recover.ts`,
    from: 'if (info.suspended) {',
    to: 'if (info.suspended && info.name === undefined) {'
  },
  {
    name: 'owned-device-without-table',
    world: 'owned',
    guard: 'a device that was made and got no table is removed',
    file: `${pools}/recover.ts`,
    from: 'if (!info.hasLiveTable) {\n      await deviceMapper.remove(reference, { retry: true })\n      done',
    to: 'if (!info.hasLiveTable) {\n      done'
  },
  {
    name: 'owned-size-of-the-origin',
    world: 'owned',
    guard: 'no snapshot is taken of a volume whose device is larger than the catalog says',
    file: `${pools}/thins.ts`,
    from: 'if (device && device.sizeBytes !== origin.sizeBytes) throw sizeDiffers(origin, device.sizeBytes)',
    to: ''
  },
  {
    name: 'owned-any-device-size',
    world: 'owned',
    guard: 'each device of a volume that has another size than the catalog says is named',
    file: 'src/agent/catalog/reconcile.ts',
    from: 'devices.find((each) => each.thinId === thin.thinId && each.sizeBytes !== thin.sizeBytes)\n  if (device === undefined) return []',
    to: 'devices.find((each) => each.thinId === thin.thinId)\n  if (device === undefined || device.sizeBytes === thin.sizeBytes) return []'
  },
  {
    name: 'owned-grown-while-active',
    world: 'owned',
    guard: 'a volume of a pool that is not active is not grown',
    file: `${pools}/thins.ts`,
    from: 'await active.refuseInactive()\n    const device = await active.onlyDevice(thin)',
    to: 'const device = await active.onlyDevice(thin)'
  },
  {
    name: 'owned-adopted-size',
    world: 'owned',
    guard: 'a thin device is not adopted with less than it maps',
    file: `${pools}/thins.ts`,
    from: 'sizeBytes <= mappedEnd - pool.dataBlockSectors * SECTOR_BYTES ||',
    to: ''
  },
  {
    name: 'owned-forgets-the-lost-only',
    world: 'owned',
    guard: 'what is in the pool is not forgotten',
    file: `${pools}/thins.ts`,
    from: 'if (there?.creationTime === thin.creationTime && there.transactionId === thin.transactionId) {',
    to: 'if (there?.creationTime === -1) {'
  },
  {
    name: 'owned-wipes-the-known-only',
    world: 'owned',
    guard: 'a pool with thin devices that the catalog does not know is not wiped',
    file: `${pools}/active-pool.ts`,
    from: 'if (inside !== undefined && inside.size > 0) {',
    to: 'if (inside === null) {'
  },
  {
    name: 'owned-activated-as-left',
    world: 'owned',
    guard: 'a pool is activated only at the transaction at which it was left',
    unseen: 'its absence is told when the pool is active: its transaction differs from the catalog',
    file: 'src/devicemapper/thin/pool.ts',
    from: 'if (!transactionIds.includes(transactionId)) {',
    to: 'if (transactionIds.length === 0) {'
  },
  {
    name: 'owned-undone',
    world: 'owned',
    guard: 'what the kernel accepted and did not keep is not said to be done',
    file: `${pools}/pool-intents.ts`,
    from: 'if (undone !== undefined) {',
    to: 'if (undone === intent) {'
  },
  {
    name: 'owned-free-id',
    world: 'owned',
    guard: 'a thin id is free in the catalog as well as in the pool',
    unseen: 'the catalog refuses an id that it has, and the kernel one that the pool has: it spares a refusal',
    file: `${pools}/thins.ts`,
    from: '...view.thins.map((thin) => thin.thinId), ',
    to: ''
  }
]
