/**
 * Volumes and snapshots through the driver's own Controller and Node services, in block mode, as an orchestrator
 * would: CreateVolume, ControllerPublish where there is one, NodeStage where there is one, NodePublish, and back.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { fieldsOf } from '../config-issues.ts'
import { DeltamapperError } from '../errors.ts'
import { readOrdinaryFile } from '../ordinary-file.ts'
import { systemRemedy } from '../system-errors.ts'
import type { Asker } from './asker.ts'
import { ended } from './rule.ts'
import { isOk } from './run.ts'
import type { Storage } from './storage.ts'

const strings = z.record(z.string(), z.string())

const contentSchema = z.strictObject({
  /** Of CreateVolume, as a StorageClass has them. */
  parameters: strings.default({}),
  snapshot_parameters: strings.default({}),
  /** By the name of csi-sanity's secrets file: CreateVolumeSecret and so on. */
  secrets: z.record(z.string(), strings).default({}),
  /** Segments of where volumes have to be reachable. */
  topology: strings.optional(),
  staging_dir: z.string(),
  target_dir: z.string()
})

export type ContentConfig = z.infer<typeof contentSchema>

const BLOCK = { block: {}, access_type: 'block', access_mode: { mode: 'SINGLE_NODE_WRITER' } }

/** @throws DM_CONFIG_INVALID */
export async function readContentConfig(path: string): Promise<ContentConfig> {
  try {
    return fieldsOf((await readOrdinaryFile(path)).toString('utf8'), contentSchema)
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${path} cannot be used: ${(cause as Error).message.replaceAll(/\s+/g, ' ')}`,
      systemRemedy(cause) ?? 'docs/conformance.md has an example',
      { cause }
    )
  }
}

/** A volume that is published here. */
interface Published {
  readonly id: string
  readonly context: object
  readonly staging: string
  readonly target: string
}

export class CsiStorage implements Storage {
  readonly #asker: Asker
  readonly #config: ContentConfig
  readonly #volumes = new Map<string, Published>()
  #capabilities: { readonly controller: Set<string>; readonly node: Set<string>; readonly nodeId: string } | undefined

  constructor(asker: Asker, config: ContentConfig) {
    this.#asker = asker
    this.#config = config
  }

  async create(volume: string, sizeBytes: number): Promise<string> {
    return this.#make(volume, { capacity_range: { required_bytes: String(sizeBytes) } })
  }

  async restore(snapshotId: string, volume: string): Promise<string> {
    return this.#make(volume, { volume_content_source: { snapshot: { snapshot_id: snapshotId }, type: 'snapshot' } })
  }

  async snapshot(volume: string, snapshot: string): Promise<string> {
    const source_volume_id = this.#volumes.get(volume)!.id
    const request = { source_volume_id, name: snapshot, parameters: this.#config.snapshot_parameters }
    const { snapshot: taken } = (await this.#call('Controller/CreateSnapshot', request)) as {
      snapshot: { snapshot_id: string; ready_to_use: boolean }
    }
    for (let tries = 0; !taken.ready_to_use && tries < 60; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 500))
      const again = (await this.#call('Controller/CreateSnapshot', request)) as { snapshot: { ready_to_use: boolean } }
      if (again.snapshot.ready_to_use) break
    }
    return taken.snapshot_id
  }

  async deleteSnapshot(snapshotId: string): Promise<void> {
    await this.#call('Controller/DeleteSnapshot', { snapshot_id: snapshotId })
  }

  async deleteVolume(volume: string): Promise<void> {
    const published = this.#volumes.get(volume)
    if (published === undefined) return
    const { id, staging, target } = published
    const { controller, node, nodeId } = await this.#known()
    await this.#call('Node/NodeUnpublishVolume', { volume_id: id, target_path: target })
    if (node.has('STAGE_UNSTAGE_VOLUME')) {
      await this.#call('Node/NodeUnstageVolume', { volume_id: id, staging_target_path: staging })
    }
    if (controller.has('PUBLISH_UNPUBLISH_VOLUME')) {
      await this.#call('Controller/ControllerUnpublishVolume', { volume_id: id, node_id: nodeId })
    }
    await this.#call('Controller/DeleteVolume', { volume_id: id })
    this.#volumes.delete(volume)
  }

  async #make(name: string, what: object): Promise<string> {
    const { parameters, topology, staging_dir, target_dir } = this.#config
    const { controller, node, nodeId } = await this.#known()
    const place = topology && { requisite: [{ segments: topology }], preferred: [{ segments: topology }] }
    const { volume } = (await this.#call('Controller/CreateVolume', {
      name,
      ...what,
      parameters,
      volume_capabilities: [BLOCK],
      ...(place && { accessibility_requirements: place })
    })) as { volume: { volume_id: string; volume_context: object } }
    const id = volume.volume_id
    const [staging, target] = [join(staging_dir, name), join(target_dir, name, 'device')]
    this.#volumes.set(name, { id, context: volume.volume_context, staging, target })
    const attach = { volume_id: id, node_id: nodeId, volume_capability: BLOCK, volume_context: volume.volume_context }
    const { publish_context } = controller.has('PUBLISH_UNPUBLISH_VOLUME')
      ? ((await this.#call('Controller/ControllerPublishVolume', attach)) as { publish_context: object })
      : { publish_context: {} }
    // The orchestrator makes the staging folder and the folder of the target; the driver makes the target (CSI
    // specification).
    await mkdir(staging, { recursive: true })
    await mkdir(join(target_dir, name), { recursive: true })
    const usual = { volume_id: id, publish_context, volume_capability: BLOCK, volume_context: volume.volume_context }
    const stages = node.has('STAGE_UNSTAGE_VOLUME')
    if (stages) await this.#call('Node/NodeStageVolume', { ...usual, staging_target_path: staging })
    await this.#call('Node/NodePublishVolume', {
      ...usual,
      ...(stages && { staging_target_path: staging }),
      target_path: target
    })
    return target
  }

  async #known() {
    if (this.#capabilities !== undefined) return this.#capabilities
    const names = (response: object) =>
      new Set(
        (response as { capabilities: { rpc?: { type: string } }[] }).capabilities.map(({ rpc }) => rpc?.type ?? '')
      )
    const controller = names(await this.#call('Controller/ControllerGetCapabilities', {}))
    const node = names(await this.#call('Node/NodeGetCapabilities', {}))
    const { node_id } = (await this.#call('Node/NodeGetInfo', {})) as { node_id: string }
    return (this.#capabilities = { controller, node, nodeId: node_id })
  }

  /** @throws Error with the status */
  async #call(method: string, request: object): Promise<object> {
    const secrets = this.#config.secrets[`${method.split('/')[1]}Secret`]
    const { end, response } = await this.#asker.unary('content', method, { ...request, ...(secrets && { secrets }) })
    if (!isOk(end) || response === null) throw new Error(`${method}: ${ended(end)}`)
    return response
  }
}
