/**
 * Maps of whole volumes, used as their readers use them: what a backup program trusts has to be true of every byte.
 */
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { readPoolDescription, type RecordedSnapshot, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { runAgent } from '../support/in-process.ts'
import { complaint, runCommand } from './run-command.ts'

const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const metadataPath = join(recorded, 'metadata.img')
const data = await readFile(join(recorded, 'data.img'))
// Socket paths are short by law.
const socketFolder = await mkdtemp(join(tmpdir(), 'dm-'))
const endpoint = `unix://${socketFolder}/agent.sock`
test.after.always(() => rm(socketFolder, { recursive: true }))

const snapshotNamed = (name: string) => pool.snapshots.find((each) => each.name === name)!

/** A snapshot's bytes, found through its mappings one by one. */
async function contentOf({ thin_id, size_bytes }: RecordedSnapshot): Promise<Buffer> {
  const metadata = await openPoolMetadata(metadataPath)
  try {
    const { dataBlockBytes } = metadata.superblock
    const device = await metadata.device(thin_id)
    const content = Buffer.alloc(Math.ceil(size_bytes / dataBlockBytes) * dataBlockBytes)
    for (let block = 0; block * dataBlockBytes < size_bytes; block++) {
      const leaf = await metadata.mappedLeaf(device, block)
      const at = leaf.blocks.indexOf(block)
      if (at < 0) continue
      data.copy(content, block * dataBlockBytes, leaf.data[at] * dataBlockBytes, (leaf.data[at] + 1) * dataBlockBytes)
    }
    return content.subarray(0, size_bytes)
  } finally {
    await metadata.close()
  }
}

/** The ranges of a map: from 0 to the volume's end without gaps, and neighbours of different types. */
function parseMap(stdout: string, sizeBytes: number): [start: number, length: number, type: string][] {
  const lines = stdout.trimEnd().split('\n')
  if (lines.pop() !== '# complete') throw new Error('the map is not complete')
  let end = 0
  let previous = ''
  const ranges = lines.map((line): [number, number, string] => {
    const [start, length, type] = line.split(' ')
    if (Number(start) !== end || Number(length) <= 0 || type === previous) throw new Error(`no range: ${line}`)
    end += Number(length)
    previous = type
    return [Number(start), Number(length), type]
  })
  if (end !== sizeBytes) throw new Error(`the map ends at ${end}`)
  return ranges
}

/** What borg makes of a map: data is read, zero is zeros, same is what the base has. */
function rebuilt(ranges: [number, number, string][], target: Buffer, base: Buffer): Buffer {
  return Buffer.concat(
    ranges.map(([start, length, type]) => {
      if (type === 'zero') return Buffer.alloc(length)
      if (type !== 'same') return target.subarray(start, start + length)
      if (start + length > base.length) throw new Error(`${start} ${length} same is beyond the base`)
      return base.subarray(start, start + length)
    })
  )
}

const pairs = [
  ['monday', 'tuesday'],
  ['monday', 'second-tuesday'],
  ['tides-shrunk', 'tides-grown'],
  ['tides-shrunk', 'tides-final'],
  ['tides-grown', 'tides-cut']
].map(([base, target]) => [snapshotNamed(base), snapshotNamed(target)] as const)

test("borg's maps and plain ones give the target's bytes, from metadata and from an agent", async (t) => {
  await runAgent(t, { listen: [endpoint], recorded: { x: recorded } })
  for (const [base, target] of pairs) {
    const [older, newer] = [await contentOf(base), await contentOf(target)]
    t.is(createHash('sha256').update(newer).digest('hex'), target.sha256)
    const sizes = ['--size', String(target.size_bytes), '--base-size', String(base.size_bytes)]
    for (const words of [
      ['delta', String(base.thin_id), String(target.thin_id), '--metadata', metadataPath, ...sizes],
      ['delta', `x/${base.name}`, `x/${target.name}`, '--endpoint', endpoint]
    ]) {
      const borg = await runCommand([...words, '-o', 'borg-map'])
      t.is(borg.status, 0, borg.stderr)
      const ranges = parseMap(borg.stdout, target.size_bytes)
      t.true(ranges.some(([, , type]) => type === 'same') && ranges.some(([, , type]) => type === 'data'))
      t.true(rebuilt(ranges, newer, older).equals(newer), `${base.name} to ${target.name}`)
      const plain = parseMap((await runCommand([...words, '-o', 'ranges'])).stdout, target.size_bytes)
      t.true(plain.every(([, , type]) => type === 'changed' || type === 'same'))
    }
    for (const format of ['ranges', 'borg-map']) {
      const full = await runCommand(['allocated', `x/${target.name}`, '--endpoint', endpoint, '-o', format])
      t.true(rebuilt(parseMap(full.stdout, target.size_bytes), newer, Buffer.alloc(0)).equals(newer))
    }
  }
})

test('maps of what cannot be known, or of a part, are refused', async (t) => {
  const xml = join(socketFolder, 'delta.xml')
  for (const [words, wanted] of [
    [['delta', '--xml', xml, '--size', '1MiB', '-o', 'borg-map'], /--endpoint/],
    [['delta', '1', '2', '--metadata', metadataPath, '--starting-offset', '64KiB', '-o', 'ranges'], /--starting-offset/]
  ] as const) {
    const result = await runCommand([...words])
    t.is(result.status, 2)
    t.is(result.stdout, '')
    t.regex(complaint(result), wanted)
  }
})
