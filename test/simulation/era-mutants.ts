/** Guards of tracked volumes (mutants.ts): what keeps a history from going on after somebody has written past it. */
import type { Mutant } from './mutants.ts'

const boundary = 'src/agent/era/boundary/boundary.ts'
const history = 'src/devicemapper/era/history.ts'
const tracked = 'src/agent/era/device/tracked-device.ts'
const recovery = 'src/agent/era/recovery.ts'
const check = 'src/agent/era/device/history-check.ts'

export const eraMutants: readonly Mutant[] = [
  {
    name: 'era-others-resumes',
    world: 'era',
    guard: "somebody else's resumes are counted until a snapshot is on record",
    file: boundary,
    from: 'return this.#resumes.of(this.#device) > 1',
    to: 'return false'
  },
  {
    name: 'era-resumed-before-look',
    world: 'era',
    guard: 'a volume that was resumed before the look at it has no snapshot',
    file: boundary,
    from: 'if (superblock.currentWriteset !== undefined || resumes.of(devices.era) > 0) {',
    to: 'if (superblock.currentWriteset !== undefined) {'
  },
  {
    name: 'era-disturbed-suspension',
    world: 'era',
    guard: 'a history ends where somebody else resumed the volume while a snapshot was begun',
    file: boundary,
    from: 'if (isDisturbed || resumes.of(devices.era) > 1) await historyCheck.end(volumeName, RESUMED_BY_OTHERS)',
    to: ''
  },
  {
    name: 'era-counted-from-the-first-look',
    world: 'era',
    guard: 'resumes are counted from before the first look',
    file: boundary,
    from: 'const isDisturbed = isLoaded || (isSuspended && resumes.of(devices.era) > 0)',
    to: 'const isDisturbed = isLoaded'
  },
  {
    name: 'era-loaded-table',
    world: 'era',
    guard: 'no snapshot is taken where a table is loaded',
    file: boundary,
    from: 'if (loaded) throw inactiveTableError(loaded, `no snapshot is taken of ${volumeName}`)',
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
    name: 'era-boundary-due',
    world: 'era',
    guard: 'the era at the resume has to be the one at the suspension',
    file: boundary,
    from: 'currentEra + 1 !== boundaryEra || ',
    to: ''
  },
  {
    name: 'era-held',
    world: 'era',
    guard: 'a suspension that ended early gives no snapshot',
    file: boundary,
    from: 'if (!held || currentEra',
    to: 'if (currentEra'
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
    name: 'era-goes-back',
    world: 'era',
    guard: 'an era below one that was seen ends the history',
    file: history,
    from: 'if (currentEra < seen.newestEra) {',
    to: 'if (currentEra < 0) {'
  },
  {
    name: 'era-discards',
    world: 'era',
    guard: 'a discard that went through the guard ends the history',
    file: tracked,
    from: 'if (now.discards > was.discards)\n',
    to: 'if (now.discards === Infinity)\n'
  },
  {
    name: 'era-open-limit',
    world: 'era',
    guard: 'a device that lets discards through ends the history',
    file: tracked,
    from: 'if (now.openLimit !== undefined) return now.openLimit',
    to: ''
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
    name: 'era-head',
    world: 'era',
    guard: 'the first bytes of an inactive volume are what they were',
    file: tracked,
    from: 'if (before.head !== now.head) {',
    to: "if (before.head === '-') {"
  },
  {
    name: 'era-metadata-state',
    world: 'era',
    guard: 'the metadata of an inactive volume is what it was',
    file: tracked,
    from: "if (now.metadataState === '' || before.metadataState !== now.metadataState) {",
    to: "if (now.metadataState === '-') {"
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
    name: 'era-recovery-resumes',
    world: 'era',
    guard: 'an agent resumes what the one before it left suspended',
    file: recovery,
    from: 'await resumeTracked(this.#parts, tracked)\n        const left',
    to: 'const left'
  },
  {
    name: 'era-tables',
    world: 'era',
    guard: 'a volume that got another table has a new history, also if its own comes back',
    file: check,
    from: 'await this.endHistory(volume, error.message, { currentEra, blocks })',
    to: ''
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
