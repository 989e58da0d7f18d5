/**
 * Runs inside the kernel lab (kernel-grown-pool.ts starts it): lets dm-thin itself grow the metadata of a large volume and of snapshots
 * that differ from it in known ways. Leaves metadata.img and pool.json.
 *
 *   node bench/grow-pool.ts --mappings N --out FOLDER
 *
 * Data goes to dm-zero, which throws it away: only metadata costs anything. Each kind of change is made in a writable snapshot of
 * `base`, and then a snapshot of that is taken, so that all the snapshots are untouched ones.
 */
import { closeSync, constants, openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  alignedBuffer,
  copyOut,
  createDevice,
  createLinear,
  removeDevice,
  run,
  sectorBytes,
  sendMessage,
  thinPoolTable,
  thinTable
} from '../test/kernel/dmsetup.ts'
import { Random } from '../test/support/random.ts'

const mebibyte = 2 ** 20
const blockBytes = 65536
/** The longest run of blocks that one write maps: the kernel handles its blocks side by side. */
const blocksAtOnce = 64
const buffer = alignedBuffer(blocksAtOnce * blockBytes)

const { values: options } = parseArgs({ options: { mappings: { type: 'string' }, out: { type: 'string' } } })
if (options.mappings === undefined || options.out === undefined) {
  throw new Error('usage: grow-pool.ts --mappings N --out FOLDER (inside the kernel lab)')
}
const mappings = Number(options.mappings)
const random = new Random(20260302)

interface Run {
  begin: number
  length: number
}

// A sixth of the volume stays unmapped.
const volumeBlocks = Math.ceil(mappings * 1.2)
const sizeBytes = volumeBlocks * blockBytes
// Every block is there twice (it is rewritten once), and a little of it once more.
const dataBytes = Math.ceil(mappings * 2.3) * blockBytes
const metadataBytes = Math.ceil((mappings * 240) / mebibyte + 64) * mebibyte

// dm-thin would otherwise re-read what it cannot keep: by default the cache is 2 % of the memory.
writeFileSync('/sys/module/dm_bufio/parameters/max_cache_size_bytes', String(1536 * mebibyte))
createDevice('zero', `0 ${dataBytes / sectorBytes} zero`)
const metadataDevice = createLinear('metadata', '/dev/ubda', 0, metadataBytes)
const features = ['skip_block_zeroing', 'no_discard_passdown']
createDevice('pool', thinPoolTable({ metadataDevice, dataDevice: '/dev/mapper/zero', dataBytes, blockBytes, features }))

sendMessage('pool', 'create_thin 0')
const runs = fileLikeRuns()
timed('fill', () => writeRuns(0, inOrderOfWriting(runs)))
sendMessage('pool', 'create_snap 1 0')
sendMessage('pool', 'create_snap 2 1')
changed('clustered', 3, () => clusters(mappings / 100))
changed('scattered', 4, () => scattered(mappings / 100))
changed('rewritten', 5, () => runs)
changed('scattered-10', 6, () => scattered(mappings / 10))
sendMessage('pool', 'reserve_metadata_snap')
// Life goes on after the metadata snapshot.
writeRuns(0, scattered(1000))
console.log(run('dmsetup', ['status', 'pool']).trim())
removeDevice('pool')
timed('copy', () => copyOut(metadataDevice, join(options.out ?? '', 'metadata.img')))
removeDevice('metadata')

const described: [string, number, string][] = [
  ['base', 1, `${mappings} blocks are mapped`],
  ['identical', 2, 'nothing changed'],
  ['clustered', 3, '1 % of the blocks changed, in 40 places'],
  ['scattered', 4, '1 % of the blocks changed, all over the volume'],
  ['rewritten', 5, 'every block changed'],
  ['scattered-10', 6, '10 % of the blocks changed, all over the volume']
]
const pool = {
  format: 1,
  data_block_size_bytes: blockBytes,
  volumes: [{ name: 'grown', thin_id: 0, size_bytes: sizeBytes }],
  snapshots: described.map(([name, thin_id, description]) => {
    return { name, volume: 'grown', thin_id, size_bytes: sizeBytes, description }
  })
}
writeFileSync(join(options.out, 'pool.json'), `${JSON.stringify(pool, null, 2)}\n`)

