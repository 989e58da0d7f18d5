/**
 * Kubernetes' SnapshotMetadata service as gRPC method definitions, loaded from our own snapshotmetadata.proto. The
 * responses have the wire format of csi.v1's and pass through undecoded, as in protos.ts.
 */
import type { MethodDefinition } from '@grpc/grpc-js'
import { loadSync, type PackageDefinition } from '@grpc/proto-loader'

export const sidecarPackage: PackageDefinition = loadSync('snapshotmetadata/snapshotmetadata.proto', {
  includeDirs: [`${import.meta.dirname}/protos`],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true
})

/** The common fields of both requests. */
interface SidecarRequest {
  readonly securityToken: string
  readonly namespace: string
  /** Bytes; any int64. */
  readonly startingOffset: bigint
  /** Extents per message; 0 for no wish. */
  readonly maxResults: number
}

export interface SidecarAllocatedRequest extends SidecarRequest {
  /** Name of a VolumeSnapshot. */
  readonly snapshotName: string
}

export interface SidecarDeltaRequest extends SidecarRequest {
  /** A CSI handle. */
  readonly baseSnapshotId: string
  /** Name of a VolumeSnapshot. */
  readonly targetSnapshotName: string
}

type LoadedService = Record<string, MethodDefinition<object, object>>

const loaded = sidecarPackage['snapshotmetadata.SnapshotMetadata'] as unknown as LoadedService

export const getSidecarAllocated = method<SidecarAllocatedRequest>('GetMetadataAllocated', (request) => ({
  snapshot_name: request.snapshotName
}))

export const getSidecarDelta = method<SidecarDeltaRequest>('GetMetadataDelta', (request) => ({
  base_snapshot_id: request.baseSnapshotId,
  target_snapshot_name: request.targetSnapshotName
}))

function method<Request extends SidecarRequest>(
  name: string,
  own: (request: Request) => object
): MethodDefinition<Request, Uint8Array> {
  const { path, requestSerialize } = loaded[name]
  return {
    path,
    requestStream: false,
    responseStream: true,
    requestSerialize: (request) =>
      requestSerialize({
        security_token: request.securityToken,
        namespace: request.namespace,
        starting_offset: String(request.startingOffset),
        max_results: request.maxResults,
        ...own(request)
      }),
    responseDeserialize: (message) => message,
    requestDeserialize: () => unserved(),
    responseSerialize: () => unserved()
  }
}

/** We are a client of this service only. */
function unserved(): never {
  throw new TypeError('this service is not served')
}
