/**
 * What holds for every dialect, tried on thin_delta's: what is XML, where it went wrong, how much is read ahead and remembered.
 */
import test from 'ava'
import { readDeltaXml } from '../../src/devicemapper/thin/delta-xml.ts'
import { type ByteStream, XmlInvalid } from '../../src/devicemapper/xml-stream.ts'
import { readDelta, streamOf } from '../support/read-xml.ts'

const header = '<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="9">\n'
const start = `${header}  <diff left="1" right="2">\n`
const end = '  </diff>\n</superblock>\n'
const run = '    <same begin="3" length="4"/>\n'

const bytesOf = (text: string) => Buffer.from(text)

/** Both ways must say the same. */
async function refusal(bytes: Uint8Array): Promise<XmlInvalid> {
  const errors: XmlInvalid[] = []
  for (const quick of [true, false]) {
    try {
      await readDelta(streamOf(bytes), { quick, name: 'doc.xml' })
    } catch (error) {
      if (!(error instanceof XmlInvalid)) throw error
      errors.push(error)
    }
  }
  if (errors.length !== 2) throw new Error(`accepted: ${Buffer.from(bytes).toString()}`)
  if (errors[0].message !== errors[1].message) throw new Error(`${errors[0].message} and ${errors[1].message}`)
  return errors[0]
}

const hostile: [what: string, text: string | Uint8Array, expected: RegExp][] = [
  ['nothing', '', /line 1, column 1: it is empty/],
  ['white space', ' \n\n ', /line 3, column 2: it is empty/],
  ['no XML', 'Usage: thin_delta [options]\n', /line 1, column 1: .*in the middle/],
  ['binary', Buffer.from([0x1f, 0x8b, 8, 0, 0x3e]), /line 1, column 1: this is no UTF-8/],
  ['another root', '<html>', /line 1, column 1: <html> is not where thin_delta writes it/],
  [
    'an unknown element',
    `${start}${run}    <new begin="9" length="1"/>\n${end}`,
    /line 4, column 5: <new> does not belong/
  ],
  ['an element in a run', `${start}<same begin="3" length="4"><x/></same>${end}`, /<x> does not belong here/],
  ['a run in a run', `${start}<same begin="3" length="4">${run}</same>${end}`, /<same> does not belong here/],
  ['a run outside', `${header}${run}`, /line 2, column 5: <same> is not where/],
  ['a second document', `${start}${end}${start}${end}`, /line 5, column 1: .*only one root/],
  ['trailing garbage', `${start}${end}x`, /line 5, column 1: it ends in the middle/],
  ['a trailing tag', `${start}${end}<x>`, /line 5, column 1: .*only one root/],
  ['text between tags', `${start}${run}  words\n${run}${end}`, /line 4, column 3: "words" stands between/],
  ['a number as text', `${start}    7${run}${end}`, /line 3, column 5: "7" stands between/],
  ['an entity', `${start}&same;${end}`, /line 3, column 1: .*undefined entity/],
  ['an escaped tag', `${start}&lt;same begin="3" length="4"/>${end}`, /line 3, column 1: .*between the tags/],
  ['a document type', `<!DOCTYPE superblock SYSTEM "http://evil/">${start}${end}`, /line 1, column 1: .*document type/],
  [
    'an entity bomb',
    `<!DOCTYPE superblock [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n${start}&b;${end}`,
    /line 1, column 1: .*document type/
  ],
  ['a processing instruction', `${start}<?run me?>${end}`, /line 3, column 1: .*processing instruction/],
  ['a CDATA section', `${start}<![CDATA[ ]]>${end}`, /line 3, column 1: .*CDATA/],
  [
    'Latin-1',
    Buffer.from(`${start}    <same begin="3" length="4" é=""/>\n`, 'latin1'),
    /line 3, column 5: this is no UTF-8/
  ],
  ['a declared encoding', `<?xml version="1.0" encoding="ISO-8859-1"?>${start}${end}`, /encoding is ISO-8859-1/],
  ['UTF-16', Buffer.from(`\uFEFF${start}${end}`, 'utf16le'), /line 1, column 1: this is no UTF-8/],
  ['UTF-16 without a mark', Buffer.from(start, 'utf16le'), /line 1, column 1: .*(disallowed|text data)/],
  ['NUL bytes', `${start}${run}\0${end}`, /line 4, column 1: .*disallowed character/],
  ['a mark in the middle', `${start}\uFEFF${run}${end}`, /line 3, column 1: .*stands between/],
  ['an attribute twice', `${start}<same begin="3" begin="4" length="4"/>${end}`, /duplicate attribute/],
  ['an attribute without quotes', `${start}<same begin=3 length="4"/>${end}`, /unquoted/],
  ['tags crossed', `${start}<same></diff></same></superblock>`, /says of no blocks/],
  ['no end of the root', `${start}${run}  </diff>\n`, /line 5, column 1: it ends too early/],
  ['a torn tag', `${start}${run}    <same begin="9" len`, /line 4, column 5: it ends in the middle of this/],
  [
    'a torn comment',
    `${start}${run}<!-- <same begin="9" length="1"/>\n${end}`,
    /line 4, column 1: it ends in the middle/
  ],
  ['a tag without end', `${start}<same ${' '.repeat(20_000)}`, /line 3, column 1: this goes on for more than 16 KiB/],
  [
    'a comment without end',
    `${start}<!-- ${'> '.repeat(10_000)}`,
    /line 3, column 1: this goes on for more than 16 KiB/
  ],
  ['text without end', `${start}${'a'.repeat(20_000)}`, /line 3, column 1: this goes on for more than 16 KiB/],
  ['a deep tree', `${start}${'<same>'.repeat(1000)}`, /line 3, column 7: <same> does not belong here/]
]

