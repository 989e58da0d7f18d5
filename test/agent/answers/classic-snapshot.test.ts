import test from 'ava'
import type { ClassicServices } from '../../../src/agent/answers/classic-services.ts'
import { classicAnswers, type ClassicSnapshot } from '../../../src/agent/answers/classic-snapshot.ts'

const snapshot = (changes: Partial<ClassicSnapshot> = {}): ClassicSnapshot => ({
  ...{ kind: 'classic', handle: 'vg/s1', identity: 'lv-1', volume: 'lv-0', volumeName: 'vg/o', readOnly: true },
  ...{ uuid: 'LVM-group1lv1', originUuid: 'LVM-group1lv0' },
  link: { id: 'l', linkedAt: 1, createdAt: 1, origin: 'o', snapshot: 's1', merging: false, place: 1 },
  devices: {
    ...{ snapshot: { major: 253, minor: 3 }, storePath: '/dev/mapper/vg-s1-cow', sizeBytes: 4096, chunkBytes: 4096 },
    ...{ storeDevice: { major: 253, minor: 2 }, readOnly: true }
  },
  ...changes
})

/** What a pair is refused with before anything is read; undefined where it is not. */
async function refusal(base: ClassicSnapshot, target: ClassicSnapshot): Promise<string | undefined> {
  const { plan } = classicAnswers({ classic: {} as ClassicServices })
  const question = { base, target, startingOffset: 0n, maxResults: 0, anyVolume: false, lookUp: async () => [] }
  try {
    await plan(question)
    return undefined
  } catch (error) {
    return (error as { code?: string }).code
  }
}

const at = (createdAt: number, place: number) => ({ ...snapshot().link, createdAt, place })

test('which pairs are no pairs', async (t) => {
  const target = snapshot({ handle: 'vg/s2', identity: 'lv-2', link: at(5, 5) })
  t.is(await refusal(snapshot(), target), undefined)
  t.is(await refusal(snapshot({ volume: 'lv-9', originUuid: 'LVM-group1lv9' }), target), 'DM_VOLUMES_DIFFER')
  // Of a clone of the group: vgimportclone leaves the volumes' UUIDs as they are.
  t.is(await refusal(snapshot({ handle: 'clone/s1', originUuid: 'LVM-group2lv0' }), target), 'DM_VOLUMES_DIFFER')
})

test('an order is reversed only where times and places say so together', async (t) => {
  const target = snapshot({ handle: 'vg/s2', identity: 'lv-2', link: at(5, 5) })
  t.is(await refusal(snapshot({ link: at(6, 6) }), target), 'DM_ORDER_REVERSED')
  t.is(await refusal(snapshot({ link: at(6, 4) }), target), undefined)
  t.is(await refusal(snapshot({ link: at(4, 6) }), target), undefined)
})
