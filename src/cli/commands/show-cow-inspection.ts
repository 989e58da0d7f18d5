/**
 * Looks into the store of a classic snapshot and shows what is there.
 */
import { type CowInspection, type CowStore, openCowStore } from '../../devicemapper/cow/cow-store.ts'
import { counted, exactSize, humanSize, percentage } from '../command-line/quantities.ts'
import { oneLine } from '../command-line/failure.ts'
import type { TextOutput } from '../output/text-output.ts'

/** @throws what reading a store throws */
export async function showCowInspection(
  path: string,
  format: 'table' | 'json',
  output: TextOutput,
  signal: AbortSignal
): Promise<void> {
  const store = await openCowStore(path)
  try {
    const inspection = await store.inspect(signal)
    output.text(format === 'json' ? asJson(store, inspection) : asTable(store, inspection))
    await output.flush()
  } finally {
    await store.close()
  }
}

function asTable({ path, header }: CowStore, found: CowInspection): string {
  const { entries, usedChunks, storeChunks, lowest, highest, digest } = found
  const { chunkBytes, chunkSectors } = header
  const range = lowest === undefined ? 'none' : `${counted(entries, 'chunk')}, from ${lowest} to ${highest}`
  const facts = [
    ['store', `${oneLine(path)}, of a classic snapshot`],
    ['chunk size', `${exactSize(chunkBytes)} (${counted(chunkSectors, 'sector')})`],
    ['copied', `${range} of the origin (${humanSize(entries * chunkBytes)})`],
    ['used', `${usedChunks} of ${storeChunks} chunks (${percentage(usedChunks, storeChunks)})`],
    ['digest', `sha256:${digest}`]
  ]
  return `${facts.map(([name, value]) => `${name.padEnd(18)}${value}\n`).join('')}complete\n`
}

function asJson({ path, header }: CowStore, found: CowInspection): string {
  const { entries, usedChunks, storeChunks, lowest, highest, digest } = found
  const shown = {
    path,
    target: 'dm-snapshot',
    header: { chunk_size_bytes: header.chunkBytes },
    entries,
    entries_sha256: digest,
    lowest_chunk: lowest ?? null,
    highest_chunk: highest ?? null,
    used_chunks: usedChunks,
    store_chunks: storeChunks
  }
  return `${JSON.stringify(shown)}\n`
}