/** Runs of blocks as files have them (from one block to 16 MiB, small ones as likely as large ones) and the gaps between them. */
function fileLikeRuns(): Run[] {
  const found: Run[] = []
  let mapped = 0
  for (let begin = 0; mapped < mappings;) {
    const length = Math.min(Math.floor(2 ** (random.fraction() * 8)), mappings - mapped, volumeBlocks - begin)
    // Gaps as long as there is room for.
    const room = volumeBlocks - begin - length - (mappings - mapped - length)
    const gap = room > 0 && random.chance(0.25) ? Math.min(room, Math.floor(2 ** (random.fraction() * 8))) : 0
    found.push({ begin, length })
    mapped += length
    begin += length + gap
  }
  return found
}

/**
 * A third of the volume is written from front to back, the rest in pieces that are in disorder near each other, a few of them much
 * later: so that nodes are split in their middle as well as at their end.
 */
function inOrderOfWriting(inPlace: readonly Run[]): Run[] {
  const third = Math.floor(inPlace.length / 3)
  const late: Run[] = []
  const soon: Run[] = []
  for (let at = third; at < inPlace.length; at += 256) {
    for (const each of random.shuffle(inPlace.slice(at, at + 256))) (random.chance(0.2) ? late : soon).push(each)
  }
  return [...inPlace.slice(0, third), ...soon, ...random.shuffle(late)]
}

/** `count` mapped blocks in 40 places. */
function clusters(count: number): Run[] {
  const each = Math.round(count / 40)
  return Array.from({ length: 40 }, () => {
    let at = random.integer(0, runs.length - 1)
    const cluster: Run[] = []
    for (let left = each; left > 0; at = (at + 1) % runs.length) {
      const { begin, length } = runs[at]
      cluster.push({ begin, length: Math.min(length, left) })
      left -= Math.min(length, left)
    }
    return cluster
  }).flat()
}

/** `count` single mapped blocks, each as likely as any other. */
function scattered(count: number): Run[] {
  const ends: number[] = []
  let total = 0
  for (const { length } of runs) ends.push((total += length))
  const chosen = new Set<number>()
  while (chosen.size < count) chosen.add(random.integer(0, total - 1))
  const inOrder = [...chosen].sort((a, b) => a - b)
  let at = 0
  return inOrder.map((index) => {
    while ((ends[at] ?? 0) <= index) at++
    const { begin, length } = runs[at]
    return { begin: begin + length - ((ends[at] ?? 0) - index), length: 1 }
  })
}

/** A snapshot of `base` with changes of its own. */
function changed(name: string, thinId: number, changes: () => Run[]): void {
  const working = thinId + 10
  sendMessage('pool', `create_snap ${working} 1`)
  timed(name, () => writeRuns(working, changes()))
  sendMessage('pool', `create_snap ${thinId} ${working}`)
  sendMessage('pool', `delete ${working}`)
}

/** Whole blocks, so that nothing needs to be copied from the block that is shared. */
function writeRuns(thinId: number, toWrite: readonly Run[]): number {
  const device = createDevice('work', thinTable('pool', thinId, sizeBytes))
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
  let blocks = 0
  for (const { begin, length } of toWrite) {
    for (let done = 0; done < length; done += blocksAtOnce) {
      const count = Math.min(blocksAtOnce, length - done)
      writeSync(file, buffer, 0, count * blockBytes, (begin + done) * blockBytes)
    }
    blocks += length
  }
  closeSync(file)
  removeDevice('work')
  return blocks
}

function timed(what: string, work: () => number | undefined | void): void {
  const start = performance.now()
  const blocks = work()
  const seconds = (performance.now() - start) / 1000
  const rate = typeof blocks === 'number' ? `, ${blocks} blocks, ${Math.round(blocks / seconds)} a second` : ''
  console.log(`${what}: ${seconds.toFixed(1)} s${rate}`)
}
