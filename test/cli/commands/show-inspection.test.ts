/**
 * `inspect` from outside, on the recorded pool and on made ones.
 */
import { once } from 'node:events'
import { copyFile, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { readPoolDescription, unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { BLOCK_BYTES, superblockField, writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import { type DumpedDevice, thinDump } from '../../support/thin-tools.ts'
import { complaint, outcome, runCommand, startCommand } from '../run-command.ts'

const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const metadata = join(recorded, 'metadata.img')
const folder = testFolder(test)

interface InspectedJson {
  path: string
  view: string
  superblock: Record<string, unknown>
  metadata_snapshot: { block: number; time: number; transaction_id: string; snapshots_since: number } | null
  devices: {
    id: number
    mapped_blocks: number
    mapped_bytes: number
    transaction_id: string
    creation_time: number
    snapshotted_time: number
    root_block: number
    origin: { certainty: string; devices: number[]; more: boolean }
    same_mappings_as: number | null
  }[]
}

async function inspect(...args: string[]): Promise<InspectedJson> {
  const { status, stdout, stderr } = await runCommand(['inspect', ...args, '-o', 'json'])
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout) as InspectedJson
}

for (const view of ['metadata-snapshot', 'live']) {
  test(`what thin_dump says of the recorded pool is what inspect says: ${view}`, async (t) => {
    const { time, transactionId, dataBlockSizeSectors, devices } = await thinDump(metadata, {
      metadataSnapshot: view === 'metadata-snapshot'
    })
    const inspected = await inspect(metadata, ...(view === 'live' ? ['--live-root'] : []))
    t.is(inspected.view, view)
    const shown = view === 'live' ? inspected.superblock : inspected.metadata_snapshot
    t.is(shown?.['time'], time)
    t.is(shown?.['transaction_id'], String(transactionId))
    t.is(inspected.superblock['data_block_size_bytes'], dataBlockSizeSectors * 512)
    t.is(inspected.superblock['needs_check'], false)
    t.deepEqual(
      inspected.devices.map((each): [number, Omit<DumpedDevice, 'mappings'>] => [
        each.id,
        {
          mappedBlocks: each.mapped_blocks,
          transactionId: Number(each.transaction_id),
          creationTime: each.creation_time,
          snapshottedTime: each.snapshotted_time
        }
      ]),
      [...devices].map(([id, { mappings: _, ...details }]) => [id, details])
    )
  })
}

test('the snapshots of the recorded pool are found to be those of their volumes', async (t) => {
  const { devices } = await inspect(metadata)
  const originOf = (id: number) => devices.find((each) => each.id === id)?.origin
  for (const { thin_id } of pool.volumes) {
    t.deepEqual(originOf(thin_id), { certainty: 'certain', devices: [], more: false })
  }
  for (const { thin_id, volume, name } of pool.snapshots) {
    const origin = pool.volumes.find((each) => each.name === volume)
    t.deepEqual(originOf(thin_id)?.devices, [origin?.thin_id ?? -1], name)
    t.regex(originOf(thin_id)?.certainty ?? '', /^(certain|likely)$/)
  }
})

test('the table says the same, and how old the metadata snapshot is', async (t) => {
  const { devices, superblock, metadata_snapshot } = await inspect(metadata)
  const { status, stdout, stderr } = await runCommand(['inspect', metadata])
  t.is(status, 0)
  t.is(stderr, '')
  t.regex(stdout, /^data block size +64 KiB \(128 sectors\)$/m)
  t.regex(stdout, /^needs check +no$/m)
  const age = Number(superblock['time']) - (metadata_snapshot?.time ?? 0)
  t.regex(
    stdout,
    new RegExp(`^metadata snapshot +held at block ${metadata_snapshot?.block}, .*: ${age} snapshots? and `, 'm')
  )
  const rows = stdout.split('\n').filter((line) => /^ +\d+ /.test(line))
  t.deepEqual(
    rows.map((line) => line.trim().split(/ +/).slice(0, 2).map(Number)),
    devices.map(({ id, mapped_blocks }) => [id, mapped_blocks])
  )
  t.true(stdout.endsWith(`${devices.length} devices; complete\n`))
  for (const line of rows) t.true(line.length <= 80 || /possibly/.test(line), line)
})

/** A volume, and so many snapshots of it. */
async function poolWith(snapshots: number): Promise<string> {
  const random = new Random(snapshots)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(0)
  for (let block = 0; block < 300; block++) model.write(0, block)
  for (let id = 1; id <= snapshots; id++) {
    model.createSnapshot(id, 0)
    model.write(0, id % 50)
  }
  const path = join(folder, `${snapshots}.img`)
  await writeFile(path, writeMetadataImage(model, { random }).bytes)
  return path
}

test('thousands of devices are all listed, in either format, and a reader may leave', async (t) => {
  const path = await poolWith(3000)
  const { devices } = await inspect(path)
  t.deepEqual(
    devices.map(({ id }) => id),
    Array.from({ length: 3001 }, (_, id) => id)
  )
  // To compare them all would take too long; those that were compared are known to be snapshots of 0.
  t.true(devices.slice(1).every(({ origin }) => origin.devices[0] === 0))
  t.true(devices.filter(({ origin }) => origin.certainty === 'likely').length > 500)

  const child = startCommand(['inspect', path])
  const ended = outcome(child)
  await once(child.stdout, 'readable')
  child.stdout.destroy()
  const { status, stderr } = await ended
  t.is(status, 141)
  t.is(stderr, '')
})

test('a pool without a device, and one where two are the same', async (t) => {
  const random = new Random(1)
  const empty = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  await writeFile(join(folder, 'empty.img'), writeMetadataImage(empty, { random }).bytes)
  t.deepEqual((await inspect(join(folder, 'empty.img'))).devices, [])

  empty.createThin(5)
  empty.write(5, 1)
  empty.createSnapshot(9, 5)
  await writeFile(join(folder, 'two.img'), writeMetadataImage(empty, { random }).bytes)
  const { devices, metadata_snapshot } = await inspect(join(folder, 'two.img'))
  t.is(metadata_snapshot, null)
  t.deepEqual(
    devices.map(({ id, same_mappings_as, origin }) => [id, same_mappings_as, origin.certainty, origin.devices]),
    [
      [5, 9, 'certain', []],
      [9, 5, 'certain', [5]]
    ]
  )
})

test('damage, and what is no metadata, is told', async (t) => {
  const path = join(folder, 'damaged.img')
  await copyFile(metadata, path)
  const bytes = await readFile(path)
  const { superblock } = await inspect(metadata)
  bytes[Number(superblock['details_root_block']) * 4096 + 40] ^= 1
  await writeFile(path, bytes)
  for (const format of ['table', 'json']) {
    const damaged = await runCommand(['inspect', path, '--live-root', '-o', format])
    t.is(damaged.status, 1)
    t.regex(complaint(damaged), /metadata block \d+ of .* is damaged/)
    t.false(damaged.stdout.includes('complete'))
    t.throws(() => JSON.parse(damaged.stdout) as unknown)
  }
  for (const [wrong, reason] of [
    [folder, /DM_READ_FAILED/],
    [join(folder, 'missing'), /DM_READ_FAILED/],
    [join(recorded, 'pool.json'), /DM_METADATA_FOREIGN/],
    ['/dev/null', /DM_READ_FAILED/]
  ] as const) {
    const result = await runCommand(['inspect', wrong])
    t.is(result.status, 1)
    t.is(result.stdout, '')
    t.regex(complaint(result), reason)
  }
})

test('a damaged metadata snapshot is no obstacle for --live-root, and said', async (t) => {
  const path = join(folder, 'held-damaged.img')
  const image = await readFile(metadata)
  image[Number(image.readBigUInt64LE(superblockField.heldRoot)) * BLOCK_BYTES + 100] ^= 1
  await writeFile(path, image)
  t.is((await runCommand(['inspect', path])).status, 1)
  const { devices, metadata_snapshot } = await inspect(path, '--live-root')
  t.deepEqual(devices, (await inspect(metadata, '--live-root')).devices)
  t.regex((metadata_snapshot as unknown as { cannot_be_used: string }).cannot_be_used, /checksum/)
  const { status, stdout } = await runCommand(['inspect', path, '--live-root'])
  t.is(status, 0)
  t.regex(stdout, /^metadata snapshot held at block \d+, and cannot be used: .*checksum/m)
})

test('a mapping beyond 2^53 bytes, and a count that the tree does not bear out, do not hide the devices', async (t) => {
  const random = new Random(31)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(1)
  for (const block of [5, 2 ** 37]) model.write(1, block)
  model.createSnapshot(2, 1)
  model.write(1, 5)
  const path = join(folder, 'far.img')
  await writeFile(path, writeMetadataImage(model, { random }).bytes)
  const { devices } = await inspect(path)
  t.deepEqual(
    devices.map(({ id, mapped_blocks }) => [id, mapped_blocks]),
    [
      [1, 2],
      [2, 2]
    ]
  )

  const wrong = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  wrong.createThin(1)
  for (const block of [5, 6]) wrong.write(1, block)
  wrong.createSnapshot(2, 1)
  wrong.write(1, 5)
  wrong.device(2).mappedBlocks = 3
  const wrongPath = join(folder, 'wrong-count.img')
  await writeFile(wrongPath, writeMetadataImage(wrong, { random }).bytes)
  const { status, stdout, stderr } = await runCommand(['inspect', wrongPath])
  t.is(status, 1)
  t.regex(stdout, /^ +1 +2 [^]*^ +2 +3 /m)
  t.notRegex(stdout, /complete/)
  t.regex(
    stderr,
    /maps as many data blocks as .*, and the details of their devices say 3 and 2.*\(DM_METADATA_DAMAGED\)/
  )
})

test('two devices with one root and two counts are damage, said once all are listed', async (t) => {
  const random = new Random(32)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(1)
  for (const block of [5, 6]) model.write(1, block)
  model.createSnapshot(2, 1)
  const path = join(folder, 'one-root.img')
  await writeFile(path, writeMetadataImage(model, { random }).bytes)
  t.is((await runCommand(['inspect', path])).status, 0)
  model.device(2).mappedBlocks = 400
  await writeFile(path, writeMetadataImage(model, { random }).bytes)
  const { status, stdout, stderr } = await runCommand(['inspect', path])
  t.is(status, 1)
  t.regex(stdout, /^ +1 +2 [^]*^ +2 +400 /m)
  t.notRegex(stdout, /complete/)
  t.regex(
    stderr,
    /the two devices whose tree begins there say that it maps (?:2 and 400|400 and 2) .*\(DM_METADATA_DAMAGED\)/
  )
})
