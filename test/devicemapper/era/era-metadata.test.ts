import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { type EraMetadata, openEraMetadata } from '../../../src/devicemapper/era/era-metadata.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { eraHistory } from '../../support/era-history.ts'
import {
  type EraImage,
  type EraImageOptions,
  type EraView,
  sealEraBlock,
  writeEraImage
} from '../../support/era-image.ts'
import { EraModel, extentsOfBlocks } from '../../support/era-model.ts'
import { blockOf, NodeFields } from '../../support/metadata-damage.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const KIB_64 = 65536
let images = 0

async function write(view: EraView, options: EraImageOptions = {}): Promise<string> {
  const path = join(folder, `${images++}.img`)
  await writeFile(path, writeEraImage(view, options).bytes)
  return path
}

async function open(t: ExecutionContext, model: EraModel, liveRoot = false): Promise<EraMetadata> {
  const path = await write(model.view(), model.held ? { held: model.held } : {})
  const metadata = await openEraMetadata(path, { liveRoot })
  t.teardown(() => metadata.close())
  return metadata
}

async function blocksSince(metadata: EraMetadata, sinceEra: number): Promise<number[]> {
  const blocks: number[] = []
  for (const [offset, size] of await collectExtents(await metadata.written({ sinceEra }))) {
    for (let at = offset; at < offset + size; at += metadata.superblock.blockBytes) {
      blocks.push(at / metadata.superblock.blockBytes)
    }
  }
  return blocks
}

test('up to an era: nothing less, and nothing more where it says so; what was not digested yet can always be told apart', async (t) => {
  const path = join(folder, 'until.img')
  const verdicts = { exact: 0, superset: 0 }
  await fc.assert(
    fc.asyncProperty(
      eraHistory,
      fc.nat({ max: 1000 }),
      fc.nat({ max: 1000 }),
      fc.nat({ max: 12 }),
      async ({ model }, since, until, digests) => {
        for (let i = 0; i < digests; i++) model.digest()
        await writeFile(path, writeEraImage(model.view()).bytes)
        const metadata = await openEraMetadata(path)
        try {
          const sinceEra = 1 + (since % model.era)
          const untilEra = sinceEra + (until % (model.era - sinceEra + 1))
          const written = await metadata.written({ sinceEra, untilEra })
          const shape = { blockBytes: KIB_64, sizeBytes: model.blocks * KIB_64 }
          const answer = await collectExtents(written)
          const [least, most] = [model.writtenSince(sinceEra, 'live', untilEra), model.writtenSince(sinceEra, 'live')]
          const isExact = written.isExact()
          verdicts[isExact ? 'exact' : 'superset']++
          if (isExact) t.deepEqual(answer, extentsOfBlocks(least, shape))
          else {
            const found = answer.flatMap(([offset, size]) =>
              Array.from({ length: size / KIB_64 }, (_, i) => offset / KIB_64 + i)
            )
            t.true(least.isSubsetOf(new Set(found)))
            t.true(new Set(found).isSubsetOf(most))
          }
          const oldest = (await metadata.writesets()).at(0)?.era
          if (oldest !== undefined && oldest <= untilEra) t.true(isExact)
        } finally {
          await metadata.close()
        }
      }
    ),
    { numRuns: 150 }
  )
  t.log(verdicts)
  t.true(verdicts.exact > 0 && verdicts.superset > 0)
})

