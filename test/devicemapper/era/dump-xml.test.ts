/**
 * era_dump's XML: what each version prints, and dumps that lack a block. (xml-fuzzing.test.ts has the rest.)
 */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { XmlInvalid } from '../../../src/devicemapper/xml-stream.ts'
import { readEraDump, streamOf } from '../../support/read-xml.ts'

const fixture = (name: string) => readFileSync(new URL(`../../fixtures/xml/${name}.xml`, import.meta.url))
const read = async (name: string) => readEraDump(streamOf(fixture(name)))

/** When record-era.ts wrote to a block last, up to an era. */
function writtenIn(block: number, newest: number): number {
  const within = (from: number, count: number) => block >= from && block < from + count
  if (newest >= 5 && (within(8, 2) || within(200, 1))) return 5
  if (newest >= 4 && block === 7) return 4
  if (newest >= 3 && (within(0, 70) || within(255, 3))) return 3
  if (within(100, 5) || within(5, 2)) return 2
  return within(0, 10) || [64, 127, 300].includes(block) ? 1 : 0
}

const allBlocks = (newest: number) =>
  Array.from({ length: 301 }, (_, block) => [block, writtenIn(block, newest)] as [number, number])

test('a writeset that was not digested yet, and the array without it', async (t) => {
  for (const version of ['0.9.0', '1.1.0']) {
    const { header, sections } = await read(`era_dump-${version}-undigested`)
    t.deepEqual(header, { blockSectors: 128, blockBytes: 65536, blocks: 301, currentEra: 3 })
    t.deepEqual(sections, [
      { section: 'writeset', era: 3, marks: allBlocks(3).filter(([, era]) => era === 3) },
      { section: 'era_array', marks: allBlocks(2) }
    ])
    t.deepEqual((await read(`era_dump-${version}-undigested-logical`)).sections, [
      { section: 'era_array', marks: allBlocks(3) }
    ])
  }
})

test('only 1.x tells what was written in the current era', async (t) => {
  const digested = { section: 'era_array', marks: allBlocks(4) } as const
  t.deepEqual((await read('era_dump-0.9.0-live')).sections, [digested])
  const { header, sections } = await read('era_dump-1.1.0-live')
  t.is(header.currentEra, 5)
  const current = { section: 'writeset', era: 5, marks: allBlocks(5).filter(([, era]) => era === 5) } as const
  t.deepEqual(sections, [current, digested])
  t.deepEqual((await read('era_dump-1.1.0-live-logical')).sections, [{ section: 'era_array', marks: allBlocks(5) }])
})

const bits = (marks: string) =>
  [...marks].map((mark, block) => `<bit block="${block}" value="${mark === '1'}"/>`).join('\n')
const eras = (list: number[]) =>
  `<era_array>\n${list.map((era, block) => `<era block="${block}" era="${era}"/>`).join('\n')}\n</era_array>`
const writeset = (era: number, count: number, content: string) =>
  `<writeset era="${era}" nr_bits="${count}">\n${content}\n</writeset>\n`
const around = (content: string, blocks = 4) =>
  Buffer.from(
    `<superblock uuid="" block_size="128" nr_blocks="${blocks}" current_era="5">\n${content}\n</superblock>\n`
  )
const array = eras([0, 1, 2, 0])

