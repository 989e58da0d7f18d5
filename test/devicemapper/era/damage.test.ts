/**
 * Damaged era metadata never yields another answer: it is an error that names the block, or the very answer as before where the walk does not
 * come by the damage. Never a crash, never an endless loop.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'

import { openEraMetadata } from '../../../src/devicemapper/era/era-metadata.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { beginEraTrial, eraDamages, smallEraDevice } from '../../support/era-damage.ts'
import { flipByte } from '../../support/metadata-damage.ts'
import { BLOCK_BYTES } from '../../support/metadata-image.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const HEADER_BYTES = 32
const SUPERBLOCK_BYTES = 224
const SAMPLED_BYTES = 1

test('a flipped byte is an error that names its block, or changes nothing', async (t) => {
  const random = new Random(5000)
  const trial = await beginEraTrial(smallEraDevice(random), join(folder, 'flips.img'))
  for (const [block, kind] of trial.image.kinds) {
    const isSuperblock = kind === 'superblock' || kind === 'metadata snapshot'
    // The header, a few of it where there are many such blocks, and anything behind it.
    const header = Array.from({ length: isSuperblock ? SUPERBLOCK_BYTES : HEADER_BYTES }, (_, offset) => offset)
    const some = isSuperblock ? header : random.shuffle(header).slice(0, 2)
    const sampled = Array.from({ length: SAMPLED_BYTES }, () => random.integer(HEADER_BYTES, BLOCK_BYTES - 1))
    for (const offset of [...some, ...sampled]) {
      t.deepEqual(await trial.of(flipByte(block, offset, random.integer(1, 255)), true), [])
    }
  }
  trial.end()
  t.log(trial.verdicts)
  t.true(trial.verdicts.refused > 500 && trial.verdicts.same > 500)
  t.is(trial.verdicts.otherImage, 0)
})

test('wrong structures with right checksums', async (t) => {
  const random = new Random(5100)
  const trial = await beginEraTrial(smallEraDevice(random), join(folder, 'structures.img'))
  let damages = 0
  for (const [block, kind] of trial.image.kinds) {
    for (const damage of eraDamages(trial.image, block, random)) {
      // All that concern superblocks, one in sixteen of the rest.
      if ((kind === 'node' || kind === 'array') && random.chance(15 / 16)) continue
      damages++
      t.deepEqual(await trial.of(damage), [])
    }
  }
  trial.end()
  t.log(`${damages} damages`, trial.verdicts)
  t.true(trial.verdicts.refused > 300)
})

test('a file cut off anywhere', async (t) => {
  const trial = await beginEraTrial(smallEraDevice(new Random(5200)), join(folder, 'short.img'))
  for (let block = 0; block * BLOCK_BYTES < trial.image.bytes.length; block += 2) {
    for (const more of [0, 4095]) t.deepEqual(await trial.ofLength(block * BLOCK_BYTES + more), [])
  }
  trial.end()
  t.true(trial.verdicts.refused > 100)
})

test('what is no era metadata is refused as such', async (t) => {
  for (const [name, content] of [
    ['empty', Buffer.alloc(0)],
    ['one-byte', Buffer.alloc(1)],
    ['zeros', Buffer.alloc(16 * BLOCK_BYTES)],
    ['ones', Buffer.alloc(16 * BLOCK_BYTES, 0xff)]
  ] as const) {
    const path = join(folder, name)
    await writeFile(path, content)
    const error = await t.throwsAsync(openEraMetadata(path), { instanceOf: DeltamapperError }, name)
    t.is(error?.code, 'DM_METADATA_FOREIGN', name)
    t.regex(error?.message ?? '', /no dm-era metadata/)
  }
})
