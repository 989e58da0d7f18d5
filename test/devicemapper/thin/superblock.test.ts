import test from 'ava'
import type { ExecutionContext } from 'ava'

import { checkHeldCopy, parseThinSuperblock } from '../../../src/devicemapper/thin/superblock.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { BLOCK_BYTES, seal, superblockField as field, THIN_MAGIC, writeU64 } from '../../support/metadata-image.ts'
import type { ChecksumKind } from '../../support/metadata-image.ts'

const PATH = '/dev/mapper/vg-pool_tmeta'

/** A superblock of a pool with data blocks of 64 KiB, changed as wanted and sealed. */
function superblock(change: (block: Buffer) => void = () => undefined, number = 0, kind: ChecksumKind = 'superblock') {
  const block = Buffer.alloc(BLOCK_BYTES)
  writeU64(block, field.blocknr, number)
  writeU64(block, field.magic, THIN_MAGIC)
  block.writeUInt32LE(2, field.version)
  block.writeUInt32LE(128, field.dataBlockSize)
  block.writeUInt32LE(8, field.metadataBlockSize)
  change(block)
  seal(block, kind)
  return block
}

function refused(t: ExecutionContext, block: Buffer, code: ErrorCode, says: RegExp, number = 0): void {
  const error = t.throws<DeltamapperError>(() => parseThinSuperblock(block, number, PATH), {
    instanceOf: DeltamapperError
  })
  t.is(error?.code, code, error?.message)
  t.regex(error?.message ?? '', says)
  t.true(error?.message.includes(PATH))
}

test('every field comes from its place', (t) => {
  const block = superblock((block) => {
    block.writeUInt32LE(1, field.flags)
    block.writeUInt32LE(2 ** 24 - 1, field.time)
    block.writeBigUInt64LE(2n ** 64n - 1n, field.transactionId)
    writeU64(block, field.heldRoot, 4_161_599)
    writeU64(block, field.mappingRoot, 7)
    writeU64(block, field.detailsRoot, 2 ** 32 + 8)
    block.writeUInt32LE(3 * 128, field.dataBlockSize)
    writeU64(block, field.metadataBlocks, 4_161_600)
    writeU64(block, field.dataSpaceMapRoot, 16_777_216)
  })
  t.deepEqual(parseThinSuperblock(block, 0, PATH), {
    needsCheck: true,
    time: 2 ** 24 - 1,
    transactionId: 2n ** 64n - 1n,
    heldRoot: 4_161_599,
    mappingRoot: 7,
    detailsRoot: 2 ** 32 + 8,
    dataBlockSectors: 384,
    dataBlockBytes: 196608,
    metadataBlocks: 4_161_600,
    dataBlocks: 16_777_216
  })
  t.false(parseThinSuperblock(superblock(), 0, PATH).needsCheck)
})

test('a clock beyond the 24 bits that mappings have for it is refused: which are younger no longer shows', (t) => {
  for (const time of [2 ** 24, 2 ** 32 - 1]) {
    const block = superblock((block) => block.writeUInt32LE(time, field.time))
    refused(t, block, 'DM_METADATA_UNSUPPORTED', new RegExp(`had ${time} snapshots`))
  }
})

test('what nobody checks may be anything: version, uuid, metadata block size, compatible features', (t) => {
  const block = superblock((block) => {
    block.fill(0xab, 16, 32)
    block.writeUInt32LE(99, field.version)
    block.writeUInt32LE(4096, field.metadataBlockSize)
    block.writeUInt32LE(0xffffffff, field.compatFlags)
    block.writeUInt32LE(0xffffffff, field.compatReadOnlyFlags)
    block.fill(0xcd, 364)
  })
  t.is(parseThinSuperblock(block, 0, PATH).dataBlockBytes, 65536)
})

test('a metadata snapshot is a superblock somewhere else, and says where', (t) => {
  t.is(
    parseThinSuperblock(
      superblock(() => undefined, 6),
      6,
      PATH
    ).heldRoot,
    0
  )
  refused(t, superblock(), 'DM_METADATA_DAMAGED', /metadata block 6 .* says that it is block 0/, 6)
  refused(
    t,
    superblock(() => undefined, 2 ** 40),
    'DM_METADATA_DAMAGED',
    /says that it is block 1099511627776/
  )
})

test('data block sizes of the kernel only: 64 KiB to 1 GiB, in steps of 64 KiB', (t) => {
  const sized = (sectors: number) => superblock((block) => block.writeUInt32LE(sectors, field.dataBlockSize))
  for (const sectors of [128, 256, 384, 2097152]) {
    t.is(parseThinSuperblock(sized(sectors), 0, PATH).dataBlockBytes, sectors * 512)
  }
  for (const sectors of [0, 1, 8, 64, 129, 192, 2097153, 2097280, 2 ** 32 - 128]) {
    refused(t, sized(sectors), 'DM_METADATA_DAMAGED', new RegExp(`data block size of ${sectors} sectors`))
  }
})

