/**
 * thin_dump's XML: what each version prints, shared mappings, and dumps that lack something. (xml-fuzzing.test.ts has the rest.)
 */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { readDumpXml } from '../../../src/devicemapper/thin/dump-xml.ts'
import { XmlInvalid } from '../../../src/devicemapper/xml-stream.ts'
import { readDump, streamOf } from '../../support/read-xml.ts'
import { parseThinDump } from '../../support/thin-tools.ts'

const fixture = (name: string) => readFileSync(new URL(`../../fixtures/xml/${name}.xml`, import.meta.url))

test('0.9.0 and 1.1.0 say the same of a pool, though one shares mappings in its output and the other does not', async (t) => {
  const [old, recent] = [fixture('thin_dump-0.9.0'), fixture('thin_dump-1.1.0')]
  t.false(old.includes('<ref '))
  t.true(recent.includes('<ref '))
  const { devices, time, transactionId } = parseThinDump(old.toString())
  const expected = [...devices].map(([id, { mappings, transactionId, ...details }]) => ({
    id,
    ...details,
    transactionId: BigInt(transactionId),
    mappings: mappings.map(({ begin, dataBegin, length, time }) => [begin, dataBegin, length, time])
  }))
  const read = await readDump(streamOf(old))
  t.deepEqual(read.devices as unknown, expected)
  t.is(read.header.time, time)
  t.is(read.header.transactionId, BigInt(transactionId))
  const merging = await readDump(streamOf(recent))
  t.deepEqual(merging.devices.map(merged), read.devices.map(merged))
})

/** 1.x cuts runs where a list begins or ends. */
function merged({ mappings, ...rest }: { mappings: number[][] }) {
  const runs: number[][] = []
  for (const [begin, data, length, time] of mappings) {
    const last = runs.at(-1)
    if (last && last[0] + last[2] === begin && last[1] + last[2] === data && last[3] === time) last[2] += length
    else runs.push([begin, data, length, time])
  }
  return { ...rest, runs }
}

for (const version of ['0.9.0', '1.1.0']) {
  test(`a dump that ${version} made with --skip-mappings is refused: it would look like empty devices`, async (t) => {
    const error = await t.throwsAsync(readDump(streamOf(fixture(`thin_dump-${version}-skip-mappings`))), {
      instanceOf: XmlInvalid
    })
    t.regex(error.message, /line 3, column 3: device 0 is said to map [0-9]+ blocks, and 0 are there/)
    t.regex(error.remedy, /without --skip-mappings/)
  })
}

const pool = 'uuid="" time="1" transaction="2" version="2" data_block_size="128" nr_data_blocks="9"'
const around = (content: string) => Buffer.from(`<superblock ${pool}>\n${content}\n</superblock>\n`)
const device = (id: number, blocks: number, content: string) =>
  `<device dev_id="${id}" mapped_blocks="${blocks}" transaction="0" creation_time="0" snap_time="0">\n${content}\n</device>\n`
const single = (block: number) => `<single_mapping origin_block="${block}" data_block="${block + 5}" time="0"/>`

const wrong: [what: string, text: string, expected: RegExp][] = [
  ['a mapping cut out', device(1, 2, single(1)), /device 1 is said to map 2 blocks, and 1 are there/],
  ['a mapping too many', device(1, 1, single(1) + single(2)), /device 1 is said to map 1 blocks, and 2 are there/],
  [
    'overlapping',
    device(1, 3, '<range_mapping origin_begin="0" data_begin="0" length="2" time="0"/>' + single(1)),
    /block 1 comes when block 1 has been/
  ],
  ['out of order', device(1, 2, single(5) + single(4)), /block 4 comes when block 5 has been/],
  [
    'devices out of order',
    device(2, 1, single(1)) + device(1, 1, single(1)),
    /line 5, column 1: device 1 comes after device 2/
  ],
  ['a device twice', device(2, 1, single(1)) + device(2, 1, single(1)), /device 2 comes after device 2/],
  [
    'an empty mapping',
    device(1, 0, '<range_mapping origin_begin="0" data_begin="0" length="0" time="0"/>'),
    /holds no block/
  ],
  [
    'blocks beyond 2^40',
    device(1, 2, '<range_mapping origin_begin="1099511627775" data_begin="0" length="2" time="0"/>'),
    /beyond 2\^40/
  ],
  [
    'data beyond 2^40',
    device(1, 2, '<range_mapping origin_begin="0" data_begin="1099511627775" length="2" time="0"/>'),
    /data blocks .* beyond 2\^40/
  ],
  [
    'time beyond 24 bits',
    device(1, 1, '<single_mapping origin_block="0" data_block="0" time="16777216"/>'),
    /time 16777216/
  ],
  ['an unknown list', device(1, 1, '<ref name="7"/>'), /"7" is not defined/],
  [
    'a list used before it is there',
    device(1, 1, '<ref name="7"/>') + `<def name="7">${single(1)}</def>`,
    /"7" is not defined/
  ],
  [
    'a list twice',
    `<def name="7">${single(1)}</def>\n<def name="7">${single(2)}</def>`,
    /line 3, column 1: "7" is defined a second/
  ],
  [
    'a list used twice',
    `<def name="7">${single(1)}</def>${device(1, 2, '<ref name="7"/><ref name="7"/>')}`,
    /block 1 comes when block 1 has been/
  ],
  [
    'a list in a list',
    `<def name="7">${single(1)}</def><def name="8"><ref name="7"/></def>`,
    /<ref> belongs into a device only/
  ],
  ['an unknown element', device(1, 1, '<mapping/>'), /<mapping> does not belong here/],
  ['a mapping of no device', single(1), /<single_mapping> is not where thin_dump writes it/],
  ['a device in a device', device(1, 0, device(2, 0, '')), /<device> does not belong here/],
  ['a device id beyond 24 bits', device(2 ** 24, 0, ''), /dev_id of <device> is "16777216"/],
  ['thin_delta', '<diff left="1" right="2"></diff>', /line 2, column 1: this is what thin_delta prints/],
  ['era_dump', '<writeset era="1" nr_bits="3">', /this is what era_dump prints/]
]

