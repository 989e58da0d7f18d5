/**
 * Two readers that share no line must agree: ours, and Debian's era_invalidate, on images that we write, and on those that era_restore writes.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { openEraMetadata } from '../../../src/devicemapper/era/era-metadata.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { eraHistory } from '../../support/era-history.ts'
import { writeEraImage } from '../../support/era-image.ts'
import { EraModel } from '../../support/era-model.ts'
import { availableEraTools, eraCheck, eraInvalidate, eraRestore } from '../../support/era-tools.ts'
import { testFolder } from '../../support/test-folder.ts'

const KIB_64 = 65536
const { versions, unavailable } = await availableEraTools()
const folder = testFolder(test)

/** @returns how many answers were compared */
async function compare(t: ExecutionContext, path: string, model: EraModel, currentIsListed: boolean): Promise<number> {
  const metadata = await openEraMetadata(path, { liveRoot: true })
  let answers = 0
  try {
    const writesets = await metadata.writesets()
    const current = metadata.superblock.currentWriteset
    for (let era = 1; era <= metadata.lastEra; era++) {
      const ours = (await collectExtents(await metadata.written({ sinceEra: era }))).flatMap(([offset, size]) =>
        Array.from({ length: size / KIB_64 }, (_, i) => offset / KIB_64 + i)
      )
      t.deepEqual(
        ours,
        [...model.writtenSince(era, 'live')].sort((a, b) => a - b)
      )
      // What the tools leave out: blocks that were written to in the current era only.
      const archived = currentIsListed || !current ? ours : ours.filter((each) => wasArchived(model, each, era))
      for (const tools of versions) {
        if (tools.version === '1.1.0' && writesets.length === (current ? 1 : 0)) continue
        t.deepEqual(await eraInvalidate(tools, path, era), archived, `${tools.version}, since era ${era}`)
        answers++
      }
    }
  } finally {
    await metadata.close()
  }
  return answers
}

function wasArchived(model: EraModel, block: number, sinceEra: number): boolean {
  const { eras, writesets } = model.view()
  return (
    (eras instanceof Map && (eras.get(block) ?? 0) >= sinceEra) ||
    writesets.some(({ era, marked }) => era >= sinceEra && marked instanceof Set && marked.has(block))
  )
}

test('random devices, and what era_invalidate says of them', async (t) => {
  const path = join(folder, 'written.img')
  let answers = 0
  await fc.assert(
    fc.asyncProperty(eraHistory, async ({ model }) => {
      await writeFile(path, writeEraImage(model.view()).bytes)
      for (const tools of versions) t.is(await eraCheck(tools, path), '', tools.version)
      answers += await compare(t, path, model, false)
    }),
    { numRuns: 12 }
  )
  t.log(`${answers} answers of theirs`, ...unavailable)
  if (versions.length === 0) t.pass()
})

test('devices that era_restore has written', async (t) => {
  let answers = 0
  for (const tools of versions) {
    const path = join(folder, `restored-${tools.version}.img`)
    const model = new EraModel(34_000)
    for (let era = 1; era <= 6; era++) {
      for (let block = era * 4000; block < era * 4000 + 1200 * era; block += era) model.write(block)
      model.write(33_999)
      if (era === 6) model.suspend()
      else model.checkpoint()
      if (era === 2) model.digest()
      if (era === 4) model.digest(12_000)
    }
    await eraRestore(tools, model.view(), path, 4 * 2 ** 20)
    answers += await compare(t, path, model, true)
  }
  t.log(`${answers} answers of theirs`, ...unavailable)
  if (versions.length === 0) t.pass()
})