test('unknown features that matter are refused, each bit of them', (t) => {
  for (let bit = 0; bit < 32; bit++) {
    const flags = 2 ** bit
    const block = superblock((block) => block.writeUInt32LE(flags, field.incompatFlags))
    refused(t, block, 'DM_METADATA_UNSUPPORTED', new RegExp(`0x${flags.toString(16)}\\b`))
  }
})

test('what never was thin metadata is foreign; what was, is damaged', (t) => {
  const other = (magic: number) => (block: Buffer) => writeU64(block, field.magic, magic)
  const era = 2126579579
  refused(t, superblock(other(era), 0, 'eraSuperblock'), 'DM_METADATA_FOREIGN', /dm-era metadata, not dm-thin/)
  const damagedEra = superblock(other(era), 0, 'eraSuperblock')
  damagedEra[100] ^= 1
  refused(t, damagedEra, 'DM_METADATA_FOREIGN', /dm-era/)
  refused(t, Buffer.alloc(BLOCK_BYTES), 'DM_METADATA_FOREIGN', /no superblock/)
  refused(t, Buffer.alloc(BLOCK_BYTES, 0xff), 'DM_METADATA_FOREIGN', /no superblock/)
  refused(t, superblock(other(1), 0, 'node'), 'DM_METADATA_FOREIGN', /no superblock/)

  refused(t, superblock(other(THIN_MAGIC + 1)), 'DM_METADATA_DAMAGED', /magic number is 27022011/)
  refused(t, superblock(other(era)), 'DM_METADATA_DAMAGED', /magic number/)
  refused(t, superblock(undefined, 0, 'node'), 'DM_METADATA_DAMAGED', /checksum is not that of a thin superblock/)
})

test('where the live superblock points, only a superblock will do', (t) => {
  refused(t, superblock(undefined, 6, 'node'), 'DM_METADATA_DAMAGED', /metadata block 6 .*checksum/, 6)
  refused(t, Buffer.alloc(BLOCK_BYTES), 'DM_METADATA_DAMAGED', /metadata block 6 .*checksum/, 6)
})

test('no bit can change unnoticed', (t) => {
  const good = superblock()
  for (let byte = 0; byte < BLOCK_BYTES; byte += byte < 400 ? 1 : 97) {
    const block = Buffer.from(good)
    block[byte] ^= 1 << (byte & 7)
    // A changed magic number could mean that this was never thin metadata. Either way it is refused.
    t.throws(() => parseThinSuperblock(block, 0, PATH), { instanceOf: DeltamapperError }, `byte ${byte}`)
  }
})

test("a metadata snapshot's copy is held against block 0, every field that both have", (t) => {
  const live = superblock((block) => {
    block.writeUInt32LE(7, field.time)
    writeU64(block, field.heldRoot, 6)
    writeU64(block, field.metadataBlocks, 512)
    writeU64(block, field.transactionId, 3)
    block.fill(1, field.dataSpaceMapRoot, field.mappingRoot)
  })
  const copy = (change: (block: Buffer) => void = () => undefined) =>
    superblock((block) => {
      block.writeUInt32LE(7, field.time)
      writeU64(block, field.metadataBlocks, 512)
      change(block)
    }, 6)
  t.notThrows(() => checkHeldCopy(copy(), live, 6, PATH))
  // What may be older, or go either way.
  t.notThrows(() =>
    checkHeldCopy(
      copy((block) => {
        block.writeUInt32LE(1, field.flags)
        block.writeUInt32LE(0, field.time)
        writeU64(block, field.metadataBlocks, 100)
        writeU64(block, field.transactionId, 4)
      }),
      live,
      6,
      PATH
    )
  )
  const wrong: [RegExp, (block: Buffer) => void][] = [
    [/uuid is 0*01$|uuid is 01/, (block) => block.writeUInt8(1, 16)],
    [/version is 1, that of block 0 2$/, (block) => block.writeUInt32LE(1, field.version)],
    [/data block size is 256, that of block 0 128$/, (block) => block.writeUInt32LE(256, field.dataBlockSize)],
    [/metadata block size is 4096, that of block 0 8$/, (block) => block.writeUInt32LE(4096, field.metadataBlockSize)],
    [/compatible features is 1/, (block) => block.writeUInt32LE(1, field.compatFlags)],
    [/features to write with is 1/, (block) => block.writeUInt32LE(1, field.compatReadOnlyFlags)],
    [/held root/, (block) => writeU64(block, field.heldRoot, 6)],
    [/data space map root/, (block) => block.writeUInt8(1, field.dataSpaceMapRoot + 127)],
    [/metadata space map root/, (block) => block.writeUInt8(1, field.metadataSpaceMapRoot)],
    [/time is 8, and no more than 7/, (block) => block.writeUInt32LE(8, field.time)],
    [/metadata blocks is 513, and no more than 512/, (block) => writeU64(block, field.metadataBlocks, 513)]
  ]
  for (const [says, change] of wrong) {
    const error = t.throws<DeltamapperError>(() => checkHeldCopy(copy(change), live, 6, PATH), {
      instanceOf: DeltamapperError
    })
    t.is(error?.code, 'DM_METADATA_DAMAGED')
    t.regex(error?.message ?? '', says)
    t.regex(error?.message ?? '', /^metadata block 6 /)
  }
})
