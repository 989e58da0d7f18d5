import test from 'ava'
import type { ClassicServices } from '../../../src/agent/answers/classic-services.ts'
import { classicAnswers, type ClassicSnapshot } from '../../../src/agent/answers/classic-snapshot.ts'

const snapshot = (changes: Partial<ClassicSnapshot> = {}): ClassicSnapshot => ({
  ...{
    kind: 'classic',
    handle: 'vg/s1',
    ownHandle: 'vg/s1',
    identity: 'lv-1',
    volume: 'lv-0',
    volumeName: 'vg/o',
    readOnly: true
  },
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
  const answers = classicAnswers({ classic: {} as ClassicServices })
  const question = { base, target, startingOffset: 0n, maxResults: 0, anyVolume: false, lookUp: async () => [] }
  try {
    await answers.plan(question)
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

/** What a base that is not on record is refused with, before anything is read; or what the log says of it. */
async function unrecorded(link: Partial<ClassicSnapshot['link']>, strictBases: boolean): Promise<unknown> {
  const lines: unknown[] = []
  const catalog = { classicSnapshots: { find: async () => [], refuseServedAsThin: async () => undefined } }
  const services = {
    ...{ strictBases, compare: 'never', catalog },
    logger: { warn: (line: unknown) => lines.push(line) },
    deviceMapper: { status: async () => [{ targetType: 'snapshot', params: '16/64 16' }] },
    memory: { take: (least: number) => least }
  } as unknown as ClassicServices
  const [base, target] = [
    snapshot({ link: { ...snapshot().link, ...link } }),
    snapshot({ handle: 'vg/s2', identity: 'lv-2', link: at(9e9, 9) })
  ]
  const question = { base, target, startingOffset: 0n, maxResults: 0, anyVolume: false, lookUp: async () => [] }
  const { asides } = await classicAnswers({ classic: services }).plan(question)
  const walk = { signal: new AbortController().signal, withdraw: () => undefined }
  try {
    await asides?.['begin'](undefined as never, walk)
    return lines[0]
  } catch (error) {
    return (error as { code?: string }).code
  }
}

test("a base that was never served rests on LVM's times, which the log says, or is refused", async (t) => {
  t.like(await unrecorded({}, false), { base: 'vg/s1', code: 'DM_BASE_UNRECORDED' })
  t.like(await unrecorded({ linkedAt: 61 }, false), { code: 'DM_BASE_UNRECORDED' })
  t.is(await unrecorded({ linkedAt: 62 }, false), 'DM_COW_REJOINED')
  t.is(await unrecorded({ linkedAt: 0 }, false), 'DM_BASE_UNRECORDED')
  t.is(await unrecorded({ createdAt: 0 }, false), 'DM_BASE_UNRECORDED')
  t.is(await unrecorded({}, true), 'DM_BASE_UNRECORDED')
})

test('an order is reversed only where times and places say so together', async (t) => {
  const target = snapshot({ handle: 'vg/s2', identity: 'lv-2', link: at(5, 5) })
  t.is(await refusal(snapshot({ link: at(6, 6) }), target), 'DM_ORDER_REVERSED')
  t.is(await refusal(snapshot({ link: at(6, 4) }), target), undefined)
  t.is(await refusal(snapshot({ link: at(4, 6) }), target), undefined)
})
