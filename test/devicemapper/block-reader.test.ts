import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { chmod, mkdir, readdir, readFile, readlink, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { BlockReader, WINDOW_BLOCKS } from '../../src/devicemapper/block-reader.ts'
import { checksumSalt } from '../../src/devicemapper/checksum.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { BLOCK_BYTES, seal, writeU64 } from '../support/metadata-image.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'

const NODE = checksumSalt.btreeNode
const BLOCKS = 1500
const folder = testFolder(test)
const bytes = Buffer.alloc(BLOCKS * BLOCK_BYTES)
const random = new Random(1)
for (let number = 0; number < BLOCKS; number++) {
  const block = contentOf(number)
  for (let at = 16; at < BLOCK_BYTES; at += 64) block.writeUInt32LE(random.uint32(), at)
  writeU64(block, 8, number)
  seal(block, 'node')
}
const path = join(folder, 'blocks.img')
writeFileSync(path, bytes)

function contentOf(number: number): Buffer {
  return bytes.subarray(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
}

async function open(t: ExecutionContext, ...args: Parameters<typeof BlockReader.open>): Promise<BlockReader> {
  const reader = await BlockReader.open(...args)
  t.teardown(() => reader.close())
  return reader
}

/** Loads a window, checks that every slot holds the block that was asked for, and hands the window back. */
async function loadRight(t: ExecutionContext, reader: BlockReader, blocks: readonly number[]): Promise<void> {
  const window = await reader.load(blocks, blocks.length, NODE)
  for (const [index, number] of blocks.entries()) {
    if (!window.block(index).equals(contentOf(number))) t.fail(`slot ${index} does not hold block ${number}`)
  }
  reader.release(window)
}

/** Block numbers as walks ask for them: here and there, in runs, with gaps, some twice, in any order. */
const windowOfBlocks = fc
  .array(fc.record({ start: fc.nat({ max: BLOCKS - 1 }), length: fc.nat({ max: 40 }), step: fc.nat({ max: 12 }) }), {
    minLength: 1,
    maxLength: 12
  })
  .map((runs) =>
    runs
      .flatMap(({ start, length, step }) => Array.from({ length: length + 1 }, (_, index) => start + index * step))
      .filter((number) => number < BLOCKS)
      .slice(0, WINDOW_BLOCKS)
  )
  .chain((blocks) => fc.shuffledSubarray(blocks, { minLength: blocks.length }))

test('whatever is asked for, in whatever order, each slot holds its block, and the cost is told exactly', async (t) => {
  const reader = await open(t, path)
  await fc.assert(
    fc.asyncProperty(windowOfBlocks, async (blocks) => {
      const before = { ...reader.statistics }
      await loadRight(t, reader, blocks)
      const nodes = reader.statistics.nodesRead - before.nodesRead
      const calls = reader.statistics.readCalls - before.readCalls
      const blocksRead = (reader.statistics.bytesRead - before.bytesRead) / BLOCK_BYTES
      const distinct = new Set(blocks).size
      t.is(nodes, distinct)
      t.true(blocksRead >= distinct && blocksRead <= 2 * WINDOW_BLOCKS, `${blocksRead} blocks read for ${distinct}`)
      t.true(calls <= runsOf(blocks), `${calls} calls for ${runsOf(blocks)} runs`)
    })
  )
})

/** Requests it would take without bridging anything. */
function runsOf(blocks: readonly number[]): number {
  const sorted = [...new Set(blocks)].sort((one, other) => one - other)
  let runs = 0
  let start = -Infinity
  for (const [index, number] of sorted.entries()) {
    if (number !== sorted[index - 1] + 1 || number - start >= 64) {
      runs++
      start = number
    }
  }
  return runs
}

test('neighbours come in one request, small gaps are bridged, large ones and long runs are not', async (t) => {
  for (const [name, blocks, calls, blocksRead] of [
    ['one block', [7], 1, 1],
    ['the same block three times', [7, 7, 7], 1, 1],
    ['neighbours, backwards', [12, 11, 10], 1, 3],
    ['a gap of eight', [10, 19], 1, 10],
    ['a gap of nine', [10, 20], 2, 2],
    ['64 in a row', sequence(64, 1), 1, 64],
    ['65 in a row', sequence(65, 1), 2, 65],
    ['every other block', sequence(128, 2), 4, 252],
    // Bridging all would take 128 + 127 * 8 slots of 256: only what leaves a slot for each block still wanted is bridged.
    ['every ninth block', sequence(128, 9), 112, 256]
  ] as const) {
    const reader = await open(t, path)
    await loadRight(t, reader, blocks)
    t.deepEqual(
      reader.statistics,
      { nodesRead: new Set(blocks).size, readCalls: calls, bytesRead: blocksRead * BLOCK_BYTES },
      name
    )
  }
})

function sequence(length: number, step: number): number[] {
  return Array.from({ length }, (_, index) => index * step)
}

test('windows that are loaded at the same time do not get into each other', async (t) => {
  const reader = await open(t, path)
  await Promise.all(
    Array.from({ length: 40 }, (_, index) => loadRight(t, reader, sequence(100, 7 + (index % 5)).reverse()))
  )
  t.is(reader.statistics.nodesRead, 40 * 100)
})

test('a copy of a raw block stays as it was when its window is used again', async (t) => {
  const reader = await open(t, path)
  const first = await reader.readRaw(3)
  await reader.readRaw(4)
  await loadRight(t, reader, [5])
  t.true(first.equals(contentOf(3)))
})

test('read hands over the verified block and gives back what is made of it', async (t) => {
  const reader = await open(t, path)
  const own = await reader.read(9, NODE, (window) => window.block(0).readUInt32LE(8))
  t.is(own, 9)
  await t.throwsAsync(
    reader.read(9, NODE, () => {
      throw new RangeError('mine')
    }),
    { instanceOf: RangeError, message: 'mine' }
  )
})

test('an aborted signal is heard before anything is read', async (t) => {
  const reader = await open(t, path)
  const reason = new DeltamapperError('DM_CANCELLED', 'gone', 'nothing')
  await t.throwsAsync(
    reader.read(9, NODE, () => undefined, AbortSignal.abort(reason)),
    { is: reason }
  )
  t.is(reader.statistics.readCalls, 0)
})

test('a block is believed only with its own checksum, of its kind, and its own number', async (t) => {
  const damagedPath = join(folder, 'damaged.img')
  const image = Buffer.from(bytes.subarray(0, 40 * BLOCK_BYTES))
  const damage = (number: number, change: (block: Buffer) => void) =>
    change(image.subarray(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES))
  damage(3, (block) => (block[4095] ^= 1))
  damage(4, (block) => (block[0] ^= 0x80))
  damage(5, (block) => seal(block, 'superblock'))
  damage(6, (block) => {
    writeU64(block, 8, 7)
    seal(block, 'node')
  })
  damage(7, (block) => {
    writeU64(block, 8, 7 + 2 ** 32)
    seal(block, 'node')
  })
  damage(8, (block) => block.fill(0))
  await writeFile(damagedPath, image)
  const reader = await open(t, damagedPath)
  for (const [number, what] of [
    [3, /checksum is wrong/],
    [4, /checksum is wrong/],
    [5, /checksum is wrong/],
    [6, /says that it is block 7$/],
    [7, /says that it is block 4294967303/],
    [8, /checksum is wrong/]
  ] as const) {
    for (const asked of [[number], [20, number, 2]]) {
      const error = await t.throwsAsync(reader.load(asked, asked.length, NODE), { instanceOf: DeltamapperError })
      t.is(error?.code, 'DM_METADATA_DAMAGED')
      t.true(error?.message.startsWith(`metadata block ${number} of ${damagedPath} is damaged: `), error?.message)
      t.regex(error?.message ?? '', what)
    }
  }
  // And the reader goes on: nothing of that has stuck to it.
  await loadRight(t, reader, [2, 9, 39])
})

test('a block beyond the end is damage of whoever pointed there', async (t) => {
  const ragged = join(folder, 'ragged.img')
  await writeFile(ragged, bytes.subarray(0, 5 * BLOCK_BYTES + 100))
  const reader = await open(t, ragged)
  t.is(reader.blocks, 5)
  await loadRight(t, reader, [4])
  for (const number of [5, 6, 2 ** 32 + 1, 2 ** 53, 2 ** 64, Infinity, NaN]) {
    const error = await t.throwsAsync(reader.load([1, number], 2, NODE), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_METADATA_DAMAGED')
    t.regex(error?.message ?? '', /beyond the end of the metadata \(5 blocks\)/)
    t.regex(error?.remedy ?? '', /^if this is a copy, it was cut off: copy the whole metadata device again; /)
  }
})

test('a file that is cut off while it is open is no damage but a failed read', async (t) => {
  const shrinking = join(folder, 'shrinking.img')
  await writeFile(shrinking, bytes.subarray(0, 8 * BLOCK_BYTES))
  const reader = await open(t, shrinking)
  await truncate(shrinking, 6 * BLOCK_BYTES + 10)
  await loadRight(t, reader, [5])
  for (const [asked, what] of [
    [[6], /blocks 6 to 6 .* could not be read: only 10 of 4096 bytes came back/],
    [[7], /only 0 of 4096 bytes/],
    [[1, 5, 7], /blocks 1 to 7 .* only 20490 of 28672 bytes/]
  ] as const) {
    const error = await t.throwsAsync(reader.load(asked, asked.length, NODE), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_READ_FAILED')
    t.regex(error?.message ?? '', what)
  }
})

test('what cannot be opened is said with what to do about it', async (t) => {
  const directory = join(folder, 'directory')
  await mkdir(directory)
  const fifo = join(folder, 'fifo')
  await promisify(execFile)('mkfifo', [fifo])
  for (const [which, message, remedy] of [
    [join(folder, 'nothing'), /cannot open .*nothing: ENOENT/, /only while the pool is active/],
    [join(path, 'below-a-file'), /ENOTDIR/, /check the path/],
    [directory, /is neither a file nor a block device/, /metadata device/],
    [fifo, /is neither a file nor a block device/, /metadata device/],
    ['/dev/zero', /is neither a file nor a block device/, /metadata device/],
    ['with\0nul', /cannot open/, /check the path/]
  ] as const) {
    const error = await t.throwsAsync(BlockReader.open(which), { instanceOf: DeltamapperError }, which)
    t.is(error?.code, 'DM_READ_FAILED', which)
    t.regex(error?.message ?? '', message)
    t.regex(error?.remedy ?? '', remedy)
  }
  t.deepEqual(
    (await openFiles()).filter(([target]) => target === directory || target === fifo),
    [],
    'nothing is left open'
  )
})

test.serial('a file that this user may not read asks for rights, and does not claim to be missing', async (t) => {
  const secret = join(folder, 'secret.img')
  await writeFile(secret, contentOf(0))
  await chmod(secret, 0o000)
  const [geteuid, seteuid] = [process.geteuid, process.seteuid]
  const isRoot = geteuid?.() === 0
  await chmod(folder, 0o711)
  // Root may read everything; 65534 is nobody.
  if (isRoot) seteuid?.(65534)
  try {
    const error = await t.throwsAsync(BlockReader.open(secret), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_READ_FAILED')
    t.regex(error?.message ?? '', /EACCES/)
    t.regex(error?.remedy ?? '', /run as root/)
  } finally {
    if (isRoot) seteuid?.(0)
  }
})

test('O_DIRECT reads the same, and really is O_DIRECT', async (t) => {
  let reader: BlockReader
  try {
    reader = await open(t, path, { direct: true })
  } catch (error) {
    // A file system without it says so, and deltamapper what to do then.
    t.true(error instanceof DeltamapperError && /without it/.test(error.remedy), String(error))
    t.log('the file system of the temporary folder does not take O_DIRECT')
    return
  }
  const O_DIRECT = 0o40000
  const flags = (await openFiles()).filter(([target]) => target === path).map(([, mode]) => mode & O_DIRECT)
  t.true(flags.includes(O_DIRECT))
  await fc.assert(
    fc.asyncProperty(windowOfBlocks, (blocks) => loadRight(t, reader, blocks)),
    { numRuns: 30 }
  )
  await loadRight(t, reader, [BLOCKS - 1])
  t.true((await reader.readRaw(BLOCKS - 1)).equals(contentOf(BLOCKS - 1)))
})

test('closing gives the file back', async (t) => {
  const closing = join(folder, 'closing.img')
  await writeFile(closing, contentOf(0))
  const isOpen = async () => (await openFiles()).some(([target]) => target === closing)
  const reader = await BlockReader.open(closing)
  t.true(await isOpen())
  await reader.close()
  t.false(await isOpen())
})

/** Files that this process has open below the test's folder, with the flags they were opened with. */
async function openFiles(): Promise<[path: string, flags: number][]> {
  const files: [string, number][] = []
  for (const fd of await readdir('/proc/self/fd')) {
    const target = await readlink(`/proc/self/fd/${fd}`).catch(() => '')
    if (!target.startsWith(folder)) continue
    const info = await readFile(`/proc/self/fdinfo/${fd}`, 'utf8').catch(() => '')
    files.push([target, parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? '0', 8)])
  }
  return files.sort(([one], [other]) => (one < other ? -1 : 1))
}