for (const [what, text, expected] of hostile) {
  test(`refused: ${what}`, async (t) => {
    const error = await refusal(typeof text === 'string' ? bytesOf(text) : text)
    t.is(error.code, 'DM_XML_INVALID')
    t.regex(error.message, expected)
    t.true(error.message.startsWith(`doc.xml, line ${error.position.line}, column ${error.position.column}: `))
  })
}

const harmless: [what: string, text: string][] = [
  ['as printed', `${start}${run}${end}`],
  ['without the last newline', `${start}${run}${end}`.trimEnd()],
  ['all in one line', `${start}${run}${end}`.replaceAll('\n', '')],
  ['lines ending as on Windows', `${start}${run}${end}`.replaceAll('\n', '\r\n')],
  ['with a declaration', `<?xml version="1.0" encoding="utf-8"?>\n${start}${run}${end}`],
  ['with a byte order mark', `\uFEFF${start}${run}${end}`],
  ['with comments', `<!-- a -->${start}<!-- <same begin="1" length="1"/> -->${run}<!-- > -->${end}<!-- z -->\n`],
  ['with attributes nobody knows', `${start}<same new="a > b" begin="3" length="4" x:y="ü"/>${end}`],
  ['in single quotes, the other way round', `${start}<same length='4' begin='3' />${end}`],
  ['with character references', `${start}<same begin="&#51;" length="&#x34;"/>${end}`],
  ['with an end tag', `${start}<same begin="3" length="4"></same>${end}`],
  ['in a list of ranges', `${start}<same>\n<range begin="3" data_begin="7" length="4"/>\n</same>${end}`],
  ['in a list closed the plain way', `${start}<same><range begin="3" data_begin="7" length="4"/></same >${end}`],
  ['in a list opened the plain way', `${start}<same ><range begin="3" data_begin="7" length="4"/></same>${end}`],
  ['a list with a comment', `${start}<same><!-- x --><range begin="3" data_begin="7" length="4"/></same>${end}`],
  ['much white space', `${start}${' \n'.repeat(100_000)}${run}${' '.repeat(200_000)}${end}`]
]

