import test from 'ava'
import fc from 'fast-check'
import { DeltamapperError } from '../../../src/errors.ts'
import { type LogicalVolume, parseLogicalVolumes, parseDisks, parseVolumeGroups } from '../../../src/agent/lvm/parse.ts'
import { recordedReports, type Scene } from '../../support/recorded-lvm.ts'

const mebibyte = 2 ** 20

function volumes(scene: Scene): Map<string, LogicalVolume> {
  return new Map(parseLogicalVolumes(recordedReports(scene)[0].text).map((lv) => [lv.name, lv]))
}

/** A recorded report with the rows of one volume changed. */
function altered(name: string, change: Record<string, unknown>, dialect = 'json'): string {
  const recorded = recordedReports('volumes').find((each) => each.dialect === dialect)
  const report = JSON.parse(recorded?.text ?? '') as { report: [{ lv: Record<string, unknown>[] }] }
  for (const row of report.report[0].lv) if (row['lv_name'] === name) Object.assign(row, change)
  return JSON.stringify(report)
}

function refusal(text: string): DeltamapperError {
  try {
    parseLogicalVolumes(text)
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
  throw new Error('it was accepted')
}

test('both dialects exist among the recordings, and of more than one version of LVM', (t) => {
  const reports = recordedReports('volumes')
  t.deepEqual(new Set(reports.map(({ dialect }) => dialect)), new Set(['json', 'json_std']))
  t.true(new Set(reports.map(({ version }) => version)).size > 1)
})

for (const scene of ['volumes', 'volumes-with-kernel', 'merging', 'merged', 'origins-removed'] as const) {
  test(`every version and dialect says the same: ${scene}`, (t) => {
    const [first, ...others] = recordedReports(scene).map(({ text }) => parseLogicalVolumes(text))
    t.true(first.length > 25)
    for (const other of others) t.deepEqual(other, first)
  })
}

test('a thin volume, its snapshot, and their pool', (t) => {
  const lvs = volumes('volumes')
  const [data, monday, pool] = ['data', 'monday', 'po-ol'].map((name) => lvs.get(name)!)
  t.like(data, {
    vgName: 'my-vg',
    dmPath: '/dev/mapper/my--vg-data',
    hidden: false,
    sizeBytes: 64 * mebibyte,
    segmentTypes: ['thin'],
    poolLv: 'po-ol',
    thinId: 1,
    transactionId: 0n,
    origin: undefined,
    originUuid: undefined,
    chunkSizeBytes: undefined,
    active: undefined,
    skipActivation: false,
    tags: []
  })
  t.like(monday, {
    origin: 'data',
    originUuid: data.uuid,
    thinId: 2,
    transactionId: 1n,
    skipActivation: false,
    tags: ['backup/tier=1', 'x'],
    layout: ['thin', 'sparse'],
    role: ['public', 'origin', 'thinorigin', 'snapshot', 'thinsnapshot']
  })
  t.like(lvs.get('tue.sd+ay_'), { skipActivation: true, thinId: 3 })
  t.like(pool, {
    segmentTypes: ['thin-pool'],
    thinId: undefined,
    transactionId: 8n,
    chunkSizeBytes: 65536,
    sizeBytes: 128 * mebibyte,
    dataLv: 'po-ol_tdata',
    metadataLv: 'po-ol_tmeta'
  })
  t.is(lvs.get('grown')?.sizeBytes, 24 * mebibyte)
})

test('hidden volumes lose their brackets, but not the fact', (t) => {
  const lvs = volumes('volumes')
  t.like(lvs.get('po-ol_tmeta'), { hidden: true, role: ['private', 'thin', 'pool', 'metadata'] })
  t.false([...lvs.keys()].some((name) => name.includes('[')))
  t.is(lvs.get('cached')?.poolLv, 'fast_cvol')
})

test('a volume of several segments is one volume', (t) => {
  const [{ text }] = recordedReports('volumes')
  t.is([...text.matchAll(/"lv_name":"two-segments"/g)].length, 2)
  const found = parseLogicalVolumes(text).filter(({ name }) => name === 'two-segments')
  t.is(found.length, 1)
  t.like(found[0], { sizeBytes: 300 * mebibyte, segmentTypes: ['linear'] })
})

test('what only the kernel knows is undefined in a read-only report, and known in others', (t) => {
  t.is(volumes('volumes').get('monday')?.active, undefined)
  t.is(volumes('volumes-with-kernel').get('monday')?.active, true)
  t.is(volumes('volumes-with-kernel').get('monday-copy')?.active, false)
})

test('a snapshot that is being merged', (t) => {
  t.like(volumes('merging').get('monday'), { merging: true, hidden: true, origin: 'data' })
  t.is(volumes('merging').get('data')?.merging, false)
  // Afterwards its device goes by the origin's name and UUID, and the origin's other snapshots have lost theirs.
  const [before, after] = [volumes('volumes'), volumes('merged')]
  t.is(after.get('data')?.uuid, before.get('data')?.uuid)
  t.is(after.get('data')?.thinId, before.get('monday')?.thinId)
  t.is(after.get('data')?.transactionId, before.get('monday')?.transactionId)
  t.is(after.get('tue.sd+ay_')?.origin, undefined)
})

test('volume groups', (t) => {
  for (const { text } of recordedReports('group')) {
    const [group, ...more] = parseVolumeGroups(text)
    t.is(more.length, 0)
    t.like(group, {
      name: 'my-vg',
      extentSizeBytes: mebibyte,
      missingPhysicalVolumes: 0,
      exported: false,
      partial: false,
      shared: false,
      systemId: '',
      tags: ['nightly']
    })
    t.true(group.freeBytes > 0 && group.freeBytes < group.sizeBytes)
    t.true(group.logicalVolumes > 10)
    t.true(group.sequenceNumber > 10n)
  }
})

test('numbers keep their digits: a transaction id that no double can hold', (t) => {
  for (const dialect of ['json', 'json_std']) {
    const text = altered('monday', { transaction_id: 'MARK' }, dialect).replace('"MARK"', (mark) =>
      dialect === 'json' ? mark.replace('MARK', '18446744073709551615') : '18446744073709551615'
    )
    const monday = parseLogicalVolumes(text).find(({ name }) => name === 'monday')
    t.is(monday?.transactionId, 18446744073709551615n, dialect)
  }
})

test('what answers depend on must be there and exact', (t) => {
  const changes: [string, Record<string, unknown>][] = [
    ['monday', { lv_uuid: '' }],
    ['monday', { lv_uuid: 'no-uuid' }],
    ['monday', { vg_uuid: null }],
    ['monday', { lv_name: '' }],
    ['monday', { lv_size: '' }],
    ['monday', { lv_size: '64.00m' }],
    ['monday', { lv_size: '67108864B' }],
    ['monday', { lv_size: '-1' }],
    ['monday', { lv_size: '9007199254740992' }],
    ['monday', { lv_size: 1.5 }],
    ['monday', { lv_size: 1e300 }],
    ['monday', { lv_size: ['67108864'] }],
    ['monday', { thin_id: '' }],
    ['monday', { thin_id: '16777216' }],
    ['monday', { thin_id: '-1' }],
    ['monday', { thin_id: '0x2' }],
    ['monday', { transaction_id: '' }],
    ['monday', { transaction_id: '1e3' }],
    ['monday', { origin_uuid: '' }],
    ['monday', { segtype: '' }],
    ['monday', { lv_attr: 'none' }],
    ['po-ol', { transaction_id: null }],
    ['po-ol', { chunk_size: '' }],
    ['thick', { thin_id: '5' }]
  ]
  for (const [name, change] of changes) {
    const error = refusal(altered(name, change))
    t.is(error.code, 'DM_LVM_FAILED', JSON.stringify(change))
    t.true(error.message.includes(Object.keys(change)[0]), error.message)
  }
})

test('thin ids reach up to 2^24 - 1', (t) => {
  const monday = parseLogicalVolumes(altered('monday', { thin_id: '16777215' })).find(({ name }) => name === 'monday')
  t.is(monday?.thinId, 16777215)
})

test('what LVM is configured to say differently is understood', (t) => {
  const plain = recordedReports('volumes').find(({ dialect }) => dialect === 'json')!.text
  const expected = parseLogicalVolumes(plain)
  // report/list_item_separator=";"
  const separated = plain.replaceAll(/"lv_(role|tags|layout)":"[^"]*"/g, (field) => field.replaceAll(',', ';'))
  t.notDeepEqual(separated, plain)
  t.deepEqual(parseLogicalVolumes(separated), expected)
  // report/binary_values_as_numeric=1
  const numeric = plain
    .replaceAll(/"lv_(skip_activation|merging)":""/g, '"lv_$1":"0"')
    .replaceAll(/"lv_(skip_activation|merging)":"[a-z][a-z ]*"/g, '"lv_$1":"1"')
  t.notDeepEqual(numeric, plain)
  t.deepEqual(parseLogicalVolumes(numeric), expected)
  // report/mark_hidden_devices=0
  t.deepEqual(
    parseLogicalVolumes(plain.replaceAll(/"\[([^"]*)\]"/g, '"$1"')),
    expected.map((lv) => ({ ...lv, hidden: false }))
  )
  // report/compact_output=1, as later versions may take it
  t.deepEqual(parseLogicalVolumes(plain.replaceAll(/"(?!lv_active)\w+":"", /g, '')), expected)
  // log/report_command_log=1, and fields that nobody asked for
  const more = JSON.stringify({ ...(JSON.parse(plain) as object), log: [{ log_seq_num: '1' }], news: 3 })
  t.deepEqual(parseLogicalVolumes(more.replaceAll('"lv_uuid"', '"lv_new_field":{"x":[1]},"lv_uuid"')), expected)
})

