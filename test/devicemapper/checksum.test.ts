import test from 'ava'
import fc from 'fast-check'

import { checksumSalt, impliedSalt } from '../../src/devicemapper/checksum.ts'
import { METADATA_BLOCK_BYTES } from '../../src/units.ts'

/** CRC-32C as its definition has it, bit by bit: polynomial 0x1EDC6F41 reflected, register preset to ones, and here not inverted at the end. */
function rawCrc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0)
  }
  return crc >>> 0
}

function saltOf(block: Buffer): number {
  return impliedSalt(block.readUInt32LE(0), block.subarray(4))
}

const anyBlock = fc
  .uint8Array({ minLength: METADATA_BLOCK_BYTES, maxLength: METADATA_BLOCK_BYTES })
  .map((bytes) => Buffer.from(bytes))

test('the definition used here gives the published check value', (t) => {
  // "123456789": the check value of CRC-32C in every catalogue of CRCs, after the inversion that device-mapper leaves out.
  t.is((rawCrc32c(Buffer.from('123456789')) ^ 0xffffffff) >>> 0, 0xe3069283)
})

test('a block sealed with any salt implies that salt', (t) => {
  fc.assert(
    fc.property(anyBlock, fc.constantFrom(0, 0xffffffff, 0x80000000, ...Object.values(checksumSalt)), (block, salt) => {
      block.writeUInt32LE((rawCrc32c(block.subarray(4)) ^ salt) >>> 0, 0)
      t.is(saltOf(block), salt)
    }),
    { numRuns: 20 }
  )
})

test('no bit of a block can change unnoticed', (t) => {
  fc.assert(
    fc.property(anyBlock, fc.nat({ max: 8 * METADATA_BLOCK_BYTES - 1 }), (block, bit) => {
      const before = saltOf(block)
      block[bit >> 3] ^= 1 << (bit & 7)
      t.not(saltOf(block), before)
    }),
    { numRuns: 200 }
  )
})

test('the salts are those of the kernel, and differ', (t) => {
  // THIN_SUPERBLOCK_CSUM_SEED, SUPERBLOCK_CSUM_XOR (dm-era, dm-cache), BTREE_CSUM_XOR and dm-array.c's CSUM_XOR below drivers/md/.
  t.deepEqual(checksumSalt, {
    thinSuperblock: 160774,
    eraSuperblock: 146538381,
    cacheSuperblock: 9031977,
    btreeNode: 121107,
    arrayBlock: 595846735
  })
})