const wrong: [what: string, text: string, expected: RegExp][] = [
  [
    'a bit cut out of the middle',
    writeset(3, 4, bits('0110').replace(/.*block="2".*\n/, '')) + array,
    /block 3 comes where block 2 is due/
  ],
  ['bits cut off', writeset(3, 4, bits('011')) + array, /line 6, column 1: it tells of 3 blocks where there are 4/],
  ['too many bits', writeset(3, 4, bits('01101')) + array, /there is no block 4 in a device of 4 blocks/],
  ['a mark beyond the bits', writeset(3, 2, bits('0010')) + array, /block 2 is marked in a writeset of 2 bits/],
  [
    'neither true nor false',
    writeset(3, 4, bits('0110').replace('true', 'TRUE')) + array,
    /"TRUE" is neither true nor false/
  ],
  ['an era cut out of the middle', array.replace(/.*block="1".*\n/, ''), /block 2 comes where block 1 is due/],
  ['eras cut off', eras([0, 1, 2]), /it tells of 3 blocks where there are 4/],
  // The last line was missing without notice once, because the writeset before tells of marked runs only.
  [
    'eras cut off after marked runs',
    writeset(3, 4, '<marked block_begin="1" len="2"/>') + eras([0, 1, 2]),
    /it tells of 3 blocks where there are 4/
  ],
  ['an era to come', eras([0, 1, 2, 6]), /block 3 was written to in era 6, and the current era is 5/],
  ['a writeset to come', writeset(6, 4, bits('0000')) + array, /a writeset of era 6, and the current era is 5/],
  [
    'writesets out of order',
    writeset(3, 4, bits('0000')) + writeset(2, 4, bits('0000')) + array,
    /of era 2 comes after that of era 3/
  ],
  [
    'a writeset twice',
    writeset(3, 4, bits('0000')) + writeset(3, 4, bits('0000')) + array,
    /of era 3 comes after that of era 3/
  ],
  ['a writeset after the array', array + writeset(3, 4, bits('0000')), /a writeset comes after the era array/],
  ['two arrays', array + array, /there are two era arrays/],
  ['no array', writeset(3, 4, bits('0000')), /<superblock> holds no <era_array>/],
  ['a writeset of no blocks', writeset(3, 0, '') + array, /the writeset of era 3 is of no blocks at all/],
  ['a writeset that says nothing', writeset(3, 4, '') + array, /it tells of 0 blocks where there are 4/],
  [
    'both ways of telling',
    writeset(3, 4, `${bits('0')}<marked block_begin="1" len="1"/>`) + array,
    /<marked> does not belong here/
  ],
  [
    'marked runs that overlap',
    writeset(3, 4, '<marked block_begin="1" len="2"/><marked block_begin="2" len="1"/>') + array,
    /block 2 comes when block 2 has been/
  ],
  [
    'a marked run beyond the bits',
    writeset(3, 4, '<marked block_begin="1" len="4"/>') + array,
    /block 4 is marked in a writeset of 4 bits/
  ],
  [
    'a bit in the array',
    array.replace('</era_array>', '<bit block="0" value="true"/></era_array>'),
    /<bit> does not belong here/
  ]
]

for (const [what, text, expected] of wrong) {
  test(`refused: ${what}`, async (t) => {
    for (const quick of [true, false]) {
      const error = await t.throwsAsync(readEraDump(streamOf(around(text)), { quick }), { instanceOf: XmlInvalid })
      t.regex(error.message, expected)
    }
  })
}

test('refused: headers that cannot be, and what other tools print', async (t) => {
  const header = (size: number, blocks: string) =>
    Buffer.from(`<superblock uuid="" block_size="${size}" nr_blocks="${blocks}" current_era="1">`)
  for (const [bytes, expected] of [
    [header(0, '4'), /block size of 0 sectors/],
    [header(12, '4'), /block size of 12 sectors/],
    [header(128, '2147483648'), /nr_blocks of <superblock> is "2147483648"/],
    [fixture('era_invalidate-0.9.0-live'), /this is what era_invalidate prints/],
    [fixture('thin_dump-0.9.0'), /this is what thin_delta or thin_dump prints/]
  ] as const) {
    const error = await t.throwsAsync(readEraDump(streamOf(bytes)), { instanceOf: XmlInvalid })
    t.regex(error.message, expected)
  }
})

test('a device that has grown since a writeset was archived: 0.9 leaves out the new blocks, 1.x fills them up', async (t) => {
  for (const filled of ['01', '0100']) {
    const { sections } = await readEraDump(streamOf(around(writeset(3, 2, bits(filled)) + array)))
    t.deepEqual(sections[0], { section: 'writeset', era: 3, marks: [[1, 3]] })
  }
})

test('marked runs, and an era without any', async (t) => {
  const marked = '<marked block_begin="0" len="1"/><marked block_begin="2" len="2"/>'
  const { sections } = await readEraDump(
    streamOf(around(writeset(3, 4, marked) + writeset(4, 4, bits('0000')) + array))
  )
  t.deepEqual(sections.slice(0, 2), [
    {
      section: 'writeset',
      era: 3,
      marks: [
        [0, 3],
        [2, 3],
        [3, 3]
      ]
    },
    { section: 'writeset', era: 4, marks: [] }
  ])
})
