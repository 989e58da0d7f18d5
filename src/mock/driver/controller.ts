/**
 * The Controller service of the mock, as far as snapshots go: CreateSnapshot, DeleteSnapshot and ListSnapshots of the
 * volumes that it has. Volumes are made and removed by nobody.
 */
import { type History, NoSuchThing, type Snapshot } from './history.ts'
import type { Images } from './images.ts'
import { refused } from './question.ts'

interface ListRequest {
  readonly max_entries: number
  readonly starting_token: string
  readonly source_volume_id: string
  readonly snapshot_id: string
}

export class Controller {
  readonly #history: History
  readonly #images: Images | undefined

  /** @param images where the data of its snapshots is kept, if anywhere */
  constructor(history: History, images: Images | undefined) {
    this.#history = history
    this.#images = images
  }

  /** By the names of csi.v1. What is thrown is a refusal. */
  readonly implementation: Record<string, (request: never) => object | Promise<object>> = {
    ControllerGetCapabilities: () => ({
      capabilities: ['CREATE_DELETE_SNAPSHOT', 'LIST_SNAPSHOTS'].map((type) => ({ rpc: { type } }))
    }),
    CreateSnapshot: async ({ source_volume_id, name }: { source_volume_id: string; name: string }) => ({
      snapshot: described(await this.#create(source_volume_id, name))
    }),
    DeleteSnapshot: async ({ snapshot_id }: { snapshot_id: string }) => {
      if (snapshot_id === '') throw refused('INVALID_ARGUMENT', 'the snapshot id is missing')
      // What is gone already was deleted as well.
      if (this.#history.delete(snapshot_id)) await this.#images?.remove(snapshot_id)
      return {}
    },
    ListSnapshots: (request: ListRequest) => this.#list(request),
    ...Object.fromEntries(
      [
        'CreateVolume',
        'DeleteVolume',
        'ControllerPublishVolume',
        'ControllerUnpublishVolume',
        'ControllerExpandVolume'
      ].map((name) => [
        name,
        () => {
          throw refused('UNIMPLEMENTED', `${name} is not implemented: the mock has its volumes already`)
        }
      ])
    )
  }

  async #create(volumeId: string, name: string): Promise<Snapshot> {
    if (volumeId === '' || name === '') throw refused('INVALID_ARGUMENT', 'a volume id and a name are needed')
    const known = this.#history.snapshots.find((snapshot) => snapshot.name === name && snapshot.volume === volumeId)
    if (known !== undefined) return known
    try {
      const snapshot = this.#history.take(volumeId, name)
      await this.#images?.add(snapshot)
      return snapshot
    } catch (thrown) {
      if (thrown instanceof NoSuchThing) throw refused('NOT_FOUND', thrown.message)
      throw thrown
    }
  }

  #list({ max_entries, starting_token, source_volume_id, snapshot_id }: ListRequest): object {
    const start = starting_token === '' ? 0 : Number(starting_token)
    const all = this.#history.snapshots.filter(
      ({ id, volume }) =>
        (snapshot_id === '' || id === snapshot_id) && (source_volume_id === '' || volume === source_volume_id)
    )
    if (!Number.isInteger(start) || start < 0 || start > all.length) {
      throw refused('ABORTED', `${starting_token} is no token of ours; list again from the beginning`)
    }
    const end = max_entries > 0 ? Math.min(start + max_entries, all.length) : all.length
    return {
      entries: all.slice(start, end).map((snapshot) => ({ snapshot: described(snapshot) })),
      next_token: end < all.length ? String(end) : ''
    }
  }
}

function described({ id, volume, capacityBytes, createdAt, ready }: Snapshot): object {
  return {
    snapshot_id: id,
    source_volume_id: volume,
    size_bytes: String(capacityBytes),
    creation_time: { seconds: String(Math.floor(createdAt.getTime() / 1000)), nanos: 0 },
    ready_to_use: ready
  }
}
