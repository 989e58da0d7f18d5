import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import { arrayBlockCapacity, arrayElements, ArrayIndex } from '../../src/devicemapper/array.ts'
import { BlockReader } from '../../src/devicemapper/block-reader.ts'
import { checksumSalt } from '../../src/devicemapper/checksum.ts'
import type { DeltamapperError } from '../../src/errors.ts'
import { eraField, sealEraBlock, writeEraImage } from '../support/era-image.ts'
import { EraModel } from '../support/era-model.ts'
import { blockOf, NodeFields } from '../support/metadata-damage.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const BLOCKS = 50_000
const ARRAY_BLOCKS = Math.ceil(BLOCKS / 1018)
let files = 0

/** An era array with a tree of three levels; each block of the device was written to in an era of its own, counted from 1. */
function image(): { bytes: Buffer; root: number } {
  const eras = new Map(Array.from({ length: BLOCKS }, (_, i) => [i, i + 1]))
  const view = { ...new EraModel(BLOCKS).view(), currentEra: BLOCKS + 1, current: undefined, eras }
  const { bytes } = writeEraImage(view, { nodeEntries: 5 })
  return { bytes, root: Number(bytes.readBigUInt64LE(eraField.eraArrayRoot)) }
}

async function open(t: ExecutionContext, bytes: Buffer): Promise<BlockReader> {
  const path = join(folder, `${files++}.img`)
  await writeFile(path, bytes)
  const reader = await BlockReader.open(path)
  t.teardown(() => reader.close())
  return reader
}

test('a block has room for as many elements as the kernel puts there', (t) => {
  t.is(arrayBlockCapacity(4), 1018)
  t.is(arrayBlockCapacity(8), 509)
})

test('every element stands where its index says, in whatever order blocks are asked for', async (t) => {
  const { bytes, root } = image()
  const reader = await open(t, bytes)
  const shape = { root, length: BLOCKS, valueSize: 4 } as const
  const index = new ArrayIndex(reader, shape)
  t.is(index.count, ARRAY_BLOCKS)
  const ascending = Array.from({ length: ARRAY_BLOCKS }, (_, i) => i)
  for (const at of [...ascending, ...ascending.toReversed()]) {
    const block = await index.blockOf(at)
    t.is(index.known(at), block)
    await reader.read(block, checksumSalt.arrayBlock, (window) => {
      const first = arrayElements(window, 0, shape, at, reader, block)
      const length = Math.min(1018, BLOCKS - at * 1018)
      t.deepEqual(
        [...window.words.subarray(first, first + length)],
        Array.from({ length }, (_, i) => at * 1018 + i + 1)
      )
    })
  }
})

test('in ascending order each leaf of the tree is read once', async (t) => {
  const { bytes, root } = image()
  const reader = await open(t, bytes)
  const index = new ArrayIndex(reader, { root, length: BLOCKS, valueSize: 4 })
  for (let at = 0; at < ARRAY_BLOCKS; at++) await index.blockOf(at)
  // Ten leaves of five, each at the end of a path of three nodes.
  t.is(reader.statistics.nodesRead, 30)
})

test('an array that is not as long as it has to be, or has gaps, is damaged', async (t) => {
  const { bytes, root } = image()
  const reader = await open(t, bytes)
  const last = async (length: number) =>
    new ArrayIndex(reader, { root, length, valueSize: 4 }).blockOf(Math.ceil(length / 1018) - 1)
  await t.notThrowsAsync(last(BLOCKS))
  const check = async (length: number) => new ArrayIndex(reader, { root, length, valueSize: 4 }).checkLength()
  await t.notThrowsAsync(check(BLOCKS))
  for (const length of [0, 1, 1018, 5 * 1018, BLOCKS - 1018, BLOCKS - 1, BLOCKS + 1, BLOCKS + 1018, 2 ** 30]) {
    t.is((await t.throwsAsync<DeltamapperError>(check(length)))?.code, 'DM_METADATA_DAMAGED', `${length} elements`)
  }
  for (const [length, says] of [
    [BLOCKS + 1018, /lacks block 50 of an array/],
    [BLOCKS - 1018, /an array of 49 blocks does not end where it has to/]
  ] as const) {
    const error = await t.throwsAsync<DeltamapperError>(last(length))
    t.is(error?.code, 'DM_METADATA_DAMAGED')
    t.regex(error?.message ?? '', says)
  }

  const gap = Buffer.from(bytes)
  let leaf = root
  while (new NodeFields(blockOf(gap, leaf)).internal) leaf = Number(new NodeFields(blockOf(gap, leaf)).value(0))
  const node = new NodeFields(blockOf(gap, leaf))
  // 0 1 2 3 4 becomes 0 1 2 4, the 4 in the place of the 3.
  node.setKey(3, 4n)
  node.setValue(3, node.value(4))
  node.entries = 4
  sealEraBlock(blockOf(gap, leaf), 'node')
  const damaged = await open(t, gap)
  const error = await t.throwsAsync(new ArrayIndex(damaged, { root, length: BLOCKS, valueSize: 4 }).blockOf(0))
  t.regex(error?.message ?? '', new RegExp(`block ${leaf} .* without a gap`))
})

test('an array block of another kind of array is refused', async (t) => {
  const { bytes, root } = image()
  const reader = await open(t, bytes)
  const block = await new ArrayIndex(reader, { root, length: BLOCKS, valueSize: 4 }).blockOf(0)
  const check = (length: number, valueSize: 4 | 8, index: number) =>
    reader.read(block, checksumSalt.arrayBlock, (window) =>
      arrayElements(window, 0, { root, length, valueSize }, index, reader, block)
    )
  await t.notThrowsAsync(check(BLOCKS, 4, 0))
  await t.throwsAsync(check(BLOCKS, 8, 0), { message: /1018 elements of 4 bytes at most where 509 of 8 are due/ })
  await t.throwsAsync(check(1017, 4, 0), { message: /holds 1018 elements where 1017 are due/ })
})
