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
  }
]
