/**
 * Debian 12's tools (0.9.0) and Debian 13's (1.1.0), run here and now: their XML against our own reading of the same metadata, and what
 * either of them gets wrong, with who notices.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { readDeltaXml } from '../../src/devicemapper/thin/delta-xml.ts'
import { readDumpXml } from '../../src/devicemapper/thin/dump-xml.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { allocatedExtentsOf, changedExtentsOf } from '../../src/devicemapper/thin/xml-extents.ts'
import { XmlInvalid } from '../../src/devicemapper/xml-stream.ts'
import { readPoolDescription, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { ensureLab, LabUnavailable } from '../lab/packages.ts'
import { thinTool, type ThinToolName } from '../lab/tools.ts'
import { ensureTrixieTools, trixieTool } from '../lab/trixie-tools.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { Random } from '../support/random.ts'
import { restoredPool, type TestPool, writtenPool } from '../support/random-pool.ts'
import { readDelta, readDump, readEraDump, readInvalidate, streamOf } from '../support/read-xml.ts'
import { asPrinted, node } from '../support/spell-xml.ts'
import { testFolder } from '../support/test-folder.ts'

const versions = { '0.9.0': thinTool, '1.1.0': trixieTool }
type Version = keyof typeof versions
const both = Object.keys(versions) as Version[]

const recorded = await unpackRecordedPool()
const description = await readPoolDescription(recorded)
const recordedImage = join(recorded, 'metadata.img')
const unavailable = await Promise.all([ensureLab(), ensureTrixieTools()]).then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const folder = testFolder(test)

/** A test that needs the tools. Where they cannot be had, it is left out, and says so. */
function toolTest(title: string, run: (t: ExecutionContext) => Promise<void>): void {
  if (unavailable === undefined) test(title, run)
  else test.skip(`${title} (${unavailable})`, run)
}

interface Printed {
  bytes: Buffer
  status: number | null
}

/** Runs a tool to its end, whatever that is. */
async function print(version: Version, name: ThinToolName, args: readonly string[]): Promise<Printed> {
  const { path, env } = versions[version](name)
  const child = spawn(path, args, { env, stdio: ['ignore', 'pipe', 'ignore'] })
  const closed = once(child, 'close') as Promise<[number | null]>
  const bytes = Buffer.concat(await Array.fromAsync(child.stdout as AsyncIterable<Buffer>))
  return { bytes, status: (await closed)[0] }
}

/** Its output as it comes; an error at the end where it failed. */
async function* printing(version: Version, name: ThinToolName, args: readonly string[]): AsyncGenerator<Buffer> {
  const { path, env } = versions[version](name)
  const child = spawn(path, args, { env, stdio: ['ignore', 'pipe', 'ignore'] })
  const closed = once(child, 'close') as Promise<[number | null]>
  yield* child.stdout as AsyncIterable<Buffer>
  const [status] = await closed
  if (status !== 0) throw new Error(`${name} ${version} ended with status ${status}`)
}

const kernelMade: TestPool = {
  name: 'the recorded pool',
  path: recordedImage,
  metadataSnapshot: true,
  blockSizeBytes: description.data_block_size_bytes,
  deviceIds: [1, 4, 6, 42, 43],
  readableByTools: true
}

for (const [what, make] of [
  ['a kernel', async () => kernelMade],
  ['we', () => writtenPool(77, folder, 'deep')],
  ['thin_restore', () => restoredPool(78, folder)]
] as const) {
  toolTest(`both versions and our own reader agree on every pair of a pool that ${what} made`, async (t) => {
    const pool = await make()
    const ids = pool.deviceIds.slice(0, 5)
    const random = new Random(7)
    const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
    t.teardown(() => metadata.close())
    const view = pool.metadataSnapshot ? ['-m'] : []
    for (const target of ids) {
      const sizeBytes = await metadata.mappedEnd(await metadata.device(target))
      const allocated = await collectExtents(await metadata.allocated({ deviceId: target, sizeBytes }))
      for (const version of both) {
        const { header, batches } = await readDumpXml(printing(version, 'thin_dump', [...view, pool.path]))
        t.deepEqual(await collectExtents(allocatedExtentsOf(batches, target, header, { sizeBytes })), allocated)
      }
      for (const base of ids) {
        const baseSizeBytes = random.chance(0.5) ? Math.floor(sizeBytes * random.fraction()) : undefined
        const own = await metadata.delta({ baseId: base, targetId: target, sizeBytes, baseSizeBytes })
        const expected = await collectExtents(own)
        for (const version of both) {
          for (const verbose of [[], ['--verbose']]) {
            const args = [...view, '--thin1', `${base}`, '--thin2', `${target}`, ...verbose, pool.path]
            const { header, batches } = await readDeltaXml(printing(version, 'thin_delta', args))
            const extents = await collectExtents(changedExtentsOf(batches, header, { sizeBytes, baseSizeBytes }))
            t.deepEqual(extents, expected, `${base} to ${target}, ${version} ${verbose.join('')}`)
          }
        }
      }
    }
  })
}