test('any history, any view, any era: exactly what was written to', async (t) => {
  const path = join(folder, 'history.img')
  let answers = 0
  const shape = fc.record({
    nodeEntries: fc.constantFrom(3, 7, 252),
    placement: fc.constantFrom('sequential' as const, 'scattered' as const),
    blockSectors: fc.constantFrom(8, 128, 1000),
    seed: fc.nat(),
    direct: fc.boolean()
  })
  const question = fc.record({
    size: fc.nat({ max: 1000 }),
    base: fc.nat({ max: 2000 }),
    offset: fc.nat({ max: 1000 })
  })
  await fc.assert(
    fc.asyncProperty(eraHistory, shape, question, async ({ model }, { seed, direct, ...options }, parts) => {
      const random = new Random(seed)
      await writeFile(
        path,
        writeEraImage(model.view(), { ...options, random, ...(model.held ? { held: model.held } : {}) }).bytes
      )
      for (const view of model.held ? (['live', 'metadata-snapshot'] as const) : (['live'] as const)) {
        const metadata = await openEraMetadata(path, { liveRoot: view === 'live', direct })
        try {
          t.is(metadata.view, view)
          t.is(metadata.lastEra, model.lastEra(view))
          const { blockBytes } = metadata.superblock
          for (let era = 0; era <= metadata.lastEra; era++) {
            // Some part of a thousand, and mostly not at a border.
            const sizeBytes = Math.ceil((metadata.sizeBytes * (1000 - parts.size)) / 1000 / 512) * 512
            const baseSizeBytes = Math.floor((metadata.sizeBytes * parts.base) / 1000)
            const startingOffset = Math.floor((sizeBytes * parts.offset) / 1000)
            const written = model.writtenSince(era, view)
            for (const ask of [{}, { sizeBytes, startingOffset }, { sizeBytes, baseSizeBytes }]) {
              const answer = await metadata.written({ sinceEra: era, ...ask })
              const sizing = { blockBytes, sizeBytes: metadata.sizeBytes, ...ask }
              t.is(answer.capacityBytes, sizing.sizeBytes)
              t.deepEqual(await collectExtents(answer), extentsOfBlocks(written, sizing))
              answers++
            }
          }
        } finally {
          await metadata.close()
        }
      }
    }),
    { numRuns: 60 }
  )
  t.log(`${answers} answers`)
})

test('era 0 is never: what was not written to is in no answer, not even for era 0', async (t) => {
  const model = new EraModel(100)
  model.write(5)
  model.checkpoint()
  model.digest()
  t.deepEqual(await blocksSince(await open(t, model), 0), [5])
  t.deepEqual(await blocksSince(await open(t, model), 1), [5])
  t.deepEqual(await blocksSince(await open(t, model), 2), [])
})

test('metadata that was formatted and never resumed has no blocks', async (t) => {
  const path = await write({ blocks: 0, currentEra: 0, current: undefined, writesets: [], eras: new Map() })
  const metadata = await openEraMetadata(path)
  t.teardown(() => metadata.close())
  t.is(metadata.sizeBytes, 0)
  t.deepEqual(await blocksSince(metadata, 0), [])
  await t.throwsAsync(metadata.written({ sinceEra: 1 }), { message: /era 1 has not begun/ })
})