test('a report of nothing is empty; what is no report is refused', (t) => {
  t.deepEqual(parseLogicalVolumes('{"report":[{"lv":[]}]}'), [])
  t.deepEqual(parseVolumeGroups('{"report":[{"vg":[]}]}'), [])
  for (const text of ['', 'null', '[]', '{}', '{"report":{}}', '{"report":[{}]}', '{"report":[{"lv":[3]}]}', '"lv"']) {
    t.is(refusal(text).code, 'DM_LVM_FAILED', text)
  }
  const [{ text }] = recordedReports('volumes')
  t.is(refusal(text.slice(0, -10)).code, 'DM_LVM_FAILED')
  // report/quoted=0 spoils the JSON of real versions of LVM.
  t.regex(refusal(text.replaceAll('", "', ', "')).line, /lvm\.conf/)
})

test('disks, and which have a copy of the metadata; not those that are missing', (t) => {
  const disks = [
    { pv_name: '/dev/sda', pv_uuid: 'a', pv_mda_used_count: '0' },
    { pv_name: '[unknown]', pv_uuid: 'u', pv_mda_used_count: '1' },
    { pv_name: '/dev/sdb', pv_uuid: 'b', pv_mda_used_count: '2' }
  ]
  // As json, and as json_std has numbers.
  const numbers = disks.map((each) => ({ ...each, pv_mda_used_count: Number(each.pv_mda_used_count) }))
  const found = [
    { id: 'a', path: '/dev/sda', hasMetadata: false },
    { id: 'b', path: '/dev/sdb', hasMetadata: true }
  ]
  for (const vg of [disks, numbers]) t.deepEqual(parseDisks(JSON.stringify({ report: [{ vg }] })), found)
})

test('whatever it is fed, it answers or refuses', (t) => {
  const row = fc.dictionary(
    fc.constantFrom('lv_uuid', 'lv_name', 'lv_size', 'thin_id', 'segtype', 'lv_role', '__proto__'),
    fc.oneof(fc.string(), fc.double(), fc.constant(null), fc.array(fc.string()), fc.jsonValue())
  )
  fc.assert(
    fc.property(fc.oneof(fc.array(row), fc.jsonValue()), (lv) => {
      const text = JSON.stringify({ report: [{ lv }] })
      try {
        t.true(Array.isArray(parseLogicalVolumes(text)))
      } catch (error) {
        t.true(error instanceof DeltamapperError)
      }
    })
  )
})
