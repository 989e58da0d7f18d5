/**
 * The calls of Kubernetes' SnapshotMetadata service, generated from our own snapshotmetadata.proto. The responses have
 * the wire format of csi.v1's and pass through encoded. We are a client of this service only.
 */
import type { Message } from '@bufbuild/protobuf'
import {
  type GetMetadataAllocatedRequest,
  type GetMetadataDeltaRequest,
  SnapshotMetadata
} from './generated/snapshotmetadata/snapshotmetadata_pb.ts'
import { streamedMethod } from './method-definitions.ts'

type Asked<Request extends Message> = Omit<Request, keyof Message>

export const getSidecarAllocated = streamedMethod(
  SnapshotMetadata.method.getMetadataAllocated,
  (): Asked<GetMetadataAllocatedRequest> => unserved()
)

export const getSidecarDelta = streamedMethod(
  SnapshotMetadata.method.getMetadataDelta,
  (): Asked<GetMetadataDeltaRequest> => unserved()
)

function unserved(): never {
  throw new TypeError('this service is not served')
}
