/**
 * From era_invalidate's and era_dump's XML to extents: held against what was really written to, and, in XML that the tools themselves have
 * printed of random devices, against our own reading of the same metadata. Where a tool is known to be wrong, it is told in what.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import fc from 'fast-check'
import { readEraDumpXml } from '../../../src/devicemapper/era/dump-xml.ts'
import { openEraMetadata } from '../../../src/devicemapper/era/era-metadata.ts'
import { readInvalidateXml } from '../../../src/devicemapper/era/invalidate-xml.ts'
import { writtenExtentsOf, writtenSince } from '../../../src/devicemapper/era/xml-extents.ts'
import type { XmlSizes } from '../../../src/devicemapper/xml-extents.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { eraHistory } from '../../support/era-history.ts'
import { type EraView, writeEraImage } from '../../support/era-image.ts'
import { EraModel, extentsOfBlocks } from '../../support/era-model.ts'
import { availableEraTools, printedBy } from '../../support/era-tools.ts'
import type { Extent } from '../../support/expected.ts'
import { streamOf } from '../../support/read-xml.ts'
import { testFolder } from '../../support/test-folder.ts'

const BLOCK = 65536
const { versions, unavailable } = await availableEraTools()
const folder = testFolder(test)

/** A dump of a view: with the current writeset, as 1.x has it, or without, as 0.9.0; bit by bit, or by runs. */
function dumpXml(view: EraView, { withCurrent = true, runs = false } = {}): string {
  const { blocks, currentEra, current, writesets, eras } = view
  const lines = [`<superblock uuid="" block_size="128" nr_blocks="${blocks}" current_era="${currentEra}">`]
  for (const { era, bits, marked } of [...writesets, ...(current && withCurrent ? [current] : [])]) {
    if (marked instanceof Uint8Array) throw new Error('a bitmap is not for here')
    lines.push(`<writeset era="${era}" nr_bits="${bits}">`)
    if (runs && marked.size > 0) {
      for (const block of [...marked].sort((a, b) => a - b)) lines.push(`<marked block_begin="${block}" len="1"/>`)
    } else {
      for (let block = 0; block < bits; block++) lines.push(`<bit block="${block}" value="${marked.has(block)}"/>`)
    }
    lines.push('</writeset>')
  }
  lines.push('<era_array>')
  for (let block = 0; block < blocks; block++) {
    lines.push(`<era block="${block}" era="${(eras instanceof Uint8Array ? eras[block] : eras.get(block)) ?? 0}"/>`)
  }
  return [...lines, '</era_array>', '</superblock>', ''].join('\n')
}

async function ofDump(xml: string, sinceEra: number, sizes: Partial<XmlSizes> = {}): Promise<Extent[]> {
  const dump = await readEraDumpXml(streamOf(Buffer.from(xml)))
  const { batches } = await writtenSince(dump, sinceEra, 'the dump')
  const { blocks, blockBytes } = dump.header
  return collectExtents(writtenExtentsOf(batches, blockBytes, { sizeBytes: blocks * blockBytes, ...sizes }))
}

async function ofInvalidate(xml: string, sizes: XmlSizes): Promise<Extent[]> {
  const { batches } = await readInvalidateXml(streamOf(Buffer.from(xml)))
  return collectExtents(writtenExtentsOf(batches, BLOCK, sizes))
}

const refusal = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'it was answered',
    (error: unknown) => (error instanceof DeltamapperError ? `${error.code}: ${error.message}` : String(error))
  )

test('a dump has what was written to since each era: united from writesets and array, cut to size', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      eraHistory,
      fc.boolean(),
      fc.nat({ max: 40 * BLOCK }),
      fc.option(fc.nat({ max: 3000 }), { nil: undefined }),
      async ({ model }, runs, cut, base) => {
        const view = model.view()
        const xml = dumpXml(view, { runs })
        const sizeBytes = Math.max(0, view.blocks * BLOCK - cut)
        const sizes = {
          sizeBytes,
          baseSizeBytes: base && base * BLOCK + 512,
          startingOffset: Math.floor(sizeBytes / 3)
        }
        for (let era = 0; era <= model.era; era++) {
          const written = model.writtenSince(era, 'live')
          t.deepEqual(
            await ofDump(xml, era),
            extentsOfBlocks(written, { blockBytes: BLOCK, sizeBytes: view.blocks * BLOCK })
          )
          t.deepEqual(await ofDump(xml, era, sizes), extentsOfBlocks(written, { blockBytes: BLOCK, ...sizes }))
        }
      }
    ),
    { numRuns: 15 }
  )
})

/** Eras 1 to 4 on a device that grew to 100 blocks in era 3; era 1 is digested, era 2 halfway. */
function grown(): EraModel {
  const model = new EraModel(70)
  for (const block of [0, 31, 32, 63, 64]) model.write(block)
  model.checkpoint()
  for (const block of [1, 32, 69]) model.write(block)
  model.suspend()
  model.resume(100)
  for (const block of [2, 32, 95, 99]) model.write(block)
  model.checkpoint()
  for (const block of [3, 98]) model.write(block)
  model.digest()
  model.digest(32)
  return model
}

