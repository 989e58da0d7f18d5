/**
 * thin_delta's XML: what each version prints, and what is wrong with it in other ways than as XML. (xml-fuzzing.test.ts has the rest.)
 */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { XmlInvalid } from '../../../src/devicemapper/xml-stream.ts'
import { readDelta, streamOf } from '../../support/read-xml.ts'
import { parseThinDelta } from '../../support/thin-tools.ts'

const fixture = (name: string) => readFileSync(new URL(`../../fixtures/xml/${name}.xml`, import.meta.url))
const fixtures = ['0.9.0', '1.1.0'].flatMap((version) =>
  ['', '-live', '-needs-check', '-verbose'].map((variant) => `thin_delta-${version}${variant}`)
)

test('every version and variant says the same of the same two snapshots', async (t) => {
  const printed = fixture('thin_delta-0.9.0')
  const expected = parseThinDelta(printed.toString(), 1, 8).map(({ kind, begin, length }) => [kind, begin, length])
  t.is(new Set(expected.map(([kind]) => kind)).size, 4)
  for (const name of [...fixtures, 'thin_delta-1.1.0-roots']) {
    const { runs } = await readDelta(streamOf(fixture(name)))
    t.deepEqual(merged(runs), expected, name)
  }
})

/** With --verbose a run is told in pieces that are in one piece on the data device too. */
function merged(runs: readonly [string, number, number][]): [string, number, number][] {
  const merged: [string, number, number][] = []
  for (const [kind, begin, length] of runs) {
    const last = merged.at(-1)
    if (last?.[0] === kind && last[1] + last[2] === begin) last[2] += length
    else merged.push([kind, begin, length])
  }
  return merged
}

test('the header tells of the pool, as far as the version does', async (t) => {
  const snapshot = {
    time: 15,
    transactionId: 19n,
    needsCheck: false,
    dataBlockSectors: 128,
    dataBlockBytes: 65536,
    dataBlocks: 0,
    metadataSnapshot: undefined,
    left: { deviceId: 1 },
    right: { deviceId: 8 }
  }
  const live = { ...snapshot, time: 16, transactionId: 20n, dataBlocks: 1024 }
  const { header: old } = await readDelta(streamOf(fixture('thin_delta-0.9.0-live')))
  t.true(Number(old.metadataSnapshot) > 0)
  t.deepEqual(old, { ...live, metadataSnapshot: old.metadataSnapshot })
  const headerOf = async (name: string) => (await readDelta(streamOf(fixture(name)))).header
  t.deepEqual(await headerOf('thin_delta-0.9.0'), snapshot)
  t.deepEqual(await headerOf('thin_delta-1.1.0'), snapshot)
  t.deepEqual(await headerOf('thin_delta-1.1.0-live'), live)
  // Of these two only 1.x tells.
  t.false((await headerOf('thin_delta-0.9.0-needs-check')).needsCheck)
  t.deepEqual(await headerOf('thin_delta-1.1.0-needs-check'), { ...live, needsCheck: true })
  const { left, right } = await headerOf('thin_delta-1.1.0-roots')
  t.true(Number(left.root) > 0 && Number(right.root) > 0 && left.root !== right.root)
  t.deepEqual([left.deviceId, right.deviceId], [undefined, undefined])
})

test('1.1.0 prints wrong data addresses with --verbose: the reason why they are not handed out', (t) => {
  const rangesOf = (name: string) => {
    const ranges = [
      ...fixture(name)
        .toString()
        .matchAll(/<range begin="(\d+)" (.*) length="(\d+)"/g)
    ]
    return ranges.flatMap(([, begin, addresses, length]) =>
      Array.from({ length: Number(length) }, (_, i) => {
        const shifted = [...addresses.matchAll(/(\w+)="(\d+)"/g)].map(([, name, at]) => `${name} ${Number(at) + i}`)
        return `${Number(begin) + i}: ${shifted.join(', ')}`
      })
    )
  }
  const [right, wrong] = [rangesOf('thin_delta-0.9.0-verbose'), rangesOf('thin_delta-1.1.0-verbose')]
  t.is(right.length, wrong.length)
  t.notDeepEqual(right, wrong)
})

const pool = 'uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="9"'
const around = (content: string) =>
  `<superblock ${pool}>\n<diff left="1" right="2">\n${content}\n</diff>\n</superblock>\n`

