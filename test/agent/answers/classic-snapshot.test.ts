import test from 'ava'
import type { ClassicServices } from '../../../src/agent/answers/classic-services.ts'
import type { ClassicRow } from '../../../src/agent/catalog/classic-served.ts'
import type { BegunStores } from '../../../src/agent/walks/classic-walk.ts'
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
  link: { id: 'l', linkedAt: 1, createdAt: 1, sizeBytes: 4096, origin: 'o', snapshot: 's1', merging: false, place: 1 },
  devices: {
    ...{
      snapshot: { major: 253, minor: 3 },
      originDevice: { major: 253, minor: 1 },
      storePath: '/dev/mapper/vg-s1-cow',
      sizeBytes: 4096,
      chunkBytes: 4096
    },
    ...{ storeDevice: { major: 253, minor: 2 }, readOnly: true, untouched: true }
  },
  tables: { origin: [], store: [] },
  ...{ unlike: [], sequenceNumber: 1n },
  ...changes
})

/** Devices that nobody has open: there are none. */
const nobody = { info: async () => undefined }

/** What a pair is refused with before anything is read; undefined where it is not. */
async function refusal(base: ClassicSnapshot, target: ClassicSnapshot): Promise<string | undefined> {
  const answers = classicAnswers({ classic: { deviceMapper: nobody } as unknown as ClassicServices })
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

interface Begun {
  readonly base?: Partial<ClassicSnapshot>
  readonly target?: Partial<ClassicSnapshot>
  /** What is on record of the base. */
  readonly records?: readonly Partial<ClassicRow>[]
  readonly services?: Partial<ClassicServices>
  /** What the second look finds. */
  readonly lookUp?: () => Promise<ClassicSnapshot[]>
}

/** What is said before the stores are read, and what the log says. @throws what the pair is refused with */
async function begun({ base, target, records = [], services = {}, lookUp = async () => [] }: Begun) {
  const lines: unknown[] = []
  const find = async ({ identity }: { identity: string }) => (identity === 'lv-1' ? records : [])
  const all = {
    ...{ strictBases: false, compare: 'auto', compareBytes: 1000, compareBytesPerSecond: 1 },
    catalog: {
      classicSnapshots: { find, refuseServedAsThin: async () => undefined, sawWritable: async () => undefined }
    },
    logger: { warn: (line: unknown) => lines.push(line) },
    deviceMapper: { ...nobody, status: async () => [{ targetType: 'snapshot', params: '16/64 16' }] },
    memory: { take: (least: number) => least },
    ...services
  } as unknown as ClassicServices
  const second = { handle: 'vg/s2', ownHandle: 'vg/s2', identity: 'lv-2', link: at(9e9, 9) }
  const pair = { base: snapshot(base), target: snapshot({ ...second, ...target }) }
  const question = { ...pair, startingOffset: 0n, maxResults: 0, anyVolume: false, lookUp }
  const { asides } = await classicAnswers({ classic: all }).plan(question)
  const walk = { signal: new AbortController().signal, withdraw: () => undefined }
  return { said: (await asides?.['begin'](undefined as never, walk)) as BegunStores, lines, asides }
}

const codeOf = (answer: Promise<unknown>) =>
  answer.then(
    () => undefined,
    (error: unknown) => (error as { code?: string }).code
  )

test('contents are compared only where nobody can write into either, or could, as far as is known', async (t) => {
  const facts = { handle: 'vg/s1', identity: 'lv-1', link: 'l', origin: 'lv-0', sizeBytes: 4096, chunkBytes: 4096 }
  const served = { ...facts, role: 'target', readOnly: 1, entries: 0, digest: '' } as const
  const compared = async (question: Begun) => (await begun({ records: [served], ...question })).said.compareBytes
  t.is(await compared({}), 1000)
  t.is(await compared({ services: { compare: 'never' } }), 0)
  t.is(await compared({ services: { compare: 'always' } }), Number.MAX_SAFE_INTEGER)
  t.is(await compared({ services: { compare: 'always' }, records: [] }), Number.MAX_SAFE_INTEGER)
  for (const compare of ['auto', 'always'] as const) {
    const services = { compare }
    t.is(await compared({ services, base: { readOnly: false } }), 0)
    t.is(await compared({ services, target: { readOnly: false } }), 0)
    t.is(await compared({ services, records: [{ ...served, readOnly: 0 }] }), 0)
    t.is(await compared({ services, records: [served, { ...served, role: 'base', readOnly: 0 }] }), 0)
  }
  // Nobody knows what was backed up.
  t.is(await compared({ records: [] }), 0)
  t.is(await compared({ records: [{ ...served, role: 'base' }] }), 0)
})

test('a snapshot that somebody has open who cannot be seen is not compared, and remains read-only', async (t) => {
  const facts = { handle: 'vg/s1', identity: 'lv-1', link: 'l', origin: 'lv-0', sizeBytes: 4096, chunkBytes: 4096 }
  const served = { ...facts, role: 'target', readOnly: 1, entries: 0, digest: '' } as const
  const status = async () => [{ targetType: 'snapshot', params: '16/64 16' }]
  const opened = {
    status,
    info: async ({ minor }: { minor: number }) => ({ name: 'd', openCount: minor === 3 ? 1 : 0 })
  }
  let seen = 0
  const classicSnapshots = {
    ...{ find: async () => [served], refuseServedAsThin: async () => undefined },
    sawWritable: async () => void seen++
  }
  const services = { deviceMapper: opened, catalog: { classicSnapshots } } as unknown as ClassicServices
  t.is((await begun({ services })).said.compareBytes, 0)
  t.is(seen, 0)
})

test('that a snapshot could be written to is remembered, also where nothing is answered', async (t) => {
  const seen: string[] = []
  const sawWritable = async ({ identity }: { identity: string }) => void seen.push(identity)
  const find = async () => []
  const classicSnapshots = { find, refuseServedAsThin: async () => undefined, sawWritable }
  const services = { strictBases: true, catalog: { classicSnapshots } } as unknown as ClassicServices
  t.is(await codeOf(begun({ services })), 'DM_BASE_UNRECORDED')
  t.deepEqual(seen, [])
  t.is(await codeOf(begun({ services, base: { readOnly: false } })), 'DM_BASE_UNRECORDED')
  t.is(await codeOf(begun({ services, target: { readOnly: false, originUuid: 'another' } })), 'DM_VOLUMES_DIFFER')
  t.deepEqual(seen, ['lv-1', 'lv-2'])
})

test('that a snapshot could be written to is remembered when it is seen in the middle of an answer', async (t) => {
  const seen: string[] = []
  const classicSnapshots = {
    ...{ find: async () => [], refuseServedAsThin: async () => undefined },
    sawWritable: async ({ identity }: { identity: string }) => void seen.push(identity)
  }
  const devices: Record<string, ClassicSnapshot['devices']> = {
    touched: { ...snapshot().devices, untouched: false },
    writable: { ...snapshot().devices, readOnly: false, untouched: false }
  }
  for (const [what, now] of Object.entries(devices)) {
    const base = snapshot({ devices: now, readOnly: false })
    const lookUp = async () => [
      base,
      snapshot({ handle: 'vg/s2', ownHandle: 'vg/s2', identity: 'lv-2', link: at(9e9, 9) })
    ]
    const services = { catalog: { classicSnapshots } } as unknown as ClassicServices
    const { asides } = await begun({ services, lookUp })
    const none = { entries: 0, digest: '', prefixDigest: undefined }
    const walk = { signal: new AbortController().signal, withdraw: () => undefined }
    const read = Promise.resolve(asides?.['read']({ base: none, target: none } as never, walk))
    t.is(await codeOf(read), 'DM_SNAPSHOT_CHANGED', what)
    t.deepEqual(seen.splice(0), ['lv-1'], what)
  }
})

test("a base that was never served rests on LVM's times, which the log says, or is refused", async (t) => {
  const tied = (link: Partial<ClassicSnapshot['link']>) => ({ base: { link: { ...snapshot().link, ...link } } })
  t.like((await begun({})).lines, [{ base: 'vg/s1', code: 'DM_BASE_UNRECORDED' }])
  t.is((await begun(tied({ linkedAt: 61 }))).lines.length, 1)
  t.is(await codeOf(begun(tied({ linkedAt: 62 }))), 'DM_COW_REJOINED')
  t.is(await codeOf(begun(tied({ linkedAt: 0 }))), 'DM_BASE_UNRECORDED')
  t.is(await codeOf(begun(tied({ createdAt: 0 }))), 'DM_BASE_UNRECORDED')
  t.is(await codeOf(begun({ services: { strictBases: true } })), 'DM_BASE_UNRECORDED')
})

test('a snapshot is on record by one name, by whichever way it is asked for', async (t) => {
  const asked: string[] = []
  const find = async ({ handle }: { handle: string }) => (asked.push(handle), [])
  const refuseServedAsThin = async (handle: string) => void asked.push(handle)
  const services = { catalog: { classicSnapshots: { find, refuseServedAsThin } } } as unknown as ClassicServices
  await begun({ base: { handle: '*/s1' }, target: { handle: '*/s2' }, services })
  t.deepEqual([...new Set(asked)].sort(), ['vg/s1', 'vg/s2'])
})

test("a snapshot's number goes to the other one: each is asked how many entries it has by what it is", async (t) => {
  const params: Record<string, string> = { 'LVM-group1lv1': '48/64 16', 'LVM-group1lv2': '24/64 16' }
  // What the number stands for has none.
  const status = async (device: { uuid?: string }) => [
    { targetType: 'snapshot', params: params[device.uuid ?? ''] ?? '16/64 16' }
  ]
  const services = { deviceMapper: { ...nobody, status } } as unknown as ClassicServices
  const { said } = await begun({ target: { uuid: 'LVM-group1lv2' }, services })
  t.is(said.base?.counted, 4)
  t.is(said.target.counted, 1)
})

test('that the kernel has given a snapshot up is remembered', async (t) => {
  const gone: string[] = []
  const giveUp = async ({ handle }: { handle: string }) => void gone.push(handle)
  for (const params of ['Invalid', 'Overflow']) {
    const deviceMapper = { ...nobody, status: async () => [{ targetType: 'snapshot', params }] }
    const catalog = { classicSnapshots: { find: async () => [], refuseServedAsThin: async () => undefined, giveUp } }
    const services = { catalog, deviceMapper } as unknown as ClassicServices
    t.regex((await codeOf(begun({ services }))) ?? '', /^DM_COW_(INVALID|OVERFLOWED)$/)
  }
  t.deepEqual(gone, ['vg/s2', 'vg/s2'])
})

test('an order is reversed only where times and places say so together', async (t) => {
  const target = snapshot({ handle: 'vg/s2', identity: 'lv-2', link: at(5, 5) })
  t.is(await refusal(snapshot({ link: at(6, 6) }), target), 'DM_ORDER_REVERSED')
  t.is(await refusal(snapshot({ link: at(6, 4) }), target), undefined)
  t.is(await refusal(snapshot({ link: at(4, 6) }), target), undefined)
})
