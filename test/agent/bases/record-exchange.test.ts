/**
 * Records that leave a node with their backup and come back: they stand for their snapshot again, or are refused with the
 * reason. Catalog, records and walks are the agent's own; the command line is the other side.
 */
import { randomUUID } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { copyFile, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pino } from 'pino'
import test, { type ExecutionContext } from 'ava'
import { BaseAdministration } from '../../../src/agent/bases/base-administration.ts'
import { BaseRecordReader } from '../../../src/devicemapper/thin/base-record/reader.ts'
import { lendRecord } from '../../../src/cli/answers/lent-record.ts'
import { crc32c } from '@node-rs/crc32'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { startServer } from '../../../src/grpc/server.ts'
import { runCommand } from '../../cli/run-command.ts'
import { recordingBackend } from '../../grpc/admin-backend.ts'
import { ExtentBackend } from '../../grpc/extent-backend.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import { answer, closeAnswering, snapshotOf, startAnswering } from './answering.ts'

const folder = testFolder(test)
let scenes = 0

/** Snapshot 2 was served, its record kept; `before` has it, and `after` has snapshot 5 of the same volume in its place. */
async function scene(t: ExecutionContext) {
  const own = join(folder, String(scenes++))
  const random = new Random(31)
  const model = new PoolModel({ random, shape: { leafEntries: 6, internalEntries: 6, split: 'middle' } })
  const scatter = (writes: number) => {
    for (let i = 0; i < writes; i++) model.write(1, random.integer(0, 299))
  }
  const image = async (name: string) => {
    await writeFile(`${own}.${name}`, writeMetadataImage(model, { random: new Random(22) }).bytes)
    return `${own}.${name}`
  }
  model.createThin(1)
  scatter(200)
  model.createSnapshot(2, 1)
  scatter(30)
  model.createSnapshot(5, 1)
  const before = await image('before')
  model.delete(2)
  const after = await image('after')
  const agent = await startAnswering(`${own}.catalog`, `${own}.bases`)
  t.teardown(() => closeAnswering(agent))
  await answer(agent, { target: snapshotOf(2, before) })
  const living = await answer(agent, { base: snapshotOf(2, before), target: snapshotOf(5, before) })
  // Seen to be gone at the very moment at which it was seen last: how long the test takes does not matter.
  const known = (await agent.catalog.bases.find({ pool: 'pool', identity: 'thin-2' }))!
  await agent.catalog.bases.sawGone(known, { instance: known.instance, uptimeMs: known.seenAt })
  const records = `${own}.bases`
  const administration = new BaseAdministration(agent.catalog, agent.bases)
  const save = async () => {
    const { record, part } = await administration.readBase({ handle, record: '', offset: 0 })
    const file = `${own}.${scenes++}.base`
    await writeFile(file, part)
    return { file, record }
  }
  const drop = () => administration.dropBase({ handle })
  const lend = async (file: string) => lendRecord(administration, file)
  const fromRecord = async () => {
    const recorded = await agent.bases.find(handle, 'pool')
    return answer(agent, { ...(recorded && { recorded }), target: snapshotOf(5, after) })
  }
  return { own, agent, before, living, records, administration, save, drop, lend, fromRecord }
}

const handle = 'vg/thin-2'

async function refused(t: ExecutionContext, ask: Promise<unknown>, code: ErrorCode, says?: RegExp): Promise<void> {
  const error = await t.throwsAsync(ask, { instanceOf: DeltamapperError })
  t.is(error.code, code, error.message)
  t.is(error.status, code === 'DM_ARGUMENT_INVALID' ? 'INVALID_ARGUMENT' : 'FAILED_PRECONDITION')
  if (says) t.regex(error.message, says)
}

test('a record that comes back stands for its snapshot as before', async (t) => {
  const { living, records, administration, save, drop, lend, fromRecord } = await scene(t)
  const { file, record } = await save()
  t.deepEqual(await readFile(file), await readFile(join(records, record)))
  // While the node has its own, what comes back is checked, and not kept.
  t.is(await lend(file), handle)
  t.true(readdirSync(records).includes(record))
  const filesBefore = readdirSync(records).length
  await drop()
  await refused(t, fromRecord(), 'DM_BASE_RECORD_NONE')
  await refused(t, administration.readBase({ handle, record: '', offset: 0 }), 'DM_BASE_RECORD_NONE')
  t.is(await lend(file), handle)
  t.deepEqual(await fromRecord(), living)
  t.is(readdirSync(records).length, filesBefore)
  // As old as it was: it goes first where room is needed.
  const reader = await BaseRecordReader.open(file)
  t.is((await administration.getBase({ handle })).recordedAtMs, reader.header.madeAt)
  await reader.close()
})

test('two who lend the same record at once leave one of it', async (t) => {
  const { living, records, save, drop, lend, fromRecord } = await scene(t)
  const { file } = await save()
  const filesBefore = readdirSync(records).length
  await drop()
  t.deepEqual(await Promise.all([lend(file), lend(file), lend(file)]), [handle, handle, handle])
  t.is(readdirSync(records).length, filesBefore)
  t.deepEqual(await fromRecord(), living)
})