for (const [what, text] of harmless) {
  test(`understood: ${what}`, async (t) => {
    for (const quick of [true, false]) {
      t.deepEqual((await readDelta(streamOf(bytesOf(text)), { quick })).runs, [['same', 3, 4]])
    }
  })
}

test('it does not matter where the chunks end', async (t) => {
  const bytes = bytesOf(`<!-- ü -->${start}${run}<!-- > ü -->    <different begin="7" length="2"/>\n${end}`)
  const whole = await readDelta(streamOf(bytes))
  for (let cut = 0; cut <= bytes.length; cut++) t.deepEqual(await readDelta(streamOf(bytes, [cut, cut])), whole)
  const each = Array.from({ length: bytes.length }, (_, i) => i)
  t.deepEqual(await readDelta(streamOf(bytes, each)), whole)
})

test('lines and columns count on across chunks and batches', async (t) => {
  const lines = Array.from({ length: 20_000 }, (_, i) => `    <same begin="${2 * i}" length="1"/>\n`)
  lines[12_345] = '    <same begin="0" length="1"/>\n'
  const bytes = bytesOf(start + lines.join('') + end)
  const error = await t.throwsAsync(readDelta(streamOf(bytes, [70_001, 70_002, 300_000])), { instanceOf: XmlInvalid })
  t.deepEqual(error.position, { line: 12_348, column: 5 })
  t.regex(error.message, /block 0 comes when block 24688 has been/)
})

/** Endless runs, counting the bytes that were asked for. */
function endless(counter: { bytes: number; closed: boolean }): ByteStream {
  async function* chunks() {
    try {
      yield bytesOf(start)
      for (let block = 0; ;) {
        let text = ''
        while (text.length < 65_536) text += `    <different begin="${(block += 2)}" length="1"/>\n`
        counter.bytes += text.length
        yield bytesOf(text)
      }
    } finally {
      counter.closed = true
    }
  }
  return chunks()
}

test('no more is read than is asked for, and whoever stops closes the stream', async (t) => {
  const counter = { bytes: 0, closed: false }
  const { batches } = await readDeltaXml(endless(counter))
  let runs = 0
  for await (const { count } of batches) {
    runs += count
    // A batch comes of what was read; nothing is read ahead.
    t.true(counter.bytes <= runs * 48 + 65_536 + 48)
    await new Promise(setImmediate)
    if (runs > 20_000) break
  }
  t.true(counter.bytes < 3_000_000)
  t.true(counter.closed)
})

test('one huge chunk is taken in small steps', async (t) => {
  const lines = Array.from({ length: 100_000 }, (_, i) => `<same begin="${2 * i}" length="1"/>`)
  const { batches } = await readDeltaXml(streamOf(bytesOf(start + lines.join('') + end)))
  let runs = 0
  for await (const { count, begins } of batches) {
    t.true(count <= 4096)
    t.is(begins[0], 2 * runs)
    runs += count
  }
  t.is(runs, 100_000)
})

test('what is read before the end is not the end', async (t) => {
  const lines = Array.from({ length: 10_000 }, (_, i) => `<same begin="${2 * i}" length="1"/>\n`)
  const { batches } = await readDeltaXml(streamOf(bytesOf(start + lines.join(''))))
  let runs = 0
  const read = async () => {
    for await (const { count } of batches) runs += count
  }
  await t.throwsAsync(read, { instanceOf: XmlInvalid, message: /line 10003, column 1: it ends too early/ })
  t.is(runs, 10_000)
})

test('what the stream throws comes through', async (t) => {
  async function* failing() {
    yield bytesOf(start)
    throw new Error('the disk is gone')
  }
  await t.throwsAsync(readDelta(failing()), { message: 'the disk is gone' })
})