test('a metadata snapshot does not know the era that began when it was taken', async (t) => {
  const model = new EraModel(1000)
  model.write(1)
  model.takeSnapshot()
  model.write(2)
  model.checkpoint()
  model.write(3)
  const held = await open(t, model)
  t.is(held.view, 'metadata-snapshot')
  t.is(held.lastEra, 1)
  t.deepEqual(await blocksSince(held, 1), [1])
  for (const era of [2, 3]) {
    const error = await t.throwsAsync(held.written({ sinceEra: era }), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_ERA_NOT_REACHED')
    t.regex(error?.message ?? '', /knows the writes up to era 1 only/)
    t.regex(error?.remedy ?? '', /take a new one/)
  }
  const error = await t.throwsAsync(held.written({ sinceEra: 4 }), { instanceOf: DeltamapperError })
  t.regex(error?.message ?? '', /era 4 has not begun .* where era 3 is the current one/)

  const live = await open(t, model, true)
  t.deepEqual(await blocksSince(live, 2), [2, 3])
  t.deepEqual(await blocksSince(live, 3), [3])
  t.is((await t.throwsAsync<DeltamapperError>(live.written({ sinceEra: 4 })))?.code, 'DM_ERA_NOT_REACHED')
})

test('what the writesets have, the era array is not read for', async (t) => {
  const model = new EraModel(2_000_000)
  for (let era = 1; era <= 4; era++) {
    model.write(era * 400_000)
    model.checkpoint()
    if (era === 2) model.digest()
  }
  // Era 1 is digested, 2 to 4 are writesets, 5 is the current one.
  const blocks = async (since: number) => {
    const metadata = await open(t, model)
    const before = metadata.statistics.nodesRead
    t.deepEqual(
      await blocksSince(metadata, since),
      [1, 2, 3, 4].slice(Math.max(since - 1, 0)).map((each) => each * 400_000)
    )
    return metadata.statistics.nodesRead - before
  }
  const bitset = Math.ceil(2_000_000 / 32576)
  const array = Math.ceil(2_000_000 / 1018)
  t.true((await blocks(1)) > array + 4 * bitset)
  t.true((await blocks(2)) < 4 * (bitset + 20))
  t.true((await blocks(5)) < bitset + 20)
})

test('a missing writeset is a gap in what is known, and no smaller answer', async (t) => {
  const marked = new Set([7])
  const view = (eras: number[], current: number | undefined, currentEra = 6): EraView => ({
    blocks: 100,
    currentEra,
    current: current === undefined ? undefined : { era: current, bits: 100, marked },
    writesets: eras.map((era) => ({ era, bits: 100, marked })),
    eras: new Map()
  })
  const wrong: [EraView, RegExp][] = [
    [view([3, 5], 6), /lacks the writeset of era 4,/],
    [view([2, 5], 6), /lacks the writeset of eras 3 to 4,/],
    [view([3, 4], 6), /lacks the writeset of era 5,/],
    [view([3, 4, 5], undefined), /lacks the writeset of era 6,/],
    [view([5, 6], 6), /a writeset of era 6, and 5 is the last that is over/],
    [view([5, 6, 7], undefined), /a writeset of era 7, and 6 is the last/]
  ]
  for (const [each, says] of wrong) {
    const metadata = await openEraMetadata(await write(each))
    t.teardown(() => metadata.close())
    for (const read of [
      () => metadata.writesets(),
      async () => collectExtents(await metadata.written({ sinceEra: 6 }))
    ]) {
      const error = await t.throwsAsync<DeltamapperError>(read())
      t.is(error?.code, 'DM_METADATA_DAMAGED')
      t.regex(error?.message ?? '', says)
    }
  }
  for (const right of [view([3, 4, 5], 6), view([4, 5, 6], undefined), view([], 6), view([], undefined)]) {
    const metadata = await openEraMetadata(await write(right))
    t.teardown(() => metadata.close())
    t.true((await metadata.writesets()).every(({ era, bits }) => era >= 3 && bits === 100))
  }
})

test('an era in the array that cannot be there yet is damage', async (t) => {
  const eras = new Map([[50, 4]])
  const marked = new Set<number>()
  const writesets = [3, 4].map((era) => ({ era, bits: 100, marked }))
  const view = { blocks: 100, currentEra: 5, current: { era: 5, bits: 100, marked }, writesets, eras }
  const metadata = await openEraMetadata(await write(view))
  t.teardown(() => metadata.close())
  const error = await t.throwsAsync<DeltamapperError>(
    async () => collectExtents(await metadata.written({ sinceEra: 1 })),
    { message: /an entry of era 4, and 3 is the newest/ }
  )
  t.is(error?.code, 'DM_METADATA_DAMAGED')
  const digested = await openEraMetadata(await write({ ...view, writesets: [] }))
  t.teardown(() => digested.close())
  t.deepEqual(await blocksSince(digested, 1), [50])
})

test('questions that cannot be answered', async (t) => {
  const model = new EraModel(100)
  model.write(99)
  const metadata = await open(t, model)
  const wrong: [Parameters<EraMetadata['written']>[0], ErrorCode][] = [
    [{ sinceEra: -1 }, 'DM_ARGUMENT_INVALID'],
    [{ sinceEra: 0.5 }, 'DM_ARGUMENT_INVALID'],
    [{ sinceEra: NaN }, 'DM_ARGUMENT_INVALID'],
    [{ sinceEra: 2 }, 'DM_ERA_NOT_REACHED'],
    [{ sinceEra: 1, sizeBytes: 100 * KIB_64 + 1 }, 'DM_ARGUMENT_INVALID'],
    [{ sinceEra: 1, sizeBytes: -1 }, 'DM_ARGUMENT_INVALID'],
    [{ sinceEra: 1, baseSizeBytes: 0.5 }, 'DM_ARGUMENT_INVALID'],
    [{ sinceEra: 1, startingOffset: 100 * KIB_64 + 1 }, 'DM_OFFSET_OUT_OF_RANGE'],
    [{ sinceEra: 1, startingOffset: -1 }, 'DM_OFFSET_OUT_OF_RANGE']
  ]
  for (const [question, code] of wrong) {
    t.is((await t.throwsAsync<DeltamapperError>(metadata.written(question)))?.code, code, JSON.stringify(question))
  }
  const sizeBytes = 99 * KIB_64 + 512
  t.deepEqual(await collectExtents(await metadata.written({ sinceEra: 1, sizeBytes })), [[99 * KIB_64, 512]])
  t.deepEqual(await collectExtents(await metadata.written({ sinceEra: 1, sizeBytes, startingOffset: sizeBytes })), [])
})

test('a walk ends when it is told to, and closes what it opened', async (t) => {
  const model = new EraModel(1_000_000)
  for (let block = 0; block < 1_000_000; block += 2) model.write(block)
  const metadata = await open(t, model)
  const controller = new AbortController()
  const { batches } = await metadata.written({ sinceEra: 1, signal: controller.signal })
  let seen = 0
  await t.throwsAsync(
    async () => {
      for await (const { count } of batches) {
        seen += count
        controller.abort(new Error('enough'))
      }
    },
    { message: 'enough' }
  )
  t.true(seen > 0 && seen < 500_000)
})

/** An image of which `change` rewrites a block: given the image's bytes and block numbers by kind. */
async function changed(t: ExecutionContext, model: EraModel, change: (image: EraImage) => void): Promise<EraMetadata> {
  const image = writeEraImage(model.view())
  change(image)
  const path = join(folder, `${images++}.img`)
  await writeFile(path, image.bytes)
  const metadata = await openEraMetadata(path)
  t.teardown(() => metadata.close())
  return metadata
}

/** Three writesets of three bitset blocks each. */
function threeErasOf(blocks: number): EraModel {
  const model = new EraModel(blocks)
  for (let era = 1; era < 4; era++) {
    for (let block = era; block < blocks; block += 30_000) model.write(block)
    model.checkpoint()
  }
  return model
}

const nodesOf = ({ bytes, kinds }: EraImage, valueSize: number) =>
  [...kinds].flatMap(([block, kind]) => {
    const fields = new NodeFields(blockOf(bytes, block))
    return kind === 'node' && fields.valueSize === valueSize && fields.entries > 0 ? [{ block, fields }] : []
  })

function reseal({ bytes }: EraImage, block: number, change: (content: Buffer) => void): void {
  const content = blockOf(bytes, block)
  change(content)
  sealEraBlock(content, 'node')
}

test('two eras with one bitset are damage, found before it is read', async (t) => {
  const metadata = await changed(t, threeErasOf(90_000), (image) => {
    const [{ block }] = nodesOf(image, 12)
    const record = (i: number) => 32 + 8 * 201 + 12 * i + 4
    reseal(image, block, (content) => content.copy(content, record(2), record(1), record(1) + 8))
  })
  const error = await t.throwsAsync(async () => collectExtents(await metadata.written({ sinceEra: 1 })), {
    instanceOf: DeltamapperError
  })
  t.is(error?.code, 'DM_METADATA_DAMAGED')
  t.regex(error?.message ?? '', /^metadata block \d+ .*the writeset of era 3 begins there, and so does another's$/)
  t.true(metadata.statistics.nodesRead < 10)
})

test('a block that stands in two places of a bitset, or of two, is damage', async (t) => {
  for (const [from, to] of [
    [0, 1],
    [1, 0]
  ]) {
    for (const other of [0, 1]) {
      const metadata = await changed(t, threeErasOf(90_000), (image) => {
        const bitsets = nodesOf(image, 8).filter(({ fields }) => fields.entries === 3)
        const value = bitsets[other].fields.value(from)
        reseal(image, bitsets[0].block, (content) => new NodeFields(content).setValue(other === 0 ? to : from, value))
      })
      const error = await t.throwsAsync(async () => collectExtents(await metadata.written({ sinceEra: 1 })), {
        instanceOf: DeltamapperError
      })
      t.is(error?.code, 'DM_METADATA_DAMAGED')
      t.regex(error?.message ?? '', /^metadata block \d+ .*stands in two places/)
    }
  }
})

test('swapped blocks of a bitset: the last one is told by its length, of full ones nothing tells, era_check neither', async (t) => {
  for (const other of [0, 1]) {
    for (const [from, to] of [
      [0, 2],
      [1, 2],
      [0, 1]
    ]) {
      const metadata = await changed(t, threeErasOf(90_000), (image) => {
        const bitsets = nodesOf(image, 8).filter(({ fields }) => fields.entries === 3)
        const swapped = [bitsets[0].fields.value(from), bitsets[other].fields.value(to)]
        reseal(image, bitsets[0].block, (content) => new NodeFields(content).setValue(from, swapped[1]))
        reseal(image, bitsets[other].block, (content) => new NodeFields(content).setValue(to, swapped[0]))
      })
      const asked = async () => collectExtents(await metadata.written({ sinceEra: 1 }))
      if (to === 1) {
        t.true((await asked()).length > 0)
        continue
      }
      const error = await t.throwsAsync(asked, { instanceOf: DeltamapperError })
      t.regex(error?.message ?? '', /^metadata block \d+ .*it holds 389 elements where 509 are due$/)
    }
  }
})
