/**
 * The data of the mock's snapshots as sparse files, so that a client can copy, restore and compare:
 * `DIR/snapshots.json` lists them, oldest first, and each image is exactly as long as its snapshot's capacity.
 */
import { type FileHandle, mkdir, open, rename, rm, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { z } from 'zod'
import { fieldsOf } from '../../config-issues.ts'
import { DeltamapperError } from '../../errors.ts'
import { readOrdinaryFile } from '../../ordinary-file.ts'
import { systemRemedy } from '../../system-errors.ts'
import { BLOCK_BYTES, contentOf, type Snapshot, type Tuple } from './history.ts'

/** One line of snapshots.json. */
export interface SnapshotImage {
  readonly id: string
  readonly volume: string
  /** Absolute path. */
  readonly image: string
}

const index = z.array(z.object({ id: z.string(), volume: z.string(), image: z.string() }))

/** How many differing ranges are told, at most. */
const RANGES_TOLD = 20

/** Bytes that are compared at a time. */
const COMPARED_AT_ONCE = 1024 * 1024

export class Images {
  readonly #folder: string
  #listed: SnapshotImage[] = []

  private constructor(folder: string) {
    this.#folder = resolve(folder)
  }

  /** Writes an image of each snapshot, and the index. What else is in the folder stays. */
  static async create(folder: string, snapshots: readonly Snapshot[]): Promise<Images> {
    const images = new Images(folder)
    await mkdir(join(images.#folder, 'images'), { recursive: true })
    for (const snapshot of snapshots) await images.#write(snapshot)
    await images.#index()
    return images
  }

  get listed(): readonly SnapshotImage[] {
    return this.#listed
  }

  async add(snapshot: Snapshot): Promise<void> {
    await this.#write(snapshot)
    await this.#index()
  }

  async remove(id: string): Promise<void> {
    const [gone] = this.#listed.filter((each) => each.id === id)
    this.#listed = this.#listed.filter((each) => each.id !== id)
    await this.#index()
    if (gone !== undefined) await rm(gone.image, { force: true })
  }

  async #write(snapshot: Snapshot): Promise<void> {
    const image = join(this.#folder, 'images', `${snapshot.id}.img`)
    const file = await open(image, 'w')
    try {
      await file.truncate(snapshot.capacityBytes)
      for (const [block, write] of snapshot.blocks) {
        const content = contentOf(write)
        // Zeroes are left to the hole, which reads the same.
        if (write !== 0) await file.write(content, 0, content.length, block * BLOCK_BYTES)
      }
    } finally {
      await file.close()
    }
    this.#listed.push({ id: snapshot.id, volume: snapshot.volume, image })
  }

  /** In one step: a reader sees the old list or the new one. */
  async #index(): Promise<void> {
    const path = join(this.#folder, 'snapshots.json')
    await writeFile(`${path}.new`, `${JSON.stringify(this.#listed, undefined, 2)}\n`)
    await rename(`${path}.new`, path)
  }
}

export interface Comparison {
  readonly expectedBytes: number
  readonly actualBytes: number
  /** The first ranges that differ, within what both have. */
  readonly differing: readonly Tuple[]
  /** Whether there are more than those. */
  readonly more: boolean
}

/**
 * Holds an image that somebody restored against the data of a snapshot.
 *
 * @throws DM_SNAPSHOT_NOT_FOUND for one that the folder does not list; DM_CONFIG_INVALID for a file that cannot be read
 */
export async function compareImage(folder: string, snapshotId: string, image: string): Promise<Comparison> {
  const listed = await readIndex(folder)
  const snapshot = listed.find(({ id }) => id === snapshotId)
  if (snapshot === undefined) {
    throw new DeltamapperError(
      'DM_SNAPSHOT_NOT_FOUND',
      `${join(folder, 'snapshots.json')} lists no snapshot ${snapshotId}`,
      `name one of ${listed.map(({ id }) => id).join(', ') || 'a folder that a mock has written'}`
    )
  }
  await using expected = await opened(snapshot.image)
  await using actual = await opened(image)
  const [expectedBytes, actualBytes] = await Promise.all(
    [expected, actual].map(async (file) => (await file.stat()).size)
  )
  const ranges = await differences(expected, actual, Math.min(expectedBytes, actualBytes))
  return { expectedBytes: expectedBytes, actualBytes: actualBytes, ...ranges }
}

/** Ranges of blocks in which two files differ, the first of them. */
async function differences(
  expected: FileHandle,
  actual: FileHandle,
  bytes: number
): Promise<Pick<Comparison, 'differing' | 'more'>> {
  const differing: [number, number][] = []
  const [one, other] = [Buffer.alloc(COMPARED_AT_ONCE), Buffer.alloc(COMPARED_AT_ONCE)]
  for (let at = 0; at < bytes; at += COMPARED_AT_ONCE) {
    const length = Math.min(COMPARED_AT_ONCE, bytes - at)
    await Promise.all([expected.read(one, 0, length, at), actual.read(other, 0, length, at)])
    if (one.compare(other, 0, length, 0, length) === 0) continue
    for (let block = 0; block < length; block += BLOCK_BYTES) {
      const end = Math.min(block + BLOCK_BYTES, length)
      if (one.compare(other, block, end, block, end) === 0) continue
      const last = differing.at(-1)
      if (last !== undefined && last[0] + last[1] === at + block) last[1] += end - block
      else if (differing.length === RANGES_TOLD) return { differing, more: true }
      else differing.push([at + block, end - block])
    }
  }
  return { differing, more: false }
}

/** @throws DM_CONFIG_INVALID */
export async function readIndex(folder: string): Promise<SnapshotImage[]> {
  const path = join(folder, 'snapshots.json')
  try {
    return fieldsOf((await readOrdinaryFile(path)).toString('utf8'), index)
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${path} cannot be used: ${(cause as Error).message.split('\n', 1)[0]}`,
      systemRemedy(cause) ?? 'name a folder that `deltamapper mock --data` has filled',
      { cause }
    )
  }
}

async function opened(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r')
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${path} cannot be read (${(cause as NodeJS.ErrnoException).code})`,
      systemRemedy(cause) ?? 'name the image that was restored',
      { cause }
    )
  }
}
