/**
 * era_invalidate's XML, in both spellings. (xml-fuzzing.test.ts has the rest.)
 */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { XmlInvalid } from '../../../src/devicemapper/xml-stream.ts'
import { readInvalidate, streamOf } from '../../support/read-xml.ts'

const fixture = (name: string) => readFileSync(new URL(`../../fixtures/xml/${name}.xml`, import.meta.url))

test('both versions say what was written since era 2 (record-era.ts), where the array is not all there is', async (t) => {
  const written = [
    [0, 70],
    [100, 5],
    [255, 3]
  ]
  for (const version of ['0.9.0', '1.1.0']) {
    const { runs } = await readInvalidate(streamOf(fixture(`era_invalidate-${version}-undigested`)))
    t.deepEqual(runs as number[][], written)
  }
  t.true(fixture('era_invalidate-0.9.0-undigested').includes('end = "'))
  t.deepEqual((await readInvalidate(streamOf(fixture('era_invalidate-0.9.0-live')))).runs as number[][], written)
  // Nothing here shows that this is wrong: 1.1.0 says so where every writeset has been digested.
  t.deepEqual((await readInvalidate(streamOf(fixture('era_invalidate-1.1.0-live')))).runs, [])
})

const around = (content: string) => Buffer.from(`<blocks>\n${content}\n</blocks>\n`)
const wrong: [what: string, text: string, expected: RegExp][] = [
  [
    'overlapping',
    '<range begin="3" end="9"/><block block="8"/>',
    /line 2, column 27: block 8 comes when block 8 has been/
  ],
  ['out of order', '<block block="3"/><block block="2"/>', /block 2 comes when block 3 has been/],
  ['no blocks', '<range begin="3" end="3"/>', /begins at block 3 holds no block/],
  ['backwards', '<range begin="3" end="1"/>', /begins at block 3 holds no block/],
  ['beyond 2^31', '<range begin="0" end="2147483649"/>', /beyond 2\^31|is "2147483649"/],
  ['negative', '<block block="-1"/>', /block of <block> is "-1"/],
  ['no end', '<range begin="3"/>', /lacks its attribute end/],
  ['an unknown element', '<blocks/>', /<blocks> does not belong here/],
  ['an element in a range', '<range begin="1" end="2"><block block="1"/></range>', /<block> does not belong here/]
]

for (const [what, text, expected] of wrong) {
  test(`refused: ${what}`, async (t) => {
    for (const quick of [true, false]) {
      const error = await t.throwsAsync(readInvalidate(streamOf(around(text)), { quick }), { instanceOf: XmlInvalid })
      t.regex(error.message, expected)
    }
  })
}

test('refused: what other tools print', async (t) => {
  for (const [name, expected] of [
    ['era_dump-0.9.0-live', /this is what era_dump prints/],
    ['thin_delta-0.9.0', /this is what thin_delta or thin_dump prints/]
  ] as const) {
    const error = await t.throwsAsync(readInvalidate(streamOf(fixture(name))), { instanceOf: XmlInvalid })
    t.regex(error.message, expected)
  }
})

test('the last block there can be', async (t) => {
  t.deepEqual((await readInvalidate(streamOf(around(`<range begin="0" end="${2 ** 31}"/>`)))).runs, [[0, 2 ** 31]])
})
