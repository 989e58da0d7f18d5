/**
 * Damaged metadata never yields another answer: it is an error that names the block, or the very answer as before where the walk does not
 * come by the damage. Never a crash, never an endless loop.
 */
import { execFile } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

import test from 'ava'

import { DeltamapperError } from '../../../src/errors.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { beginPoolTrial, smallPool } from '../../support/pool-damage.ts'
import { flipByte, nodeDamages, superblockDamages } from '../../support/metadata-damage.ts'
import { BLOCK_BYTES, blankSuperblock } from '../../support/metadata-image.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const HEADER_BYTES = 32
const SAMPLED_BYTES = 5

test('a flipped byte is an error that names its block, or changes nothing', async (t) => {
  const random = new Random(4000)
  const trial = await beginPoolTrial(smallPool(random), join(folder, 'flips.img'))
  for (const block of trial.image.reachable()) {
    const header = Array.from({ length: HEADER_BYTES }, (_, offset) => offset)
    const sampled = Array.from({ length: SAMPLED_BYTES }, () => random.integer(HEADER_BYTES, BLOCK_BYTES - 1))
    for (const offset of [...header, ...sampled]) {
      t.deepEqual(await trial.of(flipByte(block, offset, random.integer(1, 255)), true), [])
    }
  }
  trial.end()
  t.log(trial.verdicts)
  t.true(trial.verdicts.refused > 1000 && trial.verdicts.same > 1000)
  t.is(trial.verdicts.otherImage, 0)
})

test('a flipped byte in a block that nothing refers to changes nothing', async (t) => {
  const random = new Random(4100)
  const trial = await beginPoolTrial(smallPool(random), join(folder, 'unreached.img'))
  const reachable = trial.image.reachable()
  const others = [...trial.image.kinds.keys()].filter((block) => !reachable.has(block))
  t.true(others.length > 0)
  for (const block of others) t.deepEqual(await trial.of(flipByte(block, random.integer(0, BLOCK_BYTES - 1), 1)), [])
  trial.end()
  t.is(trial.verdicts.refused, 0)
})

test('wrong structures with right checksums: nodes', async (t) => {
  const random = new Random(4200)
  const trial = await beginPoolTrial(smallPool(random), join(folder, 'nodes.img'))
  const superblocks = new Set([0, trial.image.superblock()])
  let damages = 0
  for (const block of trial.image.reachable().difference(superblocks)) {
    for (const damage of nodeDamages(trial.image, block, random)) {
      // Every other one: the soak run takes them all.
      if (random.chance(0.5)) continue
      damages++
      t.deepEqual(await trial.of(damage), [])
    }
  }
  trial.end()
  t.log(`${damages} damages`, trial.verdicts)
  t.true(trial.verdicts.refused > 1000)
})

test('wrong structures with right checksums: superblocks', async (t) => {
  const random = new Random(4300)
  const trial = await beginPoolTrial(smallPool(random), join(folder, 'superblocks.img'))
  for (const block of [0, trial.image.superblock()]) {
    for (const damage of superblockDamages(trial.image, block, random)) t.deepEqual(await trial.of(damage), [])
  }
  trial.end()
  t.true(trial.verdicts.refused > 100)
})

test('a file cut off anywhere', async (t) => {
  const trial = await beginPoolTrial(smallPool(new Random(4400)), join(folder, 'short.img'))
  for (let block = 0; block * BLOCK_BYTES < trial.image.bytes.length; block++) {
    for (const more of [0, 1, 511, 4095]) t.deepEqual(await trial.ofLength(block * BLOCK_BYTES + more), [])
  }
  trial.end()
  t.true(trial.verdicts.refused > 100)
})

test('what is no thin metadata is refused as such', async (t) => {
  const images: [name: string, content: Buffer | string, says: RegExp][] = [
    ['empty', '', /no dm-thin metadata/],
    ['one-byte', 'x', /no dm-thin metadata/],
    ['text', 'The quick brown fox jumps over the lazy dog.\n'.repeat(2000), /no dm-thin metadata/],
    ['zeros', Buffer.alloc(64 * BLOCK_BYTES), /no dm-thin metadata/],
    ['ones', Buffer.alloc(64 * BLOCK_BYTES, 0xff), /no dm-thin metadata/],
    ['era', padded(blankSuperblock('eraSuperblock')), /dm-era metadata/],
    ['cache', padded(blankSuperblock('cacheSuperblock')), /dm-cache metadata/]
  ]
  for (const [name, content, says] of images) {
    const path = join(folder, name)
    await writeFile(path, content)
    const error = await t.throwsAsync(openPoolMetadata(path), { instanceOf: DeltamapperError }, name)
    t.is(error?.code, 'DM_METADATA_FOREIGN', name)
    t.regex(error?.message ?? '', says, name)
    t.true(error?.message.includes(path), name)
  }
})

test('what cannot be read at all is said, and does not hang', async (t) => {
  const directory = join(folder, 'directory')
  await mkdir(directory)
  const fifo = join(folder, 'fifo')
  await promisify(execFile)('mkfifo', [fifo])
  for (const path of [directory, fifo, '/dev/zero', '/dev/null', join(folder, 'nothing-there')]) {
    const error = await t.throwsAsync(openPoolMetadata(path), { instanceOf: DeltamapperError }, path)
    t.is(error?.code, 'DM_READ_FAILED', path)
    t.true(error?.message.includes(path), path)
  }
})

function padded(superblock: Buffer): Buffer {
  return Buffer.concat([superblock, Buffer.alloc(15 * BLOCK_BYTES)])
}
