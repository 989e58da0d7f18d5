/**
 * What the names of a volume, its group and its snapshots can come to mean between two backups: each is done by hand, with LVM's own commands,
 * to a volume that has one point on its chain. The next point has to hold what the volume holds then, whatever its base turns out to be.
 */
import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './dmsetup.ts'
import { createGroup, createPool, createThick, createThin, lvm, writeBlocks } from './lvm-setup.ts'

export interface Renaming {
  readonly what: string
  /** Whether the volume is not thin. */
  readonly isClassic?: boolean
  /** What is done between the two backups. The volume has as many bytes afterwards, and its group a pool of the same name. */
  readonly act: (place: Place, folder: string) => void
}

/** Where a volume lies that has been backed up once. */
export interface Place {
  readonly group: string
  readonly name: string
  /** Of the newest point; gone by now where nothing is kept. */
  readonly snapshot: string
  readonly isKept: boolean
}

const MEBIBYTES = 4
let groups = 0

/** A group of its own, with two pools of one kind and a volume that has data. */
export function newPlace(folder: string, isClassic: boolean): Omit<Place, 'snapshot' | 'isKept'> {
  const group = `names${groups++}`
  makeGroup(folder, group)
  if (isClassic) createThick(group, 'mail', MEBIBYTES)
  else createThin(group, 'pool', 'mail', MEBIBYTES)
  writeBlocks(`/dev/${group}/mail`, 0, 40, 'a')
  return { group, name: 'mail' }
}

function makeGroup(folder: string, group: string): void {
  const disk = join(folder, `${group}-${groups++}`)
  writeFileSync(disk, '')
  truncateSync(disk, 64 * 2 ** 20)
  createGroup(group, run('losetup', ['--find', '--show', disk]).trim())
  for (const pool of ['pool', 'other']) createPool(group, pool, 12)
}

function anew({ group, name }: Place, pool: string): void {
  lvm('lvremove', `${group}/${name}`)
  createThin(group, pool, name, MEBIBYTES)
  // (The same blocks of the pool, given out in another order.)
  writeBlocks(`/dev/${group}/${name}`, 30, 10, 'b')
  writeBlocks(`/dev/${group}/${name}`, 0, 20, 'c')
}

/** What was called so goes by another name, and what is made now takes its name. */
function exchange({ group, name }: Place, make: () => void): void {
  lvm('lvrename', `${group}/${name}`, `${group}/older`)
  make()
  writeBlocks(`/dev/${group}/${name}`, 5, 20, 'd')
}

export const renamings: readonly Renaming[] = [
  { what: 'the volume is removed, and made anew in its pool', act: (place) => anew(place, 'pool') },
  { what: 'the volume is removed, and made anew in another pool', act: (place) => anew(place, 'other') },
  {
    what: 'the volume is renamed, and another one takes its name',
    act: (place) => exchange(place, () => createThin(place.group, 'pool', place.name, MEBIBYTES))
  },
  {
    what: 'a classic volume is renamed, and another one takes its name',
    isClassic: true,
    act: (place) => exchange(place, () => createThick(place.group, place.name, MEBIBYTES))
  },
  {
    what: 'the volume is rolled back to the snapshot that was kept',
    act: ({ group, name, snapshot, isKept }) => {
      writeBlocks(`/dev/${group}/${name}`, 10, 5, 'e')
      if (!isKept) return
      lvm('lvchange', '--activate', 'n', `${group}/${name}`, `${group}/${snapshot}`)
      lvm('lvconvert', '--merge', `${group}/${snapshot}`)
      lvm('lvchange', '--activate', 'y', `${group}/${name}`)
      writeBlocks(`/dev/${group}/${name}`, 20, 2, 'f')
    }
  },
  {
    what: 'somebody takes a snapshot of the same name',
    act: ({ group, name, snapshot, isKept }) => {
      if (isKept) lvm('lvremove', `${group}/${snapshot}`)
      writeBlocks(`/dev/${group}/${name}`, 10, 5, 'g')
      const words = ['--snapshot', '--setactivationskip', 'n', '--permission', 'r', '--name', snapshot]
      lvm('lvcreate', ...words, `${group}/${name}`)
      writeBlocks(`/dev/${group}/${name}`, 12, 1, 'h')
    }
  },
  {
    what: 'the snapshot that was kept is written to, and read-only again',
    act: ({ group, name, snapshot, isKept }) => {
      writeBlocks(`/dev/${group}/${name}`, 10, 5, 'i')
      if (!isKept) return
      lvm('lvchange', '--permission', 'rw', `${group}/${snapshot}`)
      writeBlocks(`/dev/${group}/${snapshot}`, 11, 1, 'j')
      lvm('lvchange', '--permission', 'r', `${group}/${snapshot}`)
    }
  },
  {
    what: 'the group is renamed, and another one takes its name, its pools and its ids',
    act: ({ group, name, snapshot, isKept }, folder) => {
      lvm('vgchange', '--activate', 'n', group)
      lvm('vgrename', group, `older-${group}`)
      lvm('vgchange', '--activate', 'y', `older-${group}`)
      makeGroup(folder, group)
      createThin(group, 'pool', name, MEBIBYTES)
      writeBlocks(`/dev/${group}/${name}`, 0, 40, 'k')
      if (isKept) lvm('lvcreate', '--snapshot', '--setactivationskip', 'n', '--name', snapshot, `${group}/${name}`)
      writeBlocks(`/dev/${group}/${name}`, 3, 5, 'l')
    }
  },
  {
    what: 'the clock is set back by two days',
    act: ({ group, name }) => {
      writeBlocks(`/dev/${group}/${name}`, 10, 5, 'm')
      run('date', ['--set', '-2 days'])
    }
  }
]