const wrong: [what: string, text: string, expected: RegExp][] = [
  [
    'overlapping',
    '<same begin="3" length="4"/><same begin="6" length="1"/>',
    /column 29: block 6 comes when block 6 has been/
  ],
  [
    'out of order',
    '<same begin="3" length="4"/>\n<same begin="1" length="1"/>',
    /line 4, column 1: block 1 comes when block 6 has been/
  ],
  [
    'twice',
    '<same begin="3" length="4"/>\n<same begin="3" length="4"/>',
    /line 4, column 1: block 3 comes when block 6 has been/
  ],
  [
    'across lists',
    '<same begin="3" length="4"/><same><range begin="6" data_begin="1" length="1"/></same>',
    /block 6 comes/
  ],
  ['no blocks', '<same begin="3" length="0"/>', /line 3, column 1: the run that begins at block 3 holds no block/],
  ['negative', '<same begin="-3" length="4"/>', /begin of <same> is "-3", which is no whole number/],
  ['negative length', '<same begin="3" length="-1"/>', /length of <same> is "-1"/],
  ['a leading zero', '<same begin="03" length="4"/>', /begin of <same> is "03"/],
  ['a sign', '<same begin="+3" length="4"/>', /begin of <same> is "\+3"/],
  ['a fraction', '<same begin="3.0" length="4"/>', /begin of <same> is "3.0"/],
  ['an exponent', '<same begin="3e3" length="4"/>', /begin of <same> is "3e3"/],
  ['hexadecimal', '<same begin="0x3" length="4"/>', /begin of <same> is "0x3"/],
  ['white space in a number', '<same begin=" 3" length="4"/>', /begin of <same> is " 3"/],
  ['no number', '<same begin="" length="4"/>', /begin of <same> is ""/],
  ['other digits', '<same begin="٣" length="4"/>', /begin of <same> is "٣"/],
  ['beyond 2^40', '<same begin="1099511627775" length="2"/>', /blocks 1099511627775 to 1099511627776 are beyond 2\^40/],
  ['beyond 2^53', '<same begin="9007199254740993" length="1"/>', /begin of <same> is "9007199254740993"/],
  ['beyond 2^64', '<same begin="18446744073709551616" length="1"/>', /begin of <same> is "18446744073709551616"/],
  ['no length', '<same begin="3"/>', /<same> lacks its attribute length/],
  ['no begin', '<same length="3"/>', /<same> lacks its attribute begin/],
  ['an unknown kind', '<changed begin="3" length="4"/>', /<changed> does not belong here/],
  ['another case', '<Same begin="3" length="4"/>', /<Same> does not belong here/],
  ['a range in no list', '<range begin="3" data_begin="1" length="4"/>', /<range> does not belong here/],
  ['an empty list', '<same>\n</same>', /<same> says of no blocks/],
  ['an empty list, in short', '<same/>', /<same> says of no blocks/],
  ['a run in a list', '<same><same begin="3" length="4"/></same>', /<same> does not belong here/],
  ['a list in a list', '<same><different></different></same>', /<different> does not belong here/],
  [
    'a range of another kind',
    '<different><range begin="3" data_begin="1" length="4"/></different>',
    /range of <different>|left_data_begin/
  ],
  [
    'data beyond 2^40',
    '<same><range begin="3" data_begin="1099511627776" length="1"/></same>',
    /data blocks are beyond 2\^40/
  ],
  ['no address', '<same><range begin="3" length="1"/></same>', /<range> lacks its attribute data_begin/],
  ['a second diff', '</diff><diff left="1" right="2">', /<diff> does not belong here/]
]

for (const [what, text, expected] of wrong) {
  test(`refused: ${what}`, async (t) => {
    for (const quick of [true, false]) {
      const error = await t.throwsAsync(readDelta(streamOf(Buffer.from(around(text))), { quick }), {
        instanceOf: XmlInvalid
      })
      t.regex(error.message, expected)
    }
  })
}

const withHeader = (superblock: string, diff: string) => `<superblock ${superblock}><diff ${diff}></diff></superblock>`
const wrongHeaders: [what: string, text: string, expected: RegExp][] = [
  [
    'no block size',
    withHeader(pool.replace(/data_block_size="128"/, ''), 'left="1" right="2"'),
    /lacks its attribute data_block_size/
  ],
  ['a block size of 0', withHeader(pool.replace('"128"', '"0"'), 'left="1" right="2"'), /block size of 0 sectors/],
  ['an odd block size', withHeader(pool.replace('"128"', '"130"'), 'left="1" right="2"'), /block size of 130 sectors/],
  [
    'a huge block size',
    withHeader(pool.replace('"128"', '"4194304"'), 'left="1" right="2"'),
    /data_block_size .* is "4194304"/
  ],
  [
    'a time beyond 32 bits',
    withHeader(pool.replace('time="1"', 'time="4294967296"'), 'left="1" right="2"'),
    /time .*"4294967296"/
  ],
  [
    'a transaction beyond 64 bits',
    withHeader(pool.replace('transaction="2"', 'transaction="18446744073709551616"'), ''),
    /transaction/
  ],
  ['no left', withHeader(pool, 'right="2"'), /says not what its left side is/],
  ['two rights', withHeader(pool, 'left="1" right="2" right_root="3"'), /says not what its right side is/],
  ['a device id beyond 24 bits', withHeader(pool, 'left="16777216" right="2"'), /left of <diff> is "16777216"/],
  ['no diff', `<superblock ${pool}>\n</superblock>`, /line 2, column 1: <superblock> holds no <diff>/],
  [
    'thin_dump',
    fixture('thin_dump-1.1.0').toString(),
    /line 2, column 3: this is what thin_dump prints.*give the output of thin_delta/
  ],
  ['era_dump', fixture('era_dump-1.1.0-live').toString(), /line 1, column 1: this is what era_dump prints/],
  [
    'era_invalidate',
    fixture('era_invalidate-0.9.0-live').toString(),
    /line 1, column 1: this is what era_invalidate prints/
  ]
]

for (const [what, text, expected] of wrongHeaders) {
  test(`refused header: ${what}`, async (t) => {
    const error = await t.throwsAsync(readDelta(streamOf(Buffer.from(text))), { instanceOf: XmlInvalid })
    t.regex(error.line, expected)
  })
}

test('the largest numbers are exact', async (t) => {
  const text = around('<same begin="0" length="1099511627775"/><left_only begin="1099511627775" length="1"/>').replace(
    'transaction="2"',
    'transaction="18446744073709551615"'
  )
  const { header, runs } = await readDelta(streamOf(Buffer.from(text)))
  t.is(header.transactionId, 2n ** 64n - 1n)
  t.deepEqual(runs, [
    ['same', 0, 2 ** 40 - 1],
    ['left_only', 2 ** 40 - 1, 1]
  ])
})

test('two snapshots without a mapping have nothing between them', async (t) => {
  t.deepEqual((await readDelta(streamOf(Buffer.from(around(''))))).runs, [])
  t.deepEqual(
    (await readDelta(streamOf(Buffer.from(`<superblock ${pool}><diff left="1" right="2"/></superblock>`)))).runs,
    []
  )
})
