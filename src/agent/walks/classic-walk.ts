/**
 * A question about classic snapshots, answered from their stores: lists in, encoded messages out. Runs in a walker
 * thread; LVM, the kernel's word on both snapshots and the catalog are the main thread's.
 */
import { type CowStore, openCowStore } from '../../devicemapper/cow/cow-store.ts'
import { changed, type ReadStore, type SnapshotStore } from '../../devicemapper/cow/delta.ts'
import type { CompareBudget } from '../../devicemapper/cow/old-contents.ts'
import { damagedStore } from '../../devicemapper/cow/damaged-store.ts'
import type { ExtentBatch } from '../../devicemapper/extents.ts'
import type { ClassicDevices } from '../node/classic-devices.ts'
import { encodedMessages } from './encoded-messages.ts'
import type { Walk, WalkContext } from './plan.ts'
import { VouchingLooks } from './vouching-looks.ts'

export interface ClassicWalkRequest {
  /** Undefined: everything the target has, which is all of it. */
  readonly base?: ClassicDevices
  readonly target: ClassicDevices
  /** Bytes; 0 to the target's size. */
  readonly startingOffset: number
  /** The most extents in a message; 0 for as many as are good. */
  readonly maxResults: number
  /** How fast old contents are read. */
  readonly compareBytesPerSecond: number
}

/** What the main thread says before the stores are read. */
export interface BegunStores {
  readonly base?: BegunStore
  readonly target: BegunStore
  /** They are one snapshot that nobody has written into: nothing has changed. */
  readonly isSame: boolean
  /** How much may be read to compare old contents, in bytes. */
  readonly compareBytes: number
  /** What the walk may take, in bytes. */
  readonly memoryBytes: number
}

interface BegunStore {
  /** Entries that the kernel has counted. */
  readonly counted: number
  /** How many the list has to begin with as it was. */
  readonly prefix?: number
}

/** What was read, told before the first message. */
export interface ReadStores {
  readonly base?: ReadStore | undefined
  readonly target: ReadStore
}

/** The walk of classic snapshots. @throws what reading stores throws, and the main thread's refusals */
export const classicWalk: Walk<ClassicWalkRequest> = async function* (request, context) {
  const { ask, statistics } = context
  const begun = (await ask('begin')) as BegunStores
  const { memoryBytes } = begun
  await using stores = new OpenStores(request, context)
  const target = await stores.open(request.target, begun.target)
  const base = request.base && begun.base && (await stores.open(request.base, begun.base))
  const budget: CompareBudget = { bytes: begun.compareBytes, equal: 0, different: 0, left: 0 }
  const batches =
    base && !begun.isSame
      ? changed({
          ...{ base, target, startingOffset: request.startingOffset, compare: budget, signal: context.signal },
          memoryBytes,
          onRead: (baseList, targetList) => ask('read', { base: baseList, target: targetList }) as Promise<void>
        }).batches
      : alone(request, target, base, memoryBytes, context)
  const shape = { capacityBytes: target.sizeBytes, maxResults: request.maxResults }
  for await (const message of encodedMessages(batches, shape, statistics)) {
    await stores.look()
    stores.count()
    yield message
  }
  // The client may have left the last message waiting.
  await stores.look()
  const chunkBytes = [base, target].map((each) => each?.store.header.chunkBytes ?? Infinity)
  await ask('doubtful', budget.left * Math.min(...chunkBytes))
}

/**
 * The answer that needs no comparison: everything for a target alone, nothing for a snapshot and itself. Both lists go
 * on record.
 */
async function* alone(
  { startingOffset }: ClassicWalkRequest,
  target: SnapshotStore,
  base: SnapshotStore | undefined,
  memoryBytes: number,
  { ask, signal }: WalkContext
): AsyncGenerator<ExtentBatch> {
  const read = async (snapshot: SnapshotStore) => {
    let found: ReadStore | undefined
    const { batches } = changed({ base: snapshot, memoryBytes, signal, onRead: (list) => void (found = list) })
    const reading = batches[Symbol.asyncIterator]()
    while (!(await reading.next()).done);
    if (!found) throw damagedStore(snapshot.store.path, 'it is of a snapshot without a single chunk')
    return found
  }
  await ask('read', { target: await read(target), ...(base && { base: await read(base) }) })
  const { sizeBytes, store } = target
  const offset = Math.floor(startingOffset / store.header.chunkBytes) * store.header.chunkBytes
  if (base || startingOffset >= sizeBytes) return
  yield { count: 1, offsets: Float64Array.of(offset), sizes: Float64Array.of(sizeBytes - offset) }
}

/** The stores of one walk, closed together. */
class OpenStores implements AsyncDisposable {
  readonly #request: ClassicWalkRequest
  readonly #context: WalkContext
  readonly #opened: CowStore[] = []
  /** Of those, the ones that lists are read of: one for each snapshot. */
  readonly #lists: CowStore[] = []
  readonly #looks: VouchingLooks

  constructor(request: ClassicWalkRequest, context: WalkContext) {
    this.#request = request
    this.#context = context
    const reads = () => this.#opened.reduce((sum, { statistics }) => sum + statistics.readCalls, 0)
    this.#looks = new VouchingLooks(async () => this.#takeLook(), reads)
  }

  async open(devices: ClassicDevices, { counted, prefix }: BegunStore): Promise<SnapshotStore> {
    const { reading } = this.#context
    const { storePath, storeDevice, sizeBytes, chunkBytes } = devices
    const terms = { reads: reading.reads, deadlineMs: reading.readDeadlineMs, device: storeDevice }
    const store = await openCowStore(storePath, { ...terms, bytesPerSecond: reading.readBytesPerSecond })
    this.#opened.push(store)
    this.#lists.push(store)
    if (store.header.chunkBytes !== chunkBytes) {
      throw damagedStore(storePath, `its chunks are of ${store.header.chunkBytes} bytes, the kernel's of ${chunkBytes}`)
    }
    const pace = Math.min(reading.readBytesPerSecond ?? Infinity, this.#request.compareBytesPerSecond)
    const contents = await openCowStore(storePath, { ...terms, bytesPerSecond: pace })
    this.#opened.push(contents)
    return { store, contents, sizeBytes, counted, prefix }
  }

  /**
   * Whether both snapshots are still kept, before a message leaves.
   *
   * @throws the main thread's refusals; DM_COW_INVALID, DM_METADATA_DAMAGED, DM_READ_FAILED
   */
  async look(): Promise<void> {
    await this.#looks.vouch()
  }

  /** What the kernel says of them, which goes on record, and then what their stores say. */
  async #takeLook(): Promise<void> {
    await this.#context.ask('state')
    await Promise.all(this.#lists.map(async (store) => store.checkValid()))
  }

  /** Brings the walk's statistics up to date. */
  count(): void {
    const { statistics } = this.#context
    statistics.nodesRead = statistics.bytesRead = statistics.readCalls = 0
    for (const { statistics: each } of this.#opened) {
      statistics.nodesRead += each.nodesRead
      statistics.bytesRead += each.bytesRead
      statistics.readCalls += each.readCalls
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const store of this.#opened) await store.close()
  }
}
