/**
 * `delta --cow` and `inspect` of a store from outside: what is answered, what is said with it, and all the ways in which an answer does not come
 * about.
 */
import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { writeCowStore } from '../../support/cow-image.ts'
import type { Extent } from '../../support/expected.ts'
import { testFolder } from '../../support/test-folder.ts'
import { complaint, runCommand } from '../run-command.ts'

const thin = join(await unpackRecordedPool(), 'metadata.img')
const folder = testFolder(test)
const CHUNK = 8192
const file = (name: string) => join(folder, name)

const filled = (value: number) => () => Buffer.alloc(CHUNK, value)
writeCowStore(file('monday'), { chunkBytes: CHUNK, chunks: [5, 1, 9], contents: filled(1) })
writeCowStore(file('tuesday'), {
  ...{ chunkBytes: CHUNK, chunks: [7, 9, 1] },
  contents: (index) => filled(index === 1 ? 1 : 2)()
})
writeCowStore(file('coarse'), { chunkBytes: 2 * CHUNK, chunks: [3] })
writeCowStore(file('given-up'), { chunkBytes: CHUNK, chunks: [5] })
/** A number of 4 bytes, somewhere in a store. */
function spoil(name: string, at: number, value: number): void {
  const store = openSync(file(name), 'r+')
  writeSync(store, Buffer.from(Uint32Array.of(value).buffer), 0, 4, at)
  closeSync(store)
}
spoil('given-up', 4, 0)
// Where the area's second entry says that its old content is: it is in chunk 3.
for (const [name, place] of Object.entries({ 'same-place': 2, 'in-an-area': 1, elsewhere: 4, nowhere: 0 })) {
  writeCowStore(file(name), { chunkBytes: CHUNK, chunks: [5, 7] })
  spoil(name, CHUNK + 24, place)
}
for (const [name, at, value] of [
  ['version', 8, 2],
  ['odd-chunks', 12, 24],
  ['odd-state', 4, 7],
  ['behind-header', 100, 1]
] as const) {
  writeCowStore(file(name), { chunkBytes: CHUNK, chunks: [5] })
  spoil(name, at, value)
}
writeCowStore(file('no-area'), { chunkBytes: CHUNK, chunks: Array.from({ length: CHUNK / 16 }, (_, i) => i) })
truncateSync(file('no-area'), (2 + CHUNK / 16) * CHUNK)
writeCowStore(file('twice'), { chunkBytes: CHUNK, chunks: [5, 5] })
writeCowStore(file('beyond'), { chunkBytes: CHUNK, chunks: [5, 12] })
writeCowStore(file('cut'), { chunkBytes: CHUNK, chunks: [5, 7] })
truncateSync(file('cut'), 3 * CHUNK)
writeFileSync(file('nothing'), 'x')

const size = 12 * CHUNK - 512
const cow = (base: string, target?: string, ...more: string[]) => [
  ...['delta', '--cow', file(base), ...(target === undefined ? [] : ['--target-cow', file(target)])],
  ...['--size', `${size}`, ...more]
]

async function extents(args: string[]): Promise<Extent[]> {
  const { status, stdout, stderr } = await runCommand([...args, '-o', 'json'])
  if (status !== 0) throw new Error(stderr)
  const answer = JSON.parse(stdout) as { block_metadata: { byte_offset: number; size_bytes: number }[] }
  return answer.block_metadata.map((each) => [each.byte_offset, each.size_bytes])
}

const chunks = (...numbers: number[]): Extent[] => numbers.map((chunk) => [chunk * CHUNK, CHUNK])

test('one store, two, with contents compared, with chunks of two sizes', async (t) => {
  t.deepEqual(await extents(cow('monday')), chunks(1, 5, 9))
  t.deepEqual(await extents(cow('monday', 'tuesday')), chunks(1, 5, 7, 9))
  t.deepEqual(await extents(cow('monday', 'tuesday', '--compare')), chunks(1, 5, 7))
  t.deepEqual(await extents(cow('monday', 'coarse')), [...chunks(1), [5 * CHUNK, 3 * CHUNK], ...chunks(9)])
  t.deepEqual(await extents(cow('monday', 'tuesday', '--starting-offset', '50000')), chunks(7, 9))
})

test('a base that was smaller: from its end on everything', async (t) => {
  t.deepEqual(await extents(cow('monday', 'tuesday', '--base-size', `${10 * CHUNK + 512}`)), [
    ...chunks(1, 5, 7),
    ...([[9 * CHUNK, CHUNK + 2 * CHUNK - 512]] as Extent[])
  ])
})

