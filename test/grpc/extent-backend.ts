/**
 * A backend for the tests: answers from extents that it computes, through the same port as the agent does, and counts what it is asked.
 * Plus the server around it, on a unix socket in a folder that goes with the test.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import pino from 'pino'
import { DeltamapperError } from '../../src/errors.ts'
import { BlockMetadataEncoder } from '../../src/grpc/block-metadata.ts'
import type { AllocatedRequest, DeltaRequest } from '../../src/grpc/snapshot-metadata-methods.ts'
import { startServer, type RunningServer, type ServerOptions } from '../../src/grpc/server.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../../src/grpc/snapshot-metadata.ts'

export type Extent = readonly [offset: number, size: number]

export const capacityBytes = 1000 * 65536

/** Every other 64 KiB of the first 1000. */
export const some: Extent[] = Array.from({ length: 500 }, (_, i) => [i * 131072, 65536] as const)

/** What the snapshot of this name does when it is asked for. */
const behaviours = {
  some: () => some,
  empty: () => [],
  /** No message at all. */
  silent: () => [],
  /** More than anyone takes: 8192 extents in each of its messages. */
  *endless(): Iterable<Extent> {
    for (let offset = 0; ; offset += 131072) yield [offset, 65536]
  },
  /** Fails after three messages of 100 extents. */
  *damaged(): Iterable<Extent> {
    yield* some.slice(0, 300)
    throw new DeltamapperError('DM_METADATA_DAMAGED', 'block 7 is damaged', 'repair it')
  },
  /** A defect after one message of 100 extents. */
  *defective(): Iterable<Extent> {
    yield* some.slice(0, 100)
    throw new TypeError('undefined is not a block')
  },
  /** Never says anything until it is told to stop. */
  hanging: () => [],
  /** Never says anything, and does not listen. */
  stubborn: () => [],
  /** Waits for `letGo()` before its second message. */
  gated: () => some
}

type Name = keyof typeof behaviours

export class ExtentBackend implements SnapshotMetadataBackend {
  readonly requests: (AllocatedRequest | DeltaRequest)[] = []
  /** Messages it was asked for. */
  asked = 0
  /** Answers begun and not closed. */
  open = 0
  /** The first message that it made. */
  first: Uint8Array | undefined
  /** Why answers were aborted, in order. */
  readonly reasons: DeltamapperError[] = []
  readonly #gate = Promise.withResolvers<void>()

  letGo(): void {
    this.#gate.resolve()
  }

  async allocated(request: AllocatedRequest, signal: AbortSignal): Promise<EncodedStream> {
    return this.#answer(request.snapshotId, request, signal)
  }

  async delta(request: DeltaRequest, signal: AbortSignal): Promise<EncodedStream> {
    return this.#answer(request.targetSnapshotId, request, signal)
  }

  #answer(id: string, request: AllocatedRequest | DeltaRequest, signal: AbortSignal): EncodedStream {
    this.requests.push(request)
    if (!Object.hasOwn(behaviours, id)) {
      throw new DeltamapperError('DM_SNAPSHOT_NOT_FOUND', `there is no snapshot ${id}`, 'list what there is')
    }
    const capacity = id === 'endless' ? 2 ** 50 : capacityBytes
    if (request.startingOffset > BigInt(capacity)) {
      throw new DeltamapperError(
        'DM_OFFSET_OUT_OF_RANGE',
        `${request.startingOffset} is beyond the volume`,
        'start within it'
      )
    }
    signal.addEventListener('abort', () => this.reasons.push(signal.reason as DeltamapperError), { once: true })
    return {
      capacityBytes: capacity,
      messages: this.#messages(id as Name, capacity, request, signal),
      statistics: () => ({ nodesRead: 42 })
    }
  }

  async *#messages(
    name: Name,
    capacity: number,
    { startingOffset, maxResults }: AllocatedRequest | DeltaRequest,
    signal: AbortSignal
  ): AsyncGenerator<Uint8Array> {
    this.open++
    try {
      this.asked++
      if (name === 'silent') return
      if (name === 'stubborn') await new Promise(() => undefined)
      if (name === 'hanging') {
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)))
      }
      const perMessage = { damaged: 100, defective: 100, gated: 250 }[name as string] ?? 0
      const encoder = new BlockMetadataEncoder(capacity, maxResults > 0 ? maxResults : perMessage)
      let sent = 0
      for (const [offset, size] of behaviours[name]()) {
        if (offset + size <= Number(startingOffset)) continue
        encoder.add({ count: 1, offsets: Float64Array.of(offset), sizes: Float64Array.of(size) }, 0)
        if (!encoder.isFull) continue
        if (name === 'gated' && sent > 0) await this.#gate.promise
        yield this.#made(encoder)
        sent++
        this.asked++
      }
      if (encoder.count > 0 || sent === 0) yield this.#made(encoder)
    } finally {
      this.open--
    }
  }

  #made(encoder: BlockMetadataEncoder): Uint8Array {
    const message = encoder.finish()
    this.first ??= message
    return message
  }
}

export interface TestServer {
  readonly server: RunningServer
  readonly backend: ExtentBackend
  readonly folder: string
  readonly path: string
  readonly address: string
  /** Every log line so far, parsed. */
  readonly log: Record<string, unknown>[]
}

/** A folder that goes with the test; its path is short enough for a socket in it. */
export function temporaryFolder(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'dm-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export async function testServer(t: ExecutionContext, options: Partial<ServerOptions> = {}): Promise<TestServer> {
  const folder = temporaryFolder(t)
  const path = join(folder, 'csi.sock')
  const address = `unix://${path}`
  const backend = new ExtentBackend()
  const log: Record<string, unknown>[] = []
  const logger = pino(
    { level: 'debug' },
    { write: (line: string) => log.push(JSON.parse(line) as Record<string, unknown>) }
  )
  const server = await startServer({
    listen: [address],
    backend,
    identity: { driverName: 'test.deltamapper.dev' },
    logger,
    ...options
  })
  t.teardown(() => server.drain(0))
  return { server, backend, folder, path, address, log }
}

/** Waits until `condition` holds; returns whether it came to hold within a time that no machine should need. */
export async function eventually(condition: () => boolean, withinMs = 300_000): Promise<boolean> {
  const end = Date.now() + withinMs
  while (!condition()) {
    if (Date.now() > end) return false
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
  return true
}
