/**
 * A small CSI driver whose volumes are files: Identity, Controller, Node and SnapshotMetadata, nothing of it from our
 * agent. Snapshots are copies, and an answer is what comparing them says. With `loop`, volumes are published as loop
 * devices, which takes root; else as links to the files.
 *
 *     node file-driver.ts SOCKET FOLDER file|loop [FAULT]
 */
import { execFile } from 'node:child_process'
import { copyFile, mkdir, open, readFile, rm, stat, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import {
  Server,
  ServerCredentials,
  type sendUnaryData,
  type ServerUnaryCall,
  type ServerWritableStream,
  status
} from '@grpc/grpc-js'
import { controllerMethods, identityMethods, metadataMethods, nodeMethods } from '../../src/grpc/loaded-protos.ts'

/** Ways to be wrong that only data shows. */
export type FileFault =
  | 'none'
  | 'loses-allocated'
  | 'loses-changed'
  | 'forgets-zeroes'
  | 'wrong-while-restored-in-use'
  | 'wrong-while-source-differs'
  | 'empty-without-base'
  | 'rounds-capacity-up'

const BLOCK_BYTES = 16 * 1024
const run = promisify(execFile)

class Refused extends Error {
  readonly code: number

  constructor(code: number, message: string) {
    super(message)
    this.code = code
  }
}

type Request = Record<string, string> & {
  capacity_range?: { required_bytes: string }
  volume_content_source?: { snapshot?: { snapshot_id: string } }
}

interface Volume {
  readonly name: string
  /** The snapshot that it was made from. */
  readonly from: string | undefined
  /** Where it is published, and through which loop device. */
  published: { target: string; device: string | undefined } | undefined
}

interface Snapshot {
  readonly id: string
  readonly volume: string
  readonly turn: number
}

/** Starts it; resolves to what stops it. */
export async function startFileDriver(
  socket: string,
  folder: string,
  how: 'file' | 'loop',
  fault: FileFault = 'none'
): Promise<() => void> {
  await mkdir(folder, { recursive: true })
  const driver = new FileDriver(folder, how === 'loop', fault)
  const server = new Server()
  server.addService(identityMethods, unaries(driver.identity))
  server.addService(controllerMethods, unaries(driver.controller))
  server.addService(nodeMethods, unaries(driver.node))
  server.addService(metadataMethods, {
    GetMetadataAllocated: (call: ServerWritableStream<Request, object>) =>
      void streamed(call, () => driver.ranges(undefined, call.request['snapshot_id'], call.request)),
    GetMetadataDelta: (call: ServerWritableStream<Request, object>) =>
      void streamed(call, () =>
        driver.ranges(call.request['base_snapshot_id'], call.request['target_snapshot_id'], call.request)
      )
  })
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) =>
      error ? reject(error) : resolve()
    )
  )
  return () => server.forceShutdown()
}

type Methods1 = Record<string, (request: Request) => Promise<object> | object>

function unaries(methods: Methods1) {
  return Object.fromEntries(
    Object.entries(methods).map(([name, method]) => [
      name,
      async (call: ServerUnaryCall<Request, object>, respond: sendUnaryData<object>) => {
        try {
          respond(null, await method(call.request))
        } catch (error) {
          respond({ code: (error as Refused).code ?? status.INTERNAL, details: (error as Error).message }, null)
        }
      }
    ])
  )
}

async function streamed(call: ServerWritableStream<Request, object>, answer: () => Promise<object[]>): Promise<void> {
  try {
    for (const message of await answer()) call.write(message)
    call.end()
  } catch (error) {
    call.emit('error', { code: (error as Refused).code ?? status.INTERNAL, details: (error as Error).message })
  }
}

class FileDriver {
  readonly #folder: string
  readonly #loop: boolean
  readonly #fault: FileFault
  readonly #volumes = new Map<string, Volume>()
  readonly #snapshots = new Map<string, Snapshot>()
  #turn = 0

  constructor(folder: string, loop: boolean, fault: FileFault) {
    this.#folder = folder
    this.#loop = loop
    this.#fault = fault
  }

  readonly identity: Methods1 = {
    GetPluginInfo: () => ({ name: 'file.example.com', vendor_version: '1' }),
    Probe: () => ({}),
    GetPluginCapabilities: () => ({
      capabilities: ['CONTROLLER_SERVICE', 'SNAPSHOT_METADATA_SERVICE'].map((type) => ({ service: { type } }))
    })
  }

