/**
 * A live pool whose snapshots are as fragmented as can be, so that answers about it are long: every other block is mapped, each an
 * extent of its own. Its metadata is written by thin_restore, which takes a hundredth of the time that the writes would; its data
 * device is the zero target, which takes no room.
 */
import { once } from 'node:events'
import { createWriteStream, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createDevice, createLinear, removeDevice, run, thinPoolTable, thinTable } from './dmsetup.ts'
import { blockBytes, type Content, type RawThin } from './raw-pool.ts'

/** Of every so many blocks one was changed between two snapshots. */
const CHANGED_EVERY = [2, 3] as const

export interface FragmentedPool {
  readonly name: string
  /** Its snapshots, oldest first, by the names of their devices. */
  readonly snapshots: ReadonlyMap<string, RawThin>
  close(): void
}

/** @param extents how many each snapshot has */
export async function fragmentedPool(name: string, offsetBytes: number, extents: number): Promise<FragmentedPool> {
  const blocks = 2 * extents
  const dataBlocks = extents * (1 + CHANGED_EVERY.length)
  const metadataBytes = Math.ceil((extents * 3 * 24) / 2 ** 22 + 1) * 2 ** 22
  const snapshots = new Map<string, RawThin>()
  let content: Content = new Map()
  for (let extent = 0; extent < extents; extent++) content.set(2 * extent, extent)
  snapshots.set(`${name}-0`, { thinId: 0, blocks, content })
  for (const [index, every] of CHANGED_EVERY.entries()) {
    content = new Map(content)
    for (let extent = 0; extent < extents; extent += every) content.set(2 * extent, extents * (index + 1) + extent)
    snapshots.set(`${name}-${index + 1}`, { thinId: index + 1, blocks, content })
  }

  const metadata = createLinear(`${name}-metadata`, '/dev/ubda', offsetBytes, metadataBytes)
  const data = createDevice(`${name}-data`, `0 ${(dataBlocks * blockBytes) / 512} zero`)
  await restore(metadata, [...snapshots.values()], dataBlocks)
  const features = ['skip_block_zeroing', 'no_discard_passdown']
  const dataBytes = dataBlocks * blockBytes
  createDevice(name, thinPoolTable({ metadataDevice: metadata, dataDevice: data, dataBytes, blockBytes, features }))
  for (const [snapshot, { thinId }] of snapshots) {
    createDevice(snapshot, thinTable(name, thinId, blocks * blockBytes), '--readonly')
  }
  return {
    name,
    snapshots,
    close() {
      for (const each of [...snapshots.keys(), name, `${name}-data`, `${name}-metadata`]) removeDevice(each)
    }
  }
}

/** Writes a pool's metadata; a write's number is its data block. */
async function restore(metadata: string, thins: readonly RawThin[], dataBlocks: number): Promise<void> {
  const path = join(tmpdir(), 'fragmented.xml')
  const file = createWriteStream(path)
  const say = async (text: string) => {
    if (!file.write(text)) await once(file, 'drain')
  }
  await say(
    `<superblock uuid="" time="${thins.length}" transaction="${thins.length}" data_block_size="${blockBytes / 512}" nr_data_blocks="${dataBlocks}">\n`
  )
  for (const [time, { thinId, content }] of thins.entries()) {
    await say(
      `<device dev_id="${thinId}" mapped_blocks="${content.size}" transaction="${time}" creation_time="${time + 1}" snap_time="${time + 1}">\n`
    )
    let lines = ''
    for (const [block, write] of content) {
      // Written between the snapshot before this one and this one: at the time of the one before.
      const since = Math.floor(write / (content.size || 1))
      lines += `<single_mapping origin_block="${block}" data_block="${write}" time="${since}"/>\n`
      if (lines.length < 2 ** 18) continue
      await say(lines)
      lines = ''
    }
    await say(`${lines}</device>\n`)
  }
  file.end('</superblock>\n')
  await once(file, 'close')
  run('thin_restore', ['-i', path, '-o', metadata])
  rmSync(path)
}
