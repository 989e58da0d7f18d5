import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'

import { metadataKind, readMetadataKind } from '../../src/devicemapper/metadata-kind.ts'
import { writeEraImage } from '../support/era-image.ts'
import { EraModel } from '../support/era-model.ts'
import { BLOCK_BYTES, blankSuperblock, seal } from '../support/metadata-image.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)

test('superblocks are known by their checksum, and where that is damaged by their magic number', (t) => {
  const thin = Buffer.alloc(BLOCK_BYTES)
  thin.writeUInt32LE(27022010, 32)
  seal(thin, 'superblock')
  for (const [block, name, damaged] of [
    [thin, 'dm-thin', 'dm-thin'],
    [blankSuperblock('eraSuperblock'), 'dm-era', 'dm-era'],
    [blankSuperblock('cacheSuperblock'), 'dm-cache', undefined]
  ] as const) {
    t.is(metadataKind(block), name)
    block.writeUInt8(1, 4000)
    t.is(metadataKind(block), damaged)
  }
})

test('what is no superblock is of no kind', async (t) => {
  t.is(metadataKind(Buffer.alloc(BLOCK_BYTES)), undefined)
  t.is(metadataKind(Buffer.alloc(BLOCK_BYTES, 0xff)), undefined)
  const path = join(folder, 'short')
  await writeFile(path, 'x')
  t.is(await readMetadataKind(path), undefined)
})

test('a file is of the kind of its first block', async (t) => {
  const path = join(folder, 'era.img')
  await writeFile(path, writeEraImage(new EraModel(10).view()).bytes)
  t.is(await readMetadataKind(path), 'dm-era')
})
