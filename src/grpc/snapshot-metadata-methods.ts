/**
 * The calls of csi.v1.SnapshotMetadata, generated from our own csi.proto.
 *
 * The responses pass through encoded. The requests leave their secrets behind, so that these cannot reach a log or an
 * error message.
 */
import type { Message } from '@bufbuild/protobuf'
import type { ServiceDefinition } from '@grpc/grpc-js'
import {
  type GetMetadataAllocatedRequest,
  type GetMetadataDeltaRequest,
  SnapshotMetadata
} from './generated/csi/v1/csi_pb.ts'
import { streamedMethod } from './method-definitions.ts'

/** The fields of a request as they stand on the wire, without its secrets: nothing has been checked. */
type Asked<Request extends Message> = Omit<Request, keyof Message | 'secrets'>

export type AllocatedRequest = Asked<GetMetadataAllocatedRequest>
export type DeltaRequest = Asked<GetMetadataDeltaRequest>

export const getMetadataAllocated = streamedMethod(
  SnapshotMetadata.method.getMetadataAllocated,
  ({ snapshotId, startingOffset, maxResults }): AllocatedRequest => ({ snapshotId, startingOffset, maxResults })
)

export const getMetadataDelta = streamedMethod(
  SnapshotMetadata.method.getMetadataDelta,
  ({ baseSnapshotId, targetSnapshotId, startingOffset, maxResults }): DeltaRequest => ({
    baseSnapshotId,
    targetSnapshotId,
    startingOffset,
    maxResults
  })
)

export const snapshotMetadataService = {
  GetMetadataAllocated: getMetadataAllocated,
  GetMetadataDelta: getMetadataDelta
} satisfies ServiceDefinition