for (const [what, text, expected] of wrong) {
  test(`refused: ${what}`, async (t) => {
    for (const quick of [true, false]) {
      const error = await t.throwsAsync(readDump(streamOf(around(text)), { quick }), { instanceOf: XmlInvalid })
      t.regex(error.message, expected)
    }
  })
}

test('a pool without devices, and a device without mappings', async (t) => {
  t.deepEqual((await readDump(streamOf(around('')))).devices, [])
  const { devices } = await readDump(streamOf(around(device(1, 0, '') + device(3, 1, single(8)))))
  t.deepEqual(
    devices.map(({ id, mappings }) => [id, mappings]),
    [
      [1, []],
      [3, [[8, 13, 1, 0]]]
    ]
  )
})

test('a long list stands for itself in any number of devices, a batch at a time', async (t) => {
  const mappings = Array.from({ length: 20_000 }, (_, i) => single(2 * i)).join('\n')
  const devices = Array.from({ length: 30 }, (_, id) => device(id, 20_001, '<ref name="7"/>' + single(50_000)))
  const { batches } = await readDumpXml(streamOf(around(`<def name="7">${mappings}</def>${devices.join('')}`)))
  let runs = 0
  let ended = 0
  for await (const { count, begins, dataBegins, device, last } of batches) {
    t.true(count <= 4096)
    const place = runs % 20_001
    if (count > 0)
      t.deepEqual([begins[0], dataBegins[0]], place === 20_000 ? [50_000, 50_005] : [2 * place, 2 * place + 5])
    runs += count
    t.is(device.id, ended)
    if (last) t.is(runs, ++ended * 20_001)
  }
  t.is(ended, 30)
})

test('what is shared takes no more memory than it may', async (t) => {
  const list = (name: number, length: number) =>
    `<def name="${name}">${Array.from({ length }, (_, i) => single(2 * i)).join('')}</def>`
  const refused = { instanceOf: XmlInvalid, message: /the mappings that devices share take more than/ }
  // Few long lists, and many short ones.
  const long = around([1, 2, 3].map((name) => list(name, 20_000)).join(''))
  const short = around(Array.from({ length: 5000 }, (_, name) => list(name, 1)).join(''))
  for (const bytes of [long, short]) {
    await t.notThrowsAsync(readDump(streamOf(bytes)))
    const error = await t.throwsAsync(readDump(streamOf(bytes), { sharedBytes: 2 ** 17 }), refused)
    t.regex(error.remedy, /thin_dump --dev-id/)
  }
})

test('of devices that nobody asked about, what they share is counted and not expanded', async (t) => {
  const [runs, devices] = [20_000, 20_000]
  const list = Array.from({ length: runs }, (_, i) => single(2 * i)).join('\n')
  const all = Array.from({ length: devices }, (_, id) => device(id, runs + 1, '<ref name="7"/>' + single(50_000)))
  const { batches } = await readDumpXml(streamOf(around(`<def name="7">${list}</def>${all.join('')}`)), {
    isWanted: (id) => id === 12_345
  })
  const seen = { batches: 0, devices: 0, runs: 0 }
  for await (const { count, device, last } of batches) {
    seen.batches++
    seen.runs += count
    if (count > 0) t.is(device.id, 12_345)
    if (last) seen.devices++
  }
  t.deepEqual({ ...seen, batches: seen.batches < devices + 10 }, { batches: true, devices, runs: runs + 1 })
})

test('what is wrong with a device that nobody asked about is found all the same', async (t) => {
  const list = `<def name="7">${single(3)}${single(9)}</def><def name="8"></def>`
  for (const [text, says] of [
    [device(1, 3, '<ref name="7"/>'), /said to map 3 blocks, and 2 are there/],
    [device(1, 3, single(5) + '<ref name="7"/>'), /runs have to ascend/],
    [device(1, 3, '<ref name="7"/>' + single(9)), /runs have to ascend/],
    [device(1, 4, '<ref name="7"/><ref name="7"/>'), /runs have to ascend/],
    [device(1, 0, '<ref name="9"/>'), /"9" is not defined/]
  ] as const) {
    const bytes = streamOf(around(list + text))
    await t.throwsAsync(
      async () => {
        const { batches } = await readDumpXml(bytes, { isWanted: () => false })
        for await (const { count } of batches) t.is(count, 0)
      },
      { instanceOf: XmlInvalid, message: says }
    )
  }
  const fine = around(list + device(1, 3, '<ref name="8"/>' + single(1) + '<ref name="7"/><ref name="8"/>'))
  const { batches } = await readDumpXml(streamOf(fine), { isWanted: () => false })
  t.deepEqual(await Array.fromAsync(batches, ({ device, last }) => [device.id, last]), [[1, true]])
})
