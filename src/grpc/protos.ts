/**
 * The services of csi.v1 as gRPC method definitions, loaded from our own csi.proto.
 *
 * The responses of SnapshotMetadata pass through untouched: the server gets them encoded from the walk
 * (block-metadata.ts), the client decodes them itself. Their requests become plain objects of ours, with 64-bit numbers
 * as BigInt and without the secrets, so that these cannot reach a log or an error message.
 */
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js'
import { loadSync, type PackageDefinition } from '@grpc/proto-loader'

/** Everything csi.proto declares, for server reflection and for plain clients. */
export const csiPackage: PackageDefinition = loadSync('csi/v1/csi.proto', {
  includeDirs: [`${import.meta.dirname}/protos`],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true
})

/** GetMetadataAllocatedRequest, as the fields stand on the wire: nothing has been checked. */
export interface AllocatedRequest {
  snapshotId: string
  /** Bytes; any int64. */
  startingOffset: bigint
  /** Extents per message; any int32, 0 for no wish. */
  maxResults: number
}

/** GetMetadataDeltaRequest, as the fields stand on the wire: nothing has been checked. */
export interface DeltaRequest {
  baseSnapshotId: string
  targetSnapshotId: string
  /** Bytes; any int64. */
  startingOffset: bigint
  /** Extents per message; any int32, 0 for no wish. */
  maxResults: number
}

type LoadedService = Record<string, MethodDefinition<object, object>>

const loadedSnapshotMetadata = csiPackage['csi.v1.SnapshotMetadata'] as unknown as LoadedService

export const identityName = 'csi.v1.Identity'
export const snapshotMetadataName = 'csi.v1.SnapshotMetadata'

export const identityService = csiPackage[identityName] as ServiceDefinition

export const getMetadataAllocated: MethodDefinition<AllocatedRequest, Uint8Array> = {
  ...serverStream('GetMetadataAllocated'),
  requestSerialize: ({ snapshotId, startingOffset, maxResults }) =>
    loadedSnapshotMetadata.GetMetadataAllocated.requestSerialize({
      snapshot_id: snapshotId,
      starting_offset: String(startingOffset),
      max_results: maxResults
    }),
  requestDeserialize: (bytes) => {
    const request = loadedSnapshotMetadata.GetMetadataAllocated.requestDeserialize(bytes) as {
      snapshot_id: string
      starting_offset: string
      max_results: number
    }
    return {
      snapshotId: request.snapshot_id,
      startingOffset: BigInt(request.starting_offset),
      maxResults: request.max_results
    }
  }
}

export const getMetadataDelta: MethodDefinition<DeltaRequest, Uint8Array> = {
  ...serverStream('GetMetadataDelta'),
  requestSerialize: ({ baseSnapshotId, targetSnapshotId, startingOffset, maxResults }) =>
    loadedSnapshotMetadata.GetMetadataDelta.requestSerialize({
      base_snapshot_id: baseSnapshotId,
      target_snapshot_id: targetSnapshotId,
      starting_offset: String(startingOffset),
      max_results: maxResults
    }),
  requestDeserialize: (bytes) => {
    const request = loadedSnapshotMetadata.GetMetadataDelta.requestDeserialize(bytes) as {
      base_snapshot_id: string
      target_snapshot_id: string
      starting_offset: string
      max_results: number
    }
    return {
      baseSnapshotId: request.base_snapshot_id,
      targetSnapshotId: request.target_snapshot_id,
      startingOffset: BigInt(request.starting_offset),
      maxResults: request.max_results
    }
  }
}

export const snapshotMetadataService = {
  GetMetadataAllocated: getMetadataAllocated,
  GetMetadataDelta: getMetadataDelta
} satisfies ServiceDefinition

function serverStream(name: string) {
  const { path } = loadedSnapshotMetadata[name]
  return {
    path,
    requestStream: false,
    responseStream: true,
    // grpc-js wants a Buffer; this one shares the message's memory.
    responseSerialize: (message: Uint8Array) => Buffer.from(message.buffer, message.byteOffset, message.byteLength),
    responseDeserialize: (message: Buffer): Uint8Array => message
  } as const
}