test('what an answer rests on is said each time', async (t) => {
  const said = async (args: string[]) => (await runCommand(args)).stderr
  t.regex(await said(cow('monday')), /monday is taken to be the older .* --target-cow names its store/)
  t.regex(await said(cow('monday', 'tuesday')), /monday is taken to be the older .*tuesday the newer one's/)
  t.regex(await said(cow('monday', 'coarse')), /different sizes: what cannot be told apart counts as changed/)
  t.regex(
    await said(cow('monday', 'tuesday', '--compare')),
    /hold what was backed up.*\n.*2 chunks compared, 1 the same/
  )
})

test('what cannot be asked, or not of these stores, is said with what to do, and nothing else', async (t) => {
  const wrong: [args: string[], status: number, says: RegExp][] = [
    [['delta', '--cow', file('monday')], 2, /--cow wants --size/],
    [cow('monday', undefined, '3', '7'), 2, /--cow names the stores, and 7 was named as well/],
    [cow('monday', undefined, '--compare'), 2, /--compare goes with --target-cow only/],
    [cow('monday', undefined, '--live-root'), 2, /--live-root does not go with --cow/],
    [cow('monday', undefined, '--metadata', thin), 2, /cannot be used with option/],
    [['delta', '1', '2', '--target-cow', file('monday')], 2, /--target-cow goes with --cow only/],
    [cow('monday', undefined, '--starting-offset', '1GiB'), 1, /DM_OFFSET_OUT_OF_RANGE/],
    [cow('given-up'), 1, /given up.*snapshot_autoextend.*DM_COW_INVALID/],
    [cow('monday', 'given-up'), 1, /DM_COW_INVALID/],
    [cow('twice'), 1, /an earlier one is of as well.*DM_METADATA_DAMAGED/],
    [cow('monday', 'twice'), 1, /DM_METADATA_DAMAGED/],
    [cow('beyond'), 1, /ends after 12 chunks.*DM_METADATA_DAMAGED/],
    [cow('cut'), 1, /points beyond its end.*DM_METADATA_DAMAGED/],
    [cow('same-place'), 1, /says that its chunk is 2, and 3 is its place.*DM_METADATA_DAMAGED/],
    [cow('in-an-area'), 1, /says that its chunk is 1, and 3 is its place.*DM_METADATA_DAMAGED/],
    [cow('elsewhere'), 1, /says that its chunk is 4, and 3 is its place.*DM_METADATA_DAMAGED/],
    [cow('nowhere'), 1, /is at no place of the store.*DM_METADATA_DAMAGED/],
    [cow('version'), 1, /of version 2.*DM_METADATA_UNSUPPORTED/],
    [cow('odd-chunks'), 1, /chunks of 24 sectors are impossible.*DM_METADATA_DAMAGED/],
    [cow('odd-state'), 1, /its header has 7.*DM_METADATA_DAMAGED/],
    [cow('behind-header'), 1, /behind its header is something.*DM_METADATA_DAMAGED/],
    [cow('no-area', undefined, '--size', '8MiB'), 1, /ends where area 1 of its entries is due.*DM_METADATA_DAMAGED/],
    [cow('nothing'), 1, /smaller than a header.*DM_METADATA_DAMAGED/],
    [['delta', '--cow', thin, '--size', '1GiB'], 1, /dm-thin metadata, not a classic.*DM_METADATA_FOREIGN/],
    [['delta', '--metadata', file('monday'), '1', '2'], 1, /dm-snapshot metadata.*--cow STORE.*DM_METADATA_FOREIGN/],
    [['delta', '--metadata', file('monday'), '--since', '2'], 1, /--cow STORE.*DM_METADATA_FOREIGN/],
    [['inspect', file('cut')], 1, /DM_METADATA_DAMAGED/]
  ]
  await Promise.all(
    wrong.map(async ([args, status, says]) => {
      const result = await runCommand(args)
      t.is(result.status, status, args.join(' '))
      t.regex(result.stderr.trimEnd().split('\n').at(-1) ?? '', says, args.join(' '))
      complaint(result)
      t.is(result.stdout, '', args.join(' '))
    })
  )
})

test('inspect shows a store', async (t) => {
  const table = await runCommand(['inspect', file('monday')])
  t.regex(table.stdout, /of a classic snapshot\nchunk size +8 KiB \(16 sectors\)\ncopied +3 chunks, from 1 to 9 of/)
  t.regex(table.stdout, /used +5 of 6 chunks \(83\.3 %\)\n.*\ncomplete\n$/)
  const json = JSON.parse((await runCommand(['inspect', file('monday'), '-o', 'json'])).stdout) as object
  t.like(json, { target: 'dm-snapshot', entries: 3, lowest_chunk: 1, highest_chunk: 9, used_chunks: 5 })
})