toolTest('both call blocks beyond a shrunk base the same: its size tells that no backup of it has them', async (t) => {
  const named = (name: string) => description.snapshots.find((each) => each.name === name)
  const [shrunk, grown] = [named('tides-shrunk'), named('tides-grown')]
  if (!shrunk || !grown) throw new Error('the recorded pool tells another story')
  const args = ['-m', '--thin1', `${shrunk.thin_id}`, '--thin2', `${grown.thin_id}`, recordedImage]
  const firstBeyond = Math.floor(shrunk.size_bytes / description.data_block_size_bytes)
  for (const version of both) {
    const { runs } = await readDelta(printing(version, 'thin_delta', args))
    t.true(runs.some(([kind, begin, length]) => kind === 'same' && begin + length > firstBeyond))
    const { header, batches } = await readDeltaXml(printing(version, 'thin_delta', args))
    const sizes = { sizeBytes: grown.size_bytes, baseSizeBytes: shrunk.size_bytes }
    const extents = await collectExtents(changedExtentsOf(batches, header, sizes))
    const mapped = runs.filter(([kind]) => kind !== 'left_only')
    const covered = ([, begin, length]: [string, number, number]) => {
      const from = Math.max(begin, firstBeyond) * header.dataBlockBytes
      const to = Math.min((begin + length) * header.dataBlockBytes, grown.size_bytes)
      return from >= to || extents.some(([offset, size]) => offset <= from && offset + size >= to)
    }
    t.true(mapped.every(covered))
  }
})

toolTest(
  'thin_dump of damaged metadata stops half-way, thin_delta of a missing device prints nothing: both show',
  async (t) => {
    const damaged = await damagedPool()
    for (const version of both) {
      const dump = await print(version, 'thin_dump', [damaged])
      t.not(dump.status, 0)
      await t.throwsAsync(readDump(streamOf(dump.bytes)), { instanceOf: XmlInvalid })
      const delta = await print(version, 'thin_delta', ['--thin1', '1', '--thin2', '99', recordedImage])
      t.not(delta.status, 0)
      await t.throwsAsync(readDelta(streamOf(delta.bytes)), { instanceOf: XmlInvalid, message: /it is empty/ })
    }
  }
)

toolTest('0.9.0 --repair drops mappings and ends with status 0: the count of each device gives it away', async (t) => {
  const { bytes, status } = await print('0.9.0', 'thin_dump', ['--repair', await damagedPool()])
  t.is(status, 0)
  await t.throwsAsync(readDump(streamOf(bytes)), {
    instanceOf: XmlInvalid,
    message: /is said to map [0-9]+ blocks, and [0-9]+ are there/
  })
})

let damaged: Promise<string> | undefined

/** The recorded pool with a bad checksum in a leaf that several devices share; 1.1.0 names such leaves by their block. */
function damagedPool(): Promise<string> {
  damaged ??= (async () => {
    const { bytes } = await print('1.1.0', 'thin_dump', [recordedImage])
    const [, leaf] = /<def name="([0-9]+)">/.exec(bytes.toString()) ?? []
    const image = await readFile(recordedImage)
    image[Number(leaf) * 4096 + 100] ^= 1
    const path = join(folder, 'damaged.img')
    await writeFile(path, image)
    return path
  })()
  return damaged
}

/** Era metadata with blocks 0 and 1 written in era 4 and again in 5, the current one, and block 2 in 5 alone; nothing digested. */
async function eraMetadata(): Promise<string> {
  const writeset = (era: number, marks: number[]) => {
    const bits = Array.from({ length: 8 }, (_, block) => node('bit', { block, value: String(marks.includes(block)) }))
    return node('writeset', { era, nr_bits: 8 }, bits)
  }
  const array = node(
    'era_array',
    {},
    Array.from({ length: 8 }, (_, block) => node('era', { block, era: block % 4 }))
  )
  const attributes = { uuid: '', block_size: 128, nr_blocks: 8, current_era: 5 }
  const xml = asPrinted(node('superblock', attributes, [writeset(4, [0, 1]), writeset(5, [0, 1, 2]), array]))
  const image = join(folder, `era-${++eraImages}.img`)
  await writeFile(`${image}.xml`, xml)
  await writeFile(image, '')
  await truncate(image, 4 * 2 ** 20)
  const { status } = await print('0.9.0', 'era_restore', ['-i', `${image}.xml`, '-o', image])
  if (status !== 0) throw new Error('era_restore failed')
  return image
}
let eraImages = 0

toolTest('era_dump: both versions print what era_restore was given', async (t) => {
  const image = await eraMetadata()
  const given = await readEraDump(streamOf(await readFile(`${image}.xml`)))
  for (const version of both) t.deepEqual(await readEraDump(printing(version, 'era_dump', [image])), given)
})

toolTest('era_dump --logical of 0.9.0 gives the oldest era of several: only the dump without it tells', async (t) => {
  const image = await eraMetadata()
  const eras = async (version: Version) => {
    const { sections } = await readEraDump(printing(version, 'era_dump', ['--logical', image]))
    return sections[0].marks.slice(0, 3).map(([, era]) => era)
  }
  t.deepEqual(await eras('1.1.0'), [5, 5, 5])
  t.deepEqual(await eras('0.9.0'), [4, 4, 5])
})

toolTest(
  'era_invalidate: the versions agree where there is a writeset; 1.1.0 cannot read a metadata snapshot, and prints nothing',
  async (t) => {
    const image = await eraMetadata()
    for (const version of both) {
      const { runs } = await readInvalidate(printing(version, 'era_invalidate', ['--written-since', '5', image]))
      t.deepEqual(runs, [[0, 3]])
    }
    const { bytes, status } = await print('1.1.0', 'era_invalidate', [
      '--written-since',
      '5',
      '--metadata-snapshot',
      image
    ])
    t.not(status, 0)
    await t.throwsAsync(readInvalidate(streamOf(bytes)), { instanceOf: XmlInvalid, message: /it is empty/ })
  }
)