  readonly controller: Methods1 = {
    ControllerGetCapabilities: () => ({
      capabilities: ['CREATE_DELETE_VOLUME', 'CREATE_DELETE_SNAPSHOT'].map((type) => ({ rpc: { type } }))
    }),
    CreateVolume: async ({ name, capacity_range, volume_content_source }) => {
      const from = volume_content_source?.snapshot?.snapshot_id
      if (from === undefined) {
        await using file = await open(this.#image(name), 'w')
        await file.truncate(Number(capacity_range?.required_bytes))
      } else await copyFile(this.#image(this.#snapshot(from).id), this.#image(name))
      this.#volumes.set(name, { name, from, published: undefined })
      return { volume: { volume_id: name, capacity_bytes: String((await stat(this.#image(name))).size) } }
    },
    DeleteVolume: async ({ volume_id }) => {
      this.#volumes.delete(volume_id)
      await rm(this.#image(volume_id), { force: true })
      return {}
    },
    CreateSnapshot: async ({ source_volume_id, name }) => {
      await copyFile(this.#image(source_volume_id), this.#image(name))
      this.#snapshots.set(name, { id: name, volume: source_volume_id, turn: ++this.#turn })
      const size_bytes = String((await stat(this.#image(name))).size)
      return { snapshot: { snapshot_id: name, source_volume_id, size_bytes, ready_to_use: true } }
    },
    DeleteSnapshot: async ({ snapshot_id }) => {
      this.#snapshots.delete(snapshot_id)
      await rm(this.#image(snapshot_id), { force: true })
      return {}
    }
  }

  readonly node: Methods1 = {
    NodeGetInfo: () => ({ node_id: 'here' }),
    NodeGetCapabilities: () => ({ capabilities: [{ rpc: { type: 'STAGE_UNSTAGE_VOLUME' } }] }),
    NodeStageVolume: () => ({}),
    NodeUnstageVolume: () => ({}),
    NodePublishVolume: async ({ volume_id, target_path }) => {
      const image = this.#image(volume_id)
      const device = this.#loop ? (await run('losetup', ['--find', '--show', image])).stdout.trim() : undefined
      await symlink(device ?? image, target_path)
      this.#volumes.get(volume_id)!.published = { target: target_path, device }
      return {}
    },
    NodeUnpublishVolume: async ({ volume_id, target_path }) => {
      const volume = this.#volumes.get(volume_id)
      await rm(target_path, { force: true })
      if (volume?.published?.device !== undefined) await run('losetup', ['--detach', volume.published.device])
      if (volume !== undefined) volume.published = undefined
      return {}
    }
  }

  /** The messages of an answer. */
  async ranges(baseId: string | undefined, targetId: string, request: Request): Promise<object[]> {
    const [startingOffset, maxResults] = [Number(request['starting_offset']), Number(request['max_results'])]
    for (const id of [baseId ?? 'none', targetId]) {
      if (id === '' || id.length > 128)
        throw new Refused(status.INVALID_ARGUMENT, `${id.slice(0, 20)} is no snapshot id`)
    }
    if (maxResults < 0) throw new Refused(status.INVALID_ARGUMENT, 'max_results is negative')
    if (this.#fault === 'empty-without-base' && baseId !== undefined && !this.#snapshots.has(baseId)) baseId = targetId
    const target = this.#snapshot(targetId)
    const base = baseId === undefined ? undefined : this.#snapshot(baseId)
    if (base !== undefined && (base.volume !== target.volume || base.turn > target.turn)) {
      throw new Refused(status.INVALID_ARGUMENT, 'they cannot be compared')
    }
    const content = await readFile(this.#image(targetId))
    const before = base === undefined ? Buffer.alloc(0) : await readFile(this.#image(base.id))
    if (startingOffset < 0 || startingOffset > content.length) throw new Refused(status.OUT_OF_RANGE, 'no such offset')
    const tuples = (await this.#spoiled(blocks(before, content), { base, target, content })).filter(
      (offset) => offset + BLOCK_BYTES > startingOffset
    )
    const capacity = content.length + (this.#fault === 'rounds-capacity-up' ? BLOCK_BYTES : 0)
    const most = Math.min(maxResults || 512, 512)
    return Array.from({ length: Math.max(Math.ceil(tuples.length / most), 1) }, (_, i) => ({
      block_metadata_type: 'VARIABLE_LENGTH',
      volume_capacity_bytes: String(capacity),
      block_metadata: tuples.slice(i * most, (i + 1) * most).map((byte_offset) => ({
        byte_offset: String(byte_offset),
        size_bytes: String(Math.min(BLOCK_BYTES, content.length - byte_offset))
      }))
    }))
  }

  /** The fault's share. */
  async #spoiled(
    offsets: number[],
    { base, target, content }: { base: Snapshot | undefined; target: Snapshot; content: Buffer }
  ): Promise<number[]> {
    const volumes = [...this.#volumes.values()]
    const fewer = offsets.slice(1)
    switch (this.#fault) {
      case 'loses-allocated':
        return base === undefined ? fewer : offsets
      case 'loses-changed':
        return base !== undefined ? fewer : offsets
      case 'forgets-zeroes':
        return offsets.filter((at) => content.subarray(at, at + BLOCK_BYTES).some((byte) => byte !== 0))
      case 'wrong-while-restored-in-use':
        return volumes.some(({ from, published }) => from === target.id && published) ? fewer : offsets
      case 'wrong-while-source-differs': {
        const newest = [...this.#snapshots.values()].every(
          ({ volume, turn }) => volume !== target.volume || turn <= target.turn
        )
        if (!newest) return offsets
        return (await readFile(this.#image(target.volume))).equals(content) ? offsets : fewer
      }
      case 'none':
      case 'empty-without-base':
      case 'rounds-capacity-up':
        return offsets
    }
  }

  #snapshot(id: string): Snapshot {
    const snapshot = this.#snapshots.get(id)
    if (snapshot === undefined) throw new Refused(status.NOT_FOUND, `there is no snapshot ${id}`)
    return snapshot
  }

  #image(name: string): string {
    return join(this.#folder, `${name}.img`)
  }
}

/** Offsets of the blocks in which two contents differ; what is behind the end of one counts as zeroes. */
function blocks(before: Buffer, after: Buffer): number[] {
  const offsets: number[] = []
  const zeroes = Buffer.alloc(BLOCK_BYTES)
  for (let at = 0; at < after.length; at += BLOCK_BYTES) {
    const old = at < before.length ? before.subarray(at, at + BLOCK_BYTES) : zeroes
    const now = after.subarray(at, at + BLOCK_BYTES)
    if (!old.subarray(0, now.length).equals(now)) offsets.push(at)
  }
  return offsets
}

if (import.meta.main) {
  const [socket = '', folder = '', how = 'file', fault = 'none'] = process.argv.slice(2)
  await startFileDriver(socket, folder, how as 'file', fault as FileFault)
  process.stdout.write('listening\n')
}
