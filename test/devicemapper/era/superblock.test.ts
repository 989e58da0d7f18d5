import test from 'ava'

import { parseEraSuperblock } from '../../../src/devicemapper/era/superblock.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { eraField, sealEraBlock, writeEraImage } from '../../support/era-image.ts'
import { EraModel } from '../../support/era-model.ts'
import { blankSuperblock, BLOCK_BYTES, seal } from '../../support/metadata-image.ts'

const PATH = '/dev/mapper/era-metadata'

function superblock(change: (block: Buffer) => void = () => undefined): Buffer {
  const model = new EraModel(1000)
  model.checkpoint()
  model.takeSnapshot()
  const { bytes } = writeEraImage(model.view(), { blockSectors: 64, held: model.view() })
  const block = Buffer.from(bytes.subarray(0, BLOCK_BYTES))
  change(block)
  sealEraBlock(block, 'superblock')
  return block
}

function refused(block: Buffer, number = 0): DeltamapperError {
  try {
    parseEraSuperblock(block, number, PATH)
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
  throw new Error('it was accepted')
}

test('every field', (t) => {
  const block = superblock()
  const at = (offset: number) => Number(block.readBigUInt64LE(offset))
  t.deepEqual(parseEraSuperblock(block, 0, PATH), {
    blockSectors: 64,
    blockBytes: 32768,
    blocks: 1000,
    currentEra: 3,
    currentWriteset: { era: 3, bits: 1000, root: at(192) },
    writesetTreeRoot: at(200),
    eraArrayRoot: at(208),
    metadataSnapshot: at(216)
  })
  t.true(at(192) > 0 && at(200) > 0 && at(208) > 0 && at(216) > 0)
})

test('without a current writeset, the device is suspended or inactive', (t) => {
  const block = superblock((each) => each.writeBigUInt64LE(0n, eraField.currentRoot))
  t.is(parseEraSuperblock(block, 0, PATH).currentWriteset, undefined)
})

test("another target's metadata is named, with what to do", (t) => {
  const thin = Buffer.alloc(BLOCK_BYTES)
  thin.writeUInt32LE(27022010, 32)
  seal(thin, 'superblock')
  for (const [block, says, remedy] of [
    [thin, /dm-thin metadata, not dm-era metadata/, /delta BASE TARGET/],
    [blankSuperblock('cacheSuperblock'), /dm-cache metadata, not dm-era/, /name an era device/],
    [Buffer.alloc(BLOCK_BYTES), /no dm-era metadata: block 0 is no superblock/, /name an era device/]
  ] as const) {
    const error = refused(block)
    t.is(error.code, 'DM_METADATA_FOREIGN')
    t.true(error.message.startsWith(PATH))
    t.regex(error.message, says)
    t.regex(error.remedy, remedy)
  }
})

test('what the kernel would never have written is damage', (t) => {
  const wrong: [(block: Buffer) => void, RegExp][] = [
    [(block) => block.writeUInt32LE(0, eraField.blockSectors), /block size of 0 sectors/],
    [(block) => block.writeUInt32LE(127, eraField.blockSectors), /block size of 127 sectors/],
    [(block) => block.writeUInt32LE(2 ** 31, eraField.blocks), /2147483648 blocks/],
    [(block) => block.writeUInt32LE(0, eraField.currentBits), /of no blocks at all/],
    [(block) => block.writeUInt32LE(1, eraField.blocknr), /says that it is block 1$/],
    [(block) => block.writeUInt32LE(1, eraField.magic), /magic number/]
  ]
  for (const [change, says] of wrong) {
    const error = refused(superblock(change))
    t.is(error.code, 'DM_METADATA_DAMAGED')
    t.regex(error.message, says)
    t.regex(error.message, /\bblock 0\b/)
  }
  const flipped = superblock()
  flipped.writeUInt8(flipped.readUInt8(3000) ^ 1, 3000)
  t.is(refused(flipped).code, 'DM_METADATA_DAMAGED')
  t.is(refused(superblock(), 5).code, 'DM_METADATA_DAMAGED')
})

test('a version that is not known is refused', (t) => {
  for (const version of [0, 2]) {
    t.is(refused(superblock((block) => block.writeUInt32LE(version, eraField.version))).code, 'DM_METADATA_UNSUPPORTED')
  }
})
