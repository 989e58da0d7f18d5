import { execFile } from 'node:child_process'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

import test from 'ava'

import { loadRecordedPool } from '../../../src/agent/answers/recorded-pool.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
let pools = 0

const description = {
  format: 1,
  data_block_size_bytes: 65536,
  volumes: [{ name: 'data' }, { name: 'other' }],
  snapshots: [
    { name: 'mon', volume: 'data', thin_id: 0, size_bytes: 0 },
    { name: 'tue', volume: 'data', thin_id: 2 ** 24 - 1, size_bytes: Number.MAX_SAFE_INTEGER },
    { name: 'mon-2', volume: 'other', thin_id: 0, size_bytes: 513 }
  ]
}

async function poolFolder(content: unknown): Promise<string> {
  const path = join(folder, `pool-${pools++}`)
  await mkdir(path)
  const text = typeof content === 'string' ? content : JSON.stringify(content)
  await writeFile(join(path, 'pool.json'), text)
  await writeFile(join(path, 'metadata.img'), '')
  return path
}

test('each snapshot is found by its name, with all that is known of it', async (t) => {
  const path = await poolFolder(description)
  const source = await loadRecordedPool('demo', path)
  t.deepEqual(await source.snapshot('tue'), {
    kind: 'thin',
    handle: 'demo/tue',
    volume: 'demo/data',
    volumeName: 'demo/data',
    thinId: 2 ** 24 - 1,
    blockBytes: 65536,
    sizeBytes: Number.MAX_SAFE_INTEGER,
    metadataPath: join(path, 'metadata.img')
  })
  t.is((await source.snapshot('mon'))?.sizeBytes, 0)
  t.is((await source.snapshot('mon-2'))?.volume, 'demo/other')
  for (const name of ['wed', '', 'MON', 'data', '__proto__', 'constructor', 'toString']) {
    t.is(await source.snapshot(name), undefined, name)
  }
})

test('what is there for people is no mistake', async (t) => {
  const path = await poolFolder({
    ...description,
    description: 'a harbour',
    volumes: [{ name: 'data', file_system: 'ext4' }, { name: 'other' }],
    snapshots: description.snapshots.map((snapshot) => ({ ...snapshot, sha256: 'abc' }))
  })
  const source = await loadRecordedPool('demo', path)
  t.deepEqual(Object.keys((await source.snapshot('mon')) ?? {}), [
    'kind',
    'handle',
    'volume',
    'volumeName',
    'thinId',
    'blockBytes',
    'sizeBytes',
    'metadataPath'
  ])
})

test('a pool without snapshots has none', async (t) => {
  const path = await poolFolder({ ...description, volumes: [], snapshots: [] })
  t.is(await (await loadRecordedPool('demo', path)).snapshot('mon'), undefined)
})

/** The description with its first snapshot changed. */
const withFirst = (change: object) => ({
  ...description,
  snapshots: [{ ...description.snapshots[0], ...change }, ...description.snapshots.slice(1)]
})
const without = (field: keyof typeof description) => ({ ...description, [field]: undefined })

const wrong: [name: string, content: unknown, says: RegExp][] = [
  ['empty', '', /Unexpected end of JSON/],
  ['cut off', JSON.stringify(description).slice(0, -5), /JSON/],
  ['no JSON', 'format: 1', /JSON/],
  ['null', 'null', /expected 1 \(format\)/],
  ['a list', '[]', /expected object/],
  ['no format', without('format'), /format/],
  ['a format to come', { ...description, format: 2 }, /expected 1 \(format, line 1\)/],
  ['no data block size', without('data_block_size_bytes'), /data_block_size_bytes/],
  ['a data block size of nothing', { ...description, data_block_size_bytes: 0 }, /data_block_size_bytes/],
  ['no volumes', without('volumes'), /volumes/],
  ['no snapshots', without('snapshots'), /snapshots/],
  ['two snapshots of one name', withFirst({ name: 'tue' }), /two snapshots are called tue/],
  ['an unknown volume', withFirst({ volume: 'date' }), /snapshot mon is of volume date, which is not listed/],
  ['a name with a slash', withFirst({ name: 'a/b' }), /is no name.*\(snapshots\[0\]\.name/],
  ['a name that is the folder above', withFirst({ name: '..' }), /is no name/],
  ['an empty name', withFirst({ name: '' }), /is no name/],
  ['a volume that is no name', { ...description, volumes: [{ name: 'a b' }] }, /volumes\[0\]\.name/],
  ['a negative thin id', withFirst({ thin_id: -1 }), /snapshots\[0\]\.thin_id/],
  ['a thin id of 25 bits', withFirst({ thin_id: 2 ** 24 }), /thin_id/],
  ['half a thin id', withFirst({ thin_id: 1.5 }), /thin_id/],
  ['a thin id in quotes', withFirst({ thin_id: '1' }), /thin_id/],
  ['a negative size', withFirst({ size_bytes: -1 }), /size_bytes/],
  ['half a byte', withFirst({ size_bytes: 0.5 }), /size_bytes/],
  ['no size', withFirst({ size_bytes: undefined }), /size_bytes/],
  ['a size that no double holds', withFirst({ size_bytes: 2 ** 53 }), /size_bytes/],
  [
    'a size that reading rounds',
    JSON.stringify(description).replace('9007199254740991', '9007199254740993'),
    /snapshots\[1\]\.size_bytes/
  ],
  ['an endless size', JSON.stringify(description).replace('9007199254740991', '1e999'), /size_bytes/]
]

for (const [name, content, says] of wrong) {
  test(`${name}: refused in one line that names the file`, async (t) => {
    const path = await poolFolder(content)
    const error = await t.throwsAsync<DeltamapperError>(loadRecordedPool('demo', path), {
      instanceOf: DeltamapperError
    })
    t.is(error?.code, 'DM_RECORDED_POOL_INVALID')
    t.true(error?.message.startsWith(`${join(path, 'pool.json')} does not describe a recorded pool: `), error?.message)
    t.regex(error?.message ?? '', says)
    t.notRegex(error?.line ?? '', /[\r\n]/)
  })
}

test('a folder that is none, or has no description, is said', async (t) => {
  const empty = join(folder, 'empty')
  await mkdir(empty)
  const imageless = await poolFolder(description)
  await rm(join(imageless, 'metadata.img'))
  const file = join(folder, 'file')
  await writeFile(file, '')
  for (const [path, says] of [
    [join(folder, 'missing'), /ENOENT/],
    [empty, /ENOENT/],
    [imageless, /no metadata image that can be read: ENOENT.*metadata\.img/],
    [file, /ENOTDIR/]
  ] as const) {
    const error = await t.throwsAsync<DeltamapperError>(loadRecordedPool('demo', path), {
      instanceOf: DeltamapperError
    })
    t.is(error?.code, 'DM_RECORDED_POOL_INVALID')
    t.regex(error?.message ?? '', says)
  }
})

test('a description that is a FIFO or a folder is refused at once, not waited for', async (t) => {
  for (const kind of ['FIFO', 'folder']) {
    const path = await poolFolder(description)
    await rm(join(path, 'pool.json'))
    if (kind === 'FIFO') await promisify(execFile)('mkfifo', [join(path, 'pool.json')])
    else await mkdir(join(path, 'pool.json'))
    const error = await t.throwsAsync<DeltamapperError>(loadRecordedPool('demo', path), {
      instanceOf: DeltamapperError
    })
    t.is(error?.code, 'DM_RECORDED_POOL_INVALID')
    t.regex(error?.message ?? '', new RegExp(`is no file \\(but a ${kind}\\)`))
  }
})
