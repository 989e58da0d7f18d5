/**
 * `delta --xml` with what era_dump and era_invalidate print, from outside: the answer of the metadata itself, options that go together and
 * those that do not, and everything that is no answer.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { extentsOfBlocks } from '../../support/era-model.ts'
import { testFolder } from '../../support/test-folder.ts'
import { type CommandResult, complaint, runCommand } from '../run-command.ts'
import { answerOf, withInput } from './xml-command.ts'

const folder = testFolder(test)
const fixture = (name: string) => fileURLToPath(new URL(`../../fixtures/xml/${name}.xml`, import.meta.url))
const BLOCK = 65536
const blocks = 301
const whole = blocks * BLOCK

/** In which eras record-era.ts has written to a block. */
const written: Record<number, (block: number) => boolean> = {
  1: (block) => block < 10 || [64, 127, 300].includes(block),
  2: (block) => (block >= 100 && block < 105) || block === 5 || block === 6,
  3: (block) => block < 70 || (block >= 255 && block < 258),
  4: (block) => block === 7,
  5: (block) => block === 8 || block === 9 || block === 200
}

function since(era: number, until: number, sizing = {}) {
  const all = Array.from({ length: blocks }, (_, block) => block)
  const wanted = all.filter((block) =>
    Object.entries(written).some(([each, has]) => Number(each) >= era && Number(each) <= until && has(block))
  )
  return extentsOfBlocks(wanted, { blockBytes: BLOCK, sizeBytes: whole, ...sizing })
}

const delta = (...args: string[]) => runCommand(['delta', ...args, '-o', 'json'])

test('era_dump: for every era what was written to, with the current era where it is in it', async (t) => {
  const dumps: [name: string, until: number][] = [
    ['era_dump-1.1.0-live', 5],
    ['era_dump-0.9.0-live', 4]
  ]
  for (const [name, until] of dumps) {
    for (let era = 0; era <= until; era++) {
      const fromFile = await delta('--xml', fixture(name), '--since', `${era}`)
      t.deepEqual(answerOf(fromFile), { extents: since(era, until), size: whole }, `${name}, ${era}`)
    }
    const piped = await withInput(['delta', '--xml', '-', '--since', '2', '-o', 'json'], readFileSync(fixture(name)))
    t.deepEqual(answerOf(piped).extents, since(2, until))
  }
  const logical = await delta('--xml', fixture('era_dump-1.1.0-live-logical'), '--since', '3')
  t.deepEqual(answerOf(logical).extents, since(3, 5))
})

test('era_invalidate: what it lists, in blocks of the size that is given', async (t) => {
  for (const version of ['0.9.0', '1.1.0']) {
    const file = fixture(`era_invalidate-${version}-undigested`)
    // record-era.ts asked since era 2, in era 3.
    const expected = since(2, 3)
    const fromFile = await delta('--xml', file, '--block-size', '64KiB', '--size', `${whole}`)
    t.deepEqual(answerOf(fromFile), { extents: expected, size: whole })
    const piped = await withInput(['delta', '--xml', '-', '--block-size', '64KiB', '-o', 'json'], readFileSync(file))
    t.deepEqual(answerOf(piped), { extents: expected, size: 258 * BLOCK })
    t.is((await delta('--xml', file, '--block-size', '64KiB')).stdout, piped.stdout)
    const small = answerOf(await delta('--xml', file, '--block-size', '4096'))
    t.deepEqual(
      small.extents,
      expected.map(([offset, size]) => [offset / 16, size / 16])
    )
  }
})

test('sizes, an offset, and every format', async (t) => {
  const dump = ['--xml', fixture('era_dump-1.1.0-live'), '--since', '4']
  const list = ['--xml', fixture('era_invalidate-1.1.0-undigested'), '--block-size', '64KiB']
  const sizeBytes = 280 * BLOCK - 512
  const baseSizeBytes = 250 * BLOCK + 1
  const startingOffset = 101 * BLOCK + 5
  for (const [args, from, until] of [
    [dump, 4, 5],
    [list, 2, 3]
  ] as const) {
    const sized = [...args, '--size', `${sizeBytes}`]
    t.deepEqual(answerOf(await delta(...sized)), { extents: since(from, until, { sizeBytes }), size: sizeBytes })
    t.deepEqual(
      answerOf(await delta(...sized, '--base-size', `${baseSizeBytes}`)).extents,
      since(from, until, { sizeBytes, baseSizeBytes })
    )
    const { extents } = answerOf(await delta(...sized, '--starting-offset', `${startingOffset}`))
    t.deepEqual(extents, since(from, until, { sizeBytes, startingOffset }))
    for (const format of ['table', 'map', 'ndjson']) {
      const { status, stdout } = await runCommand(['delta', ...sized, '-o', format])
      t.is(status, 0)
      t.regex(stdout.trimEnd().split('\n').at(-1) ?? '', /complete/)
    }
  }
})