test('of a snapshot that could be written to, no record comes or goes, whatever is in it', async (t) => {
  const { agent, administration, save, drop, lend, fromRecord } = await scene(t)
  const { file } = await save()
  await agent.catalog.bases.spoil('thin-2', 'its device could be written to')
  await refused(t, administration.readBase({ handle, record: '', offset: 0 }), 'DM_BASE_RECORD_WRITABLE')
  await refused(t, lend(file), 'DM_BASE_RECORD_WRITABLE', /could be written to/)
  await drop()
  await refused(t, lend(file), 'DM_BASE_RECORD_WRITABLE')
  await refused(t, fromRecord(), 'DM_BASE_RECORD_WRITABLE')
})

test('a record of before the catalog that is there now is foreign: the snapshot may have been another', async (t) => {
  const { own, before, records, save } = await scene(t)
  const { file } = await save()
  for (const [name, serve] of [
    ['unserved', false],
    ['served anew', true]
  ] as const) {
    const later = await startAnswering(`${own}.${name}`, `${own}.${name}.bases`)
    t.teardown(() => closeAnswering(later))
    if (serve) await answer(later, { target: snapshotOf(2, before) })
    const administration = new BaseAdministration(later.catalog, later.bases)
    await refused(t, lendRecord(administration, file), 'DM_BASE_RECORD_FOREIGN', /record since|no such snapshot/)
    t.deepEqual(
      readdirSync(`${own}.${name}.bases`).filter((each) => each.startsWith('lent.')),
      []
    )
  }
  t.true(readdirSync(records).length > 0)
})

/** A record whose header says something else, with checksums that fit. */
function changed(bytes: Buffer, change: (header: { pool: object; device: object }) => void): Buffer {
  const length = bytes.readUInt32LE(20)
  const header = JSON.parse(bytes.subarray(28, 28 + length).toString()) as { pool: object; device: object }
  change(header)
  const json = Buffer.from(JSON.stringify(header))
  const preamble = Buffer.from(bytes.subarray(0, 28))
  preamble.writeUInt32LE(json.length, 20)
  preamble.writeUInt32LE(crc32c(json), 24)
  const frames = Buffer.from(bytes.subarray(28 + length))
  for (let at = 0; at < frames.length; at += 28 + frames.readUInt32LE(at)) {
    const runs = frames.subarray(at + 28, at + 28 + frames.readUInt32LE(at))
    frames.writeUInt32LE(crc32c(runs, crc32c(frames.subarray(at, at + 24), crc32c(json))), at + 24)
  }
  return Buffer.concat([preamble, json, frames])
}

test('records of others, cut off, or in which a fact is another are refused, and leave nothing', async (t) => {
  const { own, living, records, save, drop, lend, fromRecord } = await scene(t)
  const { file } = await save()
  await drop()
  const bytes = await readFile(file)
  const other = `${own}.other.base`
  const tried = async (content: Buffer, code: ErrorCode) => {
    await writeFile(other, content)
    await refused(t, lend(other), code)
  }
  const facts: [part: 'pool' | 'device', fact: object][] = [
    ['pool', { identity: 'another' }],
    ['pool', { identity: undefined }],
    ['device', { identity: 'thin-5' }],
    ['device', { identity: undefined }],
    ['device', { id: 3 }],
    ['device', { creationTime: 7 }],
    ['device', { transactionId: '99' }],
    ['device', { sizeBytes: 65536 }],
    ['device', { watchedSince: 1 }],
    ['device', { watchedSince: undefined }]
  ]
  for (const [part, fact] of facts) {
    await tried(
      changed(bytes, (header) => Object.assign(header[part], fact)),
      'DM_BASE_RECORD_FOREIGN'
    )
  }
  await tried(
    changed(bytes, ({ device }) => Object.assign(device, { mappedBlocks: 3 })),
    'DM_BASE_RECORD_DAMAGED'
  )
  const random = new Random(5)
  for (let i = 0; i < 40; i++) {
    const spoilt = Buffer.from(bytes)
    spoilt[random.integer(28, bytes.length - 1)] ^= 1 << random.integer(0, 7)
    await tried(spoilt, 'DM_BASE_RECORD_DAMAGED')
    await tried(bytes.subarray(0, random.integer(28, bytes.length - 1)), 'DM_BASE_RECORD_DAMAGED')
  }
  await tried(Buffer.from('something else'), 'DM_BASE_RECORD_FOREIGN')
  const newer = Buffer.from(bytes)
  newer.writeUInt32LE(9, 16)
  await tried(newer, 'DM_BASE_RECORD_FOREIGN')
  t.deepEqual(
    readdirSync(records).filter((each) => each.startsWith('lent.')),
    []
  )
  await refused(t, fromRecord(), 'DM_BASE_RECORD_NONE')
  // Unchanged facts with checksums made anew are the record itself.
  await writeFile(
    other,
    changed(bytes, () => undefined)
  )
  t.is(await lend(other), handle)
  t.deepEqual(await fromRecord(), living)
})