test('without the writeset of the current era, only eras before it can be asked for', async (t) => {
  const model = grown()
  const xml = dumpXml(model.view(), { withCurrent: false })
  const sizeBytes = 100 * BLOCK
  for (let era = 0; era <= 3; era++) {
    const { lastEra, writesets } = await writtenSince(await readEraDumpXml(streamOf(Buffer.from(xml))), era, 'the dump')
    t.deepEqual({ lastEra, writesets }, { lastEra: 3, writesets: 2 })
    t.deepEqual(
      await ofDump(xml, era),
      extentsOfBlocks(model.writtenSince(era, 'live', 3), { blockBytes: BLOCK, sizeBytes })
    )
  }
  t.regex(await refusal(ofDump(xml, 4)), /^DM_ERA_NOT_REACHED: the dump has no writeset of era 4, the current one/)
  t.regex(await refusal(ofDump(xml, 5)), /^DM_ERA_NOT_REACHED: era 5 has not begun in the dump, where era 4/)
  t.regex(await refusal(ofDump(dumpXml(model.view()), 5)), /^DM_ERA_NOT_REACHED: era 5 has not begun/)
  // Whatever was written to is not known either, where nothing but the current era has been.
  const young = dumpXml(new EraModel(9).view(), { withCurrent: false })
  t.regex(await refusal(ofDump(young, 0)), /^DM_ERA_NOT_REACHED: the dump has no writeset of era 1/)
})

test('a writeset that is missing, and an era that cannot be, are refused as in the metadata itself', async (t) => {
  const xml = dumpXml(grown().view())
  const without = (era: number) => xml.replace(new RegExp(`<writeset era="${era}".*?</writeset>\n`, 's'), '')
  t.regex(await refusal(ofDump(without(3), 1)), /^DM_METADATA_DAMAGED: the dump lacks the writeset of era 3, so/)
  const last = without(4).replace('current_era="4"', 'current_era="5"')
  t.regex(await refusal(ofDump(last, 1)), /^DM_METADATA_DAMAGED: the dump lacks the writeset of era 4, so/)
  const impossible = xml.replace('<era block="50" era="0"/>', '<era block="50" era="3"/>')
  t.not(impossible, xml)
  t.regex(
    await refusal(ofDump(impossible, 4)),
    /^DM_METADATA_DAMAGED: the dump has block 50 in era 3, and 2 is the newest that its array can have/
  )
})

test('what is marked beyond the end of a device that has shrunk is left out', async (t) => {
  const xml = dumpXml(grown().view(), { runs: true })
    .replace('nr_blocks="100"', 'nr_blocks="97"')
    .replace(/<era block="9[789]".*\n/g, '')
  t.deepEqual(await ofDump(xml, 3), [
    [2 * BLOCK, 2 * BLOCK],
    [32 * BLOCK, BLOCK],
    [95 * BLOCK, BLOCK]
  ])
})

test('torn anywhere, a dump or list ends with an error', async (t) => {
  const model = new EraModel(12)
  model.write(3)
  model.checkpoint()
  model.write(4)
  const dump = dumpXml(model.view()).trimEnd()
  const list = '<blocks>\n  <block block="5"/>\n  <range begin="64" end = "70"/>\n</blocks>'
  for (let length = 0; length < dump.length; length++) {
    t.regex(await refusal(ofDump(dump.slice(0, length), 1)), /^DM_XML_INVALID/, dump.slice(0, length))
  }
  for (let length = 0; length < list.length; length++) {
    const torn = ofInvalidate(list.slice(0, length), { sizeBytes: 2 ** 30 })
    t.regex(await refusal(torn), /^DM_XML_INVALID/, list.slice(0, length))
  }
})

test('a list is what it says, and all that lies beyond a smaller base', async (t) => {
  const list = '<blocks>\n  <block block="5"/>\n  <range begin="64" end = "70"/>\n</blocks>'
  const five: Extent = [5 * BLOCK, BLOCK]
  t.deepEqual(await ofInvalidate(list, { sizeBytes: 2 ** 30 }), [five, [64 * BLOCK, 6 * BLOCK]])
  t.deepEqual(await ofInvalidate(list, { sizeBytes: 65 * BLOCK - 512 }), [five, [64 * BLOCK, BLOCK - 512]])
  t.deepEqual(await ofInvalidate(list, { sizeBytes: 80 * BLOCK, baseSizeBytes: 66 * BLOCK + 1 }), [
    five,
    [64 * BLOCK, 16 * BLOCK]
  ])
  t.deepEqual(await ofInvalidate(list, { sizeBytes: 80 * BLOCK, startingOffset: 66 * BLOCK + 1 }), [
    [66 * BLOCK, 4 * BLOCK]
  ])
})

