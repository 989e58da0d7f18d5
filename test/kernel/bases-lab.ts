/**
 * What tests of bases have in common: questions with a catalog behind them, as an agent asks itself, and snapshots whose trees come back to
 * the very place where they were.
 */
import { closeSync, constants, fsyncSync, mkdtempSync, openSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { snapshotMetadataBackend } from '../../src/agent/answers/backend.ts'
import { type Catalog, openCatalog } from '../../src/agent/catalog/catalog.ts'
import { LvmReporter } from '../../src/agent/lvm/report.ts'
import { answersWith } from '../../src/agent/targets.ts'
import { catalogKnowledge } from '../../src/agent/answers/served-target.ts'
import { Sources } from '../../src/agent/answers/sources.ts'
import { Walkers } from '../../src/agent/walks/walkers.ts'
import { type Fingerprint, openPoolMetadata, sameFingerprint } from '../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { BlockMetadataMessage, decodeBlockMetadata } from '../../src/grpc/block-metadata.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../../src/grpc/snapshot-metadata.ts'
import type { Extent } from '../support/expected.ts'
import { alignedBuffer } from './dmsetup.ts'

export interface Asked {
  base?: string
  target: string
  /** In bytes; 0 by default. */
  from?: number
  /** Stops after the first message, which has one extent. */
  firstOnly?: boolean
}

/** The parts of an agent that decide about bases, with a catalog of their own. */
export class Questions {
  readonly deviceMapper = new DeviceMapper()
  readonly #walkers = new Walkers(1)
  readonly #catalog: Catalog
  readonly #backend: SnapshotMetadataBackend
  readonly #strict: SnapshotMetadataBackend
  // Neither walkers nor device-mapper's helper keep a process alive on their own.
  readonly #alive = setInterval(() => undefined, 1000)

  private constructor(catalog: Catalog) {
    this.#catalog = catalog
    const sources = new Sources(new Map(), { deviceMapper: this.deviceMapper, lvm: new LvmReporter() })
    const logger = pino({ level: 'silent' })
    this.#backend = snapshotMetadataBackend(
      sources,
      this.#walkers,
      answersWith({ knowledge: catalogKnowledge(catalog, logger) })
    )
    const strict = catalogKnowledge(catalog, logger, { strictBases: true })
    this.#strict = snapshotMetadataBackend(sources, this.#walkers, answersWith({ knowledge: strict }))
  }

  static async open(): Promise<Questions> {
    return new Questions(await openCatalog(join(mkdtempSync(join(tmpdir(), 'bases-')), 'catalog.sqlite')))
  }

  async close(): Promise<void> {
    clearInterval(this.#alive)
    await this.#walkers.close()
    await this.deviceMapper.close()
    await this.#catalog.close()
  }

  /** The extents of an answer; or the code that it ended with. */
  async ask(asked: Asked, { strict = false } = {}): Promise<readonly Extent[] | string> {
    try {
      return await extentsOf(await this.#begin(asked, strict ? this.#strict : this.#backend), asked.firstOnly)
    } catch (error) {
      if (error instanceof DeltamapperError) return error.code
      throw error
    }
  }

  async #begin(
    { base, target, from = 0, firstOnly = false }: Asked,
    backend: SnapshotMetadataBackend
  ): Promise<EncodedStream> {
    const numbers = { startingOffset: BigInt(from), maxResults: firstOnly ? 1 : 0 }
    const { signal } = new AbortController()
    return base === undefined
      ? backend.allocated({ snapshotId: target, ...numbers }, signal)
      : backend.delta({ baseSnapshotId: base, targetSnapshotId: target, ...numbers }, signal)
  }
}

async function extentsOf({ messages }: EncodedStream, firstOnly = false): Promise<Extent[]> {
  const extents: Extent[] = []
  const message = new BlockMetadataMessage()
  for await (const bytes of messages) {
    decodeBlockMetadata(bytes, message)
    for (let i = 0; i < message.count; i++) extents.push([message.offsets[i], message.sizes[i]])
    if (firstOnly) break
  }
  return extents
}

/** What a thin device is known by in its pool's live metadata. */
export async function fingerprintOf(metadataPath: string, thinId: number): Promise<Fingerprint> {
  const metadata = await openPoolMetadata(metadataPath, { liveRoot: true })
  try {
    return await metadata.fingerprint(await metadata.device(thinId))
  } finally {
    await metadata.close()
  }
}

/** Where the tree of devices begins in a pool's live metadata, a block number: about where the allocator was at the last commit. */
export async function devicesRootOf(metadataPath: string): Promise<number> {
  const metadata = await openPoolMetadata(metadataPath, { liveRoot: true })
  try {
    return metadata.superblock.mappingRoot
  } finally {
    await metadata.close()
  }
}

/** Whether it is where it was, to the last byte of its root. */
export async function cameBack(metadataPath: string, thinId: number, before: Fingerprint): Promise<boolean> {
  return sameFingerprint(await fingerprintOf(metadataPath, thinId), before)
}

const sector = alignedBuffer(4096)

/** Writes into a block, and has the pool commit it. */
export function writeCommitted(device: string, offsetBytes: number): void {
  const file = openSync(device, constants.O_RDWR | constants.O_DIRECT)
  try {
    writeSync(file, sector, 0, sector.length, offsetBytes)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}
