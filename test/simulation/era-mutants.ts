/** Guards of tracked volumes (mutants.ts): what keeps a history from going on after somebody has written past it. */
import type { Mutant } from './mutants.ts'

const boundary = 'src/agent/era/boundary/boundary.ts'
const history = 'src/devicemapper/era/history.ts'
const tracked = 'src/agent/era/device/tracked-device.ts'

export const eraMutants: readonly Mutant[] = [
  {
    name: 'era-disturbed-suspension',
    world: 'era',
    guard: 'a history ends where somebody else resumed the volume while a snapshot was begun',
    file: boundary,
    from: 'if (isDisturbed) await historyCheck.end(volumeName, RESUMED_BY_OTHERS)',
    to: ''
  },
  {
    name: 'era-second-look',
    world: 'era',
    guard: 'a volume is looked at again before it is resumed',
    file: boundary,
    from: 'await historyCheck.check(volume.name, { suspended: true })\n    // If',
    to: '// If'
  },
  {
    name: 'era-others-eras',
    world: 'era',
    guard: 'an era that nobody announced ends the history',
    file: history,
    from: "if (ownEras !== 'any' && currentEra > seen.newestEra + ownEras) {",
    to: 'if (ownEras === -1) {'
  },
  {
    name: 'era-beside-the-guard',
    world: 'era',
    guard: 'a write to the data device that did not come through the guard ends the history',
    file: tracked,
    from: 'if (now.pastGuard > pastGuard)',
    to: 'if (now.pastGuard === Infinity)'
  },
  {
    name: 'era-written-while-inactive',
    world: 'era',
    guard: 'a write while the volume is not active ends the history',
    file: tracked,
    from: 'if (was.writtenSectors !== is.writtenSectors || was.discards !== is.discards) {',
    to: 'if (was.writtenSectors === -1) {'
  },
  {
    name: 'era-other-boot',
    world: 'era',
    guard: 'a volume that was not deactivated at the shutdown begins a new history',
    file: tracked,
    from: 'if (!wasLast && !trusted) {',
    to: "if (wasLast && before.state === 'active') {"
  },
  {
    name: 'era-look-after-resume',
    world: 'era',
    guard: 'a volume is looked at once it is resumed, before its eras are announced again',
    file: boundary,
    from: 'await historyCheck.lookAfter(volume.name)\n    await historyCheck.expectEras(volume.name, 1)\n    const snapshot',
    to: 'await historyCheck.expectEras(volume.name, 1)\n    const snapshot'
  }
]