test('parts come in order, are bounded, and those that are left are cleared away', async (t) => {
  const { own, agent, records, administration, save, drop } = await scene(t)
  const { file } = await save()
  await drop()
  const bytes = await readFile(file)
  const give = (lending: string, offset: number, part: Uint8Array, isLast = false) =>
    administration.lendBase({ lending, offset, part, isLast })
  await refused(t, give('../../x', 0, bytes), 'DM_ARGUMENT_INVALID')
  await refused(t, give(randomUUID(), 0, new Uint8Array(2 ** 20 + 1)), 'DM_ARGUMENT_INVALID')
  await refused(t, give(randomUUID(), 2 ** 30, bytes), 'DM_BASE_RECORD_NONE', /maxBytes/)
  await refused(t, give(randomUUID(), 5, bytes), 'DM_ARGUMENT_INVALID', /0 bytes are there/)
  const twice = randomUUID()
  await give(twice, 0, bytes.subarray(0, 50))
  await refused(t, give(twice, 0, bytes), 'DM_BASE_RECORD_NONE', /EEXIST/)
  const left = randomUUID()
  await give(left, 0, bytes.subarray(0, 50))
  const path = join(records, `lent.${left}.part`)
  await agent.bases.tidy()
  t.is((await stat(path)).size, 50, 'it may go on')
  await utimes(path, 0, 0)
  await agent.bases.tidy()
  t.false(readdirSync(records).includes(`lent.${left}.part`))
  await rm(`${own}.bases`, { recursive: true })
  await refused(t, give(randomUUID(), 0, bytes), 'DM_BASE_RECORD_NONE', /ENOENT/)
})

test('`base save VG/LV` and `delta --base-record FILE VG/LV`, as a person gives them', async (t) => {
  const { own, administration, drop } = await scene(t)
  const backend = new ExtentBackend()
  const endpoint = `unix://${own}.sock`
  const admin = {
    ...recordingBackend().backend,
    readBase: administration.readBase.bind(administration),
    lendBase: administration.lendBase.bind(administration)
  }
  const server = await startServer({
    ...{ listen: [endpoint], backend, admin, identity: { driverName: 'test.deltamapper.dev' } },
    logger: pino({ level: 'silent' })
  })
  t.teardown(() => server.drain(0))
  const command = (...words: string[]) => runCommand([...words, '--endpoint', endpoint])
  const file = `${own}.saved.base`
  const saved = await command('base', 'save', handle, '--to', file)
  t.is(saved.status, 0, saved.stderr)
  t.regex(saved.stderr, /saved\.base: \d+ blocks of a device of .* in .*; complete\n$/)
  await drop()
  const gone = await command('base', 'save', handle, '--to', `${own}.none`)
  t.is(gone.status, 1)
  t.regex(gone.stderr, /dropped by hand.*DM_BASE_RECORD_NONE/)
  t.deepEqual(
    readdirSync(folder).filter((each) => each.includes('.none')),
    []
  )
  const delta = await command('delta', '--base-record', file, 'vg/some')
  // (This server has no such snapshot. The lab's agent has: test/kernel/vanished-bases.test.ts.)
  t.regex(delta.stderr, /DM_SNAPSHOT_NOT_FOUND/)
  t.regex(delta.stderr, /the agent has the record for vg\/thin-2/)
  t.like(backend.requests.at(-1), { baseSnapshotId: handle, targetSnapshotId: 'vg/some' })
  await copyFile(file, `${own}.cut.base`)
  await writeFile(`${own}.cut.base`, (await readFile(file)).subarray(0, -1))
  const asked = backend.requests.length
  for (const [words, says] of [
    [['delta', '--base-record', `${own}.cut.base`, 'vg/some'], /DM_BASE_RECORD_DAMAGED/],
    [['delta', '--base-record', file, 'vg/a', 'vg/b'], /takes the place of BASE/],
    [['delta', '--base-record', file, '5'], /goes with --metadata/],
    [['base', 'save', '5', '--to', `${own}.none`], /goes with --metadata/],
    [['base', 'save', handle, '--size', '1GiB', '--to', `${own}.none`], /--size does not go with an agent/],
    [['base', 'save', 'vg/unknown', '--to', `${own}.none`], /DM_SNAPSHOT_NOT_FOUND/],
    [['base', 'save', handle, '--to', join(own, 'no/folder')], /DM_BASE_RECORD_NONE|DM_OUTPUT_FAILED|ENOENT/]
  ] as const) {
    const { status, stdout, stderr } = await command(...words)
    t.not(status, 0)
    t.is(stdout, '')
    t.regex(stderr, says)
  }
  t.is(backend.requests.length, asked, 'nobody was asked for an answer')
})
