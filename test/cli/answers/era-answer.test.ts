/**
 * `delta --since` from outside: every format, both views, and all the ways in which an answer does not come about.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { writeEraImage } from '../../support/era-image.ts'
import { EraModel, extentsOfBlocks } from '../../support/era-model.ts'
import type { Extent } from '../../support/expected.ts'
import { testFolder } from '../../support/test-folder.ts'
import { complaint, runCommand } from '../run-command.ts'

const thin = join(await unpackRecordedPool(), 'metadata.img')
const folder = testFolder(test)
const BLOCK = 65536

/** Eras 1 to 3 in a metadata snapshot, and two more since. */
const model = new EraModel(2000)
for (const [era, blocks] of [
  [1, [0, 1, 2, 500]],
  [2, [3, 700]],
  [3, [1999, 2]]
] as const) {
  for (const block of blocks) model.write(block)
  if (era === 3) model.takeSnapshot()
  else model.checkpoint()
}
model.digest()
model.write(100)
model.checkpoint()
model.write(101)
const held = model.held
if (!held) throw new Error('there is no metadata snapshot')
const image = join(folder, 'era.img')
writeFileSync(image, writeEraImage(model.view(), { held }).bytes)

const size = 2000 * BLOCK - 512
const since = (era: number, ...more: string[]) => ['delta', '--metadata', image, '--since', `${era}`, ...more]

function expected(era: number, view: 'live' | 'metadata-snapshot', sizing = {}): Extent[] {
  return extentsOfBlocks(model.writtenSince(era, view), { blockBytes: BLOCK, sizeBytes: size, ...sizing })
}

async function extents(...args: string[]): Promise<Extent[]> {
  const { status, stdout, stderr } = await runCommand([...args, '-o', 'json'])
  if (status !== 0) throw new Error(stderr)
  const answer = JSON.parse(stdout) as { block_metadata: { byte_offset: number; size_bytes: number }[] }
  return answer.block_metadata.map((each) => [each.byte_offset, each.size_bytes])
}

test('for every era what was written to, in both views', async (t) => {
  for (let era = 0; era <= 5; era++) {
    if (era <= 3) t.deepEqual(await extents(...since(era, '--size', `${size}`)), expected(era, 'metadata-snapshot'))
    t.deepEqual(await extents(...since(era, '--size', `${size}`, '--live-root')), expected(era, 'live'))
  }
})

test('a starting offset and the size of then, and all formats', async (t) => {
  const startingOffset = 600 * BLOCK
  const baseSizeBytes = 1990 * BLOCK
  const sizes = ['--size', `${size}`]
  t.deepEqual(
    await extents(...since(1, ...sizes, '--starting-offset', `${startingOffset}`)),
    expected(1, 'metadata-snapshot', { startingOffset })
  )
  t.deepEqual(
    await extents(...since(2, ...sizes, '--base-size', `${baseSizeBytes}`)),
    expected(2, 'metadata-snapshot', { baseSizeBytes })
  )
  const ndjson = await runCommand(since(1, ...sizes, '--max-results', '1', '-o', 'ndjson'))
  t.is(ndjson.stdout.trimEnd().split('\n').length, expected(1, 'metadata-snapshot').length + 2)
  const table = await runCommand(since(1, ...sizes))
  t.regex(table.stdout, /\n4 extents, .* changed of 131071488 bytes .*; complete\n$/)
  const map = await runCommand(since(1, ...sizes, '-o', 'map'))
  t.regex(map.stdout, /^changed, .*\n(.*\n)+4 extents, .*; complete\n$/)
})

test('which view answers is said, and how old it is', async (t) => {
  const { stderr } = await runCommand(since(1))
  t.regex(
    stderr,
    /^deltamapper: reading the metadata snapshot, with the writes up to era 3: 2 eras behind the device, which is in era 5; --live-root/
  )
  t.regex(stderr, /size of the device: 131072000 bytes .*--size says otherwise/)
  const live = await runCommand(since(1, '--live-root', '--size', '1MiB'))
  t.is(
    live.stderr,
    'deltamapper: reading the live root, with the writes of era 5 so far, and not the metadata snapshot that there is\n' +
      'deltamapper: --size leaves out 327680 bytes (320 KiB) that lie beyond it\n'
  )
})

test('what cannot be asked, or not of this metadata, is said with what to do', async (t) => {
  const wrong: [args: string[], status: number, says: RegExp][] = [
    [
      since(4),
      1,
      /knows the writes up to era 3 only, and none of era 4; drop it and take a new one.*DM_ERA_NOT_REACHED/
    ],
    [since(6), 1, /era 6 has not begun.*full backup.*DM_ERA_NOT_REACHED/],
    [since(6, '--live-root'), 1, /era 6 has not begun.*DM_ERA_NOT_REACHED/],
    [since(1, '--size', '1GiB'), 1, /2000 blocks of 65536 bytes.*DM_ARGUMENT_INVALID/],
    [since(1, '--starting-offset', '1GiB'), 1, /outside the volume.*DM_OFFSET_OUT_OF_RANGE/],
    [since(1, '3', '7'), 2, /3 was named as well; leave out BASE and TARGET/],
    [since(1, '--engine', 'both'), 2, /--engine is for thin pools/],
    [since(1, '--block-size', '64KiB'), 2, /--block-size goes with --xml only/],
    [['delta', '--since', '1'], 2, /--since goes with --metadata and --xml only/],
    [['delta', '--since', 'yesterday', '--metadata', image], 2, /An era is a whole number/],
    [['delta', '--since', '4294967296', '--metadata', image], 2, /An era is a whole number/],
    // Each kind of metadata, asked as the other.
    [['delta', '--metadata', thin, '--since', '1'], 1, /dm-thin metadata.*delta BASE TARGET.*DM_METADATA_FOREIGN/],
    [['delta', '--metadata', image, '1', '2'], 1, /dm-era metadata.*--since ERA.*DM_METADATA_FOREIGN/],
    [['allocated', '--metadata', image, '1'], 1, /dm-era metadata.*DM_METADATA_FOREIGN/],
    [['delta', '--metadata', image], 2, /missing required argument 'BASE'.*an era with --since/]
  ]
  await Promise.all(
    wrong.map(async ([args, status, says]) => {
      const result = await runCommand(args)
      t.is(result.status, status, args.join(' '))
      t.regex(result.stderr.trimEnd().split('\n').at(-1) ?? '', says)
      complaint(result)
      t.is(result.stdout, '', args.join(' '))
    })
  )
})