test('many runs, in more than one batch', async (t) => {
  const model = new EraModel(30_000)
  for (let block = 0; block < 30_000; block += 2) model.write(block)
  const expected = Array.from({ length: 15_000 }, (_, i): Extent => [2 * i * BLOCK, BLOCK])
  t.deepEqual(await ofDump(dumpXml(model.view()), 1), expected)
  model.suspend()
  model.digest()
  t.deepEqual(await ofDump(dumpXml({ ...model.view(), currentEra: 2 }), 1), expected)
})

/** Blocks that are in several writesets: 0.9.0 --logical gives them the oldest of these eras. */
function inSeveral({ writesets }: EraView): Set<number> {
  const once = new Set<number>()
  const more = new Set<number>()
  for (const { marked } of writesets) {
    if (marked instanceof Uint8Array) throw new Error('a bitmap is not for here')
    for (const block of marked) (once.has(block) ? more : once).add(block)
  }
  return more
}

interface Answers {
  right: number
  /** Of these versions and questions it is known. */
  wrong: Record<'0.9.0 --logical' | '1.1.0 without writesets', number>
}

/** Asks for every era what both tools print of an image, and our own reading of it. */
async function compare(t: ExecutionContext, path: string, model: EraModel, answers: Answers): Promise<void> {
  const view = model.view()
  const sizeBytes = view.blocks * BLOCK
  const metadata = await openEraMetadata(path, { liveRoot: true })
  const own = async (sinceEra: number, untilEra?: number) =>
    collectExtents(await metadata.written({ sinceEra, untilEra }))
  const check = (actual: Extent[], expected: Extent[], what: string) => {
    t.deepEqual(actual, expected, what)
    answers.right++
  }
  try {
    // What the tools leave out is what was written to in the current era only.
    const over = view.current ? view.currentEra - 1 : undefined
    for (const tools of versions) {
      const old = tools.version === '0.9.0'
      const plain = await printedBy(tools, 'era_dump', [path])
      const logical = await printedBy(tools, 'era_dump', ['--logical', path])
      for (let era = 1; era <= view.currentEra; era++) {
        const what = `${tools.version}, since era ${era}`
        const isCurrent = era === view.currentEra
        if (old && isCurrent && view.current) t.regex(await refusal(ofDump(plain, era)), /^DM_ERA_NOT_REACHED/, what)
        else check(await ofDump(plain, era), await own(era, old ? over : undefined), what)

        if (isCurrent) t.regex(await refusal(ofDump(logical, era)), /^DM_ERA_NOT_REACHED/, what)
        else if (!old) check(await ofDump(logical, era), await own(era), `${what}, --logical`)
        else {
          const [found, expected] = [blocksOf(await ofDump(logical, era)), blocksOf(await own(era, over))]
          const missing = expected.difference(found)
          t.true(found.isSubsetOf(expected) && missing.isSubsetOf(inSeveral(view)), `${what}, --logical`)
          if (missing.size > 0) answers.wrong['0.9.0 --logical']++
          else answers.right++
        }

        const xml = await printedBy(tools, 'era_invalidate', ['--written-since', String(era), path])
        const listed = await ofInvalidate(xml, { sizeBytes })
        const expected = isCurrent && view.current ? [] : await own(era, over)
        if (!old && view.writesets.length === 0 && expected.length > 0) {
          t.deepEqual(listed, [], `${what}: nothing, where all is digested`)
          answers.wrong['1.1.0 without writesets']++
        } else check(listed, expected, what)
      }
    }
  } finally {
    await metadata.close()
  }
}

function blocksOf(extents: readonly Extent[]): Set<number> {
  return new Set(
    extents.flatMap(([offset, size]) => Array.from({ length: size / BLOCK }, (_, i) => offset / BLOCK + i))
  )
}

test('what the tools print of random devices is what our own reading of these says', async (t) => {
  const path = join(folder, 'random.img')
  const answers: Answers = { right: 0, wrong: { '0.9.0 --logical': 0, '1.1.0 without writesets': 0 } }
  await fc.assert(
    fc.asyncProperty(eraHistory, async ({ model }) => {
      await writeFile(path, writeEraImage(model.view()).bytes)
      await compare(t, path, model, answers)
    }),
    { numRuns: 10 }
  )
  t.log(`${answers.right} right, wrong as expected: ${JSON.stringify(answers.wrong)}`, ...unavailable)
  t.pass()
})

test('what the tools are known to answer wrongly', async (t) => {
  const answers: Answers = { right: 0, wrong: { '0.9.0 --logical': 0, '1.1.0 without writesets': 0 } }
  const path = join(folder, 'wrong.img')
  const model = grown()
  await writeFile(path, writeEraImage(model.view()).bytes)
  await compare(t, path, model, answers)
  const digested = new EraModel(50)
  digested.write(7)
  digested.checkpoint()
  digested.digest()
  await writeFile(path, writeEraImage(digested.view()).bytes)
  await compare(t, path, digested, answers)
  if (versions.length < 2) t.log(...unavailable)
  else t.deepEqual(answers.wrong, { '0.9.0 --logical': 1, '1.1.0 without writesets': 1 })
})