test('what the answer rests on is said on stderr', async (t) => {
  const said = async (...args: string[]) =>
    (await delta(...args)).stderr
      .trimEnd()
      .split('\n')
      .map((line) => line.replace(/from \S+,/, 'from FILE,'))
  const size = 'size of the device: 19726336 bytes (18.8 MiB), up to the end of its last block; --size says otherwise'
  t.deepEqual(await said('--xml', fixture('era_dump-1.1.0-live'), '--since', '3'), [
    'deltamapper: reading what era_dump says, from FILE, of an era device with 64 KiB blocks, with the writes of era 5 so far',
    `deltamapper: ${size}`
  ])
  t.deepEqual(await said('--xml', fixture('era_dump-0.9.0-live'), '--since', '3'), [
    'deltamapper: reading what era_dump says, from FILE, of an era device with 64 KiB blocks, with the writes up to era 4: of era 5, the current one, it has no writeset',
    'deltamapper: it has no writesets: 0.9.0 --logical gives blocks too early an era, so that some may be missing here',
    `deltamapper: ${size}`
  ])
  t.deepEqual(await said('--xml', fixture('era_invalidate-0.9.0-undigested'), '--block-size', '64KiB'), [
    'deltamapper: reading what era_invalidate says, from FILE, with 64 KiB blocks; since which era is not in it',
    'deltamapper: size of the device: 16908288 bytes (16.1 MiB), the end of the last range; --size says otherwise'
  ])
})

const [dump, old, list, pool] = [
  'era_dump-1.1.0-live',
  'era_dump-0.9.0-live',
  'era_invalidate-0.9.0-live',
  'thin_delta-0.9.0'
].map(fixture)

const noAnswer: [what: string, args: string[], status: number, expected: RegExp][] = [
  [
    'a list without its block size',
    ['--xml', list],
    2,
    /does not say how large a block is; .*--block-size \(DM_ARGUMENT_MISSING\)/
  ],
  ['a list with an era', ['--xml', list, '--since', '2'], 2, /since which era was said there .*; leave out --since/],
  [
    'a dump without an era',
    ['--xml', dump],
    2,
    /is what era_dump has printed, of all eras; say with --since .*\(DM_ARGUMENT_MISSING\)/
  ],
  [
    'a dump with a block size',
    ['--xml', dump, '--block-size', '64KiB'],
    2,
    /which has the size of a block; leave out --block-size/
  ],
  [
    'both options',
    ['--xml', dump, '--block-size', '64KiB', '--since', '1'],
    2,
    /--since goes with what era_dump has.*; leave out one/
  ],
  [
    'a pool and an era',
    ['--xml', pool, '--since', '1'],
    2,
    /thin_delta or thin_dump has printed, and --since is for era devices/
  ],
  ['a pool and a block size', ['--xml', pool, '--block-size', '64KiB'], 2, /and --block-size is for era devices/],
  [
    'a device named too',
    ['3', '7', '--xml', dump, '--since', '1'],
    2,
    /and 3 was named as well; leave out BASE and TARGET/
  ],
  ['a device named with a list', ['3', '--xml', list, '--block-size', '64KiB'], 2, /and 3 was named as well/],
  ['an engine', ['--xml', dump, '--since', '1', '--engine', 'both'], 2, /--engine goes with --metadata only/],
  ['the live root', ['--xml', dump, '--since', '1', '--live-root'], 2, /--live-root goes with --metadata only/],
  ['a block size without XML', ['1', '2', '--block-size', '64KiB'], 2, /--block-size goes with --xml only/],
  ['a block size of no device', ['--xml', list, '--block-size', '65535'], 2, /a multiple of 4 KiB/],
  ['blocks of nothing', ['--xml', list, '--block-size', '0'], 2, /a multiple of 4 KiB/],
  ['an era that has not begun', ['--xml', dump, '--since', '6'], 1, /era 6 has not begun in .*\(DM_ERA_NOT_REACHED\)/],
  [
    'an era that 0.9.0 leaves out',
    ['--xml', old, '--since', '5'],
    1,
    /has no writeset of era 5, the current one.*\(DM_ERA_NOT_REACHED\)/
  ],
  [
    'more than the device has',
    ['--xml', dump, '--since', '1', '--size', '1GiB'],
    1,
    /301 blocks of 65536 bytes.*\(DM_ARGUMENT_INVALID\)/
  ],
  ['an offset beyond', ['--xml', dump, '--since', '1', '--starting-offset', '1GiB'], 1, /\(DM_OFFSET_OUT_OF_RANGE\)/]
]

for (const [what, args, status, expected] of noAnswer) {
  test(`no answer, and why: ${what}`, async (t) => {
    const result = await delta(...args)
    t.is(result.status, status)
    t.regex(complaint(result), expected)
    t.is(result.stdout, '')
  })
}

test('torn XML is no answer, in the writesets, in the array, in the list', async (t) => {
  const torn = (result: CommandResult) => {
    t.is(result.status, 1)
    t.regex(complaint(result), /line [0-9]+, column [0-9]+: it ends.*\(DM_XML_INVALID\)$/)
    t.notRegex(result.stdout, /complete/)
  }
  for (const [file, option] of [
    [dump, ['--since', '1']],
    [list, ['--block-size', '64KiB']],
    [list, ['--block-size', '64KiB', '--size', '1GiB']]
  ] as const) {
    const content = readFileSync(file)
    for (const part of [0.2, 0.9, 1]) {
      const rest = content.subarray(0, Math.floor(content.toString().trimEnd().length * part) - 1)
      const path = join(folder, 'torn.xml')
      writeFileSync(path, rest)
      torn(await runCommand(['delta', '--xml', path, ...option, '-o', 'ndjson']))
      torn(await withInput(['delta', '--xml', '-', ...option, '-o', 'ndjson'], rest))
    }
  }
})
