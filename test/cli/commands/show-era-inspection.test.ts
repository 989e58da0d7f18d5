import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { eraField, type EraView, writeEraImage } from '../../support/era-image.ts'
import { EraModel } from '../../support/era-model.ts'
import { testFolder } from '../../support/test-folder.ts'
import { runCommand } from '../run-command.ts'

const folder = testFolder(test)

interface Inspected {
  target: string
  view: string
  last_era: number
  digested_up_to_era: number
  superblock: { current_era: number; has_current_writeset: boolean; blocks: number; size_bytes: number }
  metadata_snapshot: { last_era: number; blocks: number; eras_since: number } | null
  writesets: { era: number; bits: number }[]
}

function image(name: string, view: EraView, held?: EraView): string {
  const path = join(folder, name)
  writeFileSync(path, writeEraImage(view, { blockSectors: 8, ...(held ? { held } : {}) }).bytes)
  return path
}

async function inspect(...args: string[]): Promise<Inspected> {
  const { status, stdout, stderr } = await runCommand(['inspect', ...args, '-o', 'json'])
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout) as Inspected
}

/** Three eras, then a metadata snapshot, growth, and two more. */
const model = new EraModel(100)
for (let era = 1; era < 3; era++) model.checkpoint()
model.digest()
model.takeSnapshot()
model.suspend()
model.resume(200)
const path = image('era.img', model.view(), model.held)

test('the metadata snapshot, and what it has', async (t) => {
  const found = await inspect(path)
  t.is(found.target, 'dm-era')
  t.is(found.view, 'metadata-snapshot')
  t.is(found.last_era, 3)
  t.is(found.digested_up_to_era, 1)
  t.like(found.superblock, { current_era: 5, has_current_writeset: true, blocks: 200, size_bytes: 819_200 })
  t.like(found.metadata_snapshot, { last_era: 3, blocks: 100, eras_since: 2 })
  t.like(found.writesets, { 0: { era: 2, bits: 100 }, 1: { era: 3, bits: 100 }, length: 2 })
})

test('the live root beside it', async (t) => {
  const found = await inspect(path, '--live-root')
  t.is(found.view, 'live')
  t.is(found.last_era, 5)
  t.like(found.metadata_snapshot, { last_era: 3 })
  t.deepEqual(
    found.writesets.map(({ era, bits }) => [era, bits]),
    [
      [2, 100],
      [3, 100],
      [4, 100],
      [5, 200]
    ]
  )
})

test('a suspended device without a metadata snapshot, as text', async (t) => {
  const suspended = new EraModel(100)
  suspended.suspend()
  const { status, stdout } = await runCommand(['inspect', image('suspended.img', suspended.view())])
  t.is(status, 0)
  t.regex(stdout, /^block size +4 KiB \(8 sectors\)$/m)
  t.regex(stdout, /^era +1, which is over: suspended or inactive$/m)
  t.regex(stdout, /^metadata snapshot none$/m)
  t.regex(stdout, /^digested +no era yet$/m)
  t.regex(stdout, /^ +1 +100 +\d+\n1 writeset; complete\n$/m)
})

test('a damaged metadata snapshot is no obstacle for --live-root, and said', async (t) => {
  const bytes = readFileSync(path)
  bytes[Number(bytes.readBigUInt64LE(eraField.metadataSnapshot)) * 4096 + 100] ^= 1
  const damaged = join(folder, 'held-damaged.img')
  writeFileSync(damaged, bytes)
  t.is((await runCommand(['inspect', damaged])).status, 1)
  const found = await inspect(damaged, '--live-root')
  t.is(found.view, 'live')
  t.deepEqual(found.writesets, (await inspect(path, '--live-root')).writesets)
  t.regex((found.metadata_snapshot as unknown as { cannot_be_used: string }).cannot_be_used, /checksum/)
  t.regex(
    (await runCommand(['inspect', damaged, '--live-root'])).stdout,
    /^metadata snapshot at block \d+, and cannot be used/m
  )
})
