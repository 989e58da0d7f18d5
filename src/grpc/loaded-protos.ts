/**
 * csi.v1 and Kubernetes' SnapshotMetadata as proto-loader reads them at run time, with fields by their names in the
 * proto: for a conformance run, which shows what stands on the wire, and for the mock, which breaks the rules there.
 *
 * Controller and Node are in a proto of their own, so that an agent's reflection names only what an agent serves.
 */
import type { MethodDefinition } from '@grpc/grpc-js'
import { loadSync, type PackageDefinition } from '@grpc/proto-loader'

/** By the name of the call. */
export type Methods = Record<string, MethodDefinition<object, object>>

const csi = loaded('csi/v1/csi.proto')
const volumes = loaded('csi/v1/volumes.proto')
const sidecar = loaded('snapshotmetadata/snapshotmetadata.proto')

export const identityMethods = methodsOf(csi, 'csi.v1.Identity')
export const metadataMethods = methodsOf(csi, 'csi.v1.SnapshotMetadata')
export const controllerMethods = methodsOf(volumes, 'csi.v1.Controller')
export const nodeMethods = methodsOf(volumes, 'csi.v1.Node')
export const sidecarMethods = methodsOf(sidecar, 'snapshotmetadata.SnapshotMetadata')

function loaded(file: string): PackageDefinition {
  const includeDirs = [`${import.meta.dirname}/protos`]
  return loadSync(file, { includeDirs, keepCase: true, longs: String, enums: String, defaults: true, oneofs: true })
}

function methodsOf(file: PackageDefinition, service: string): Methods {
  return file[service] as unknown as Methods
}
