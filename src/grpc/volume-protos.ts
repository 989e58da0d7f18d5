/**
 * Controller and Node of csi.v1, from our own volumes.proto: for a conformance run that makes volumes, and for the
 * mock driver. Apart from protos.ts, so that an agent's reflection names only what an agent serves.
 */
import type { MethodDefinition } from '@grpc/grpc-js'
import { loadSync, type PackageDefinition } from '@grpc/proto-loader'

export const volumesPackage: PackageDefinition = loadSync('csi/v1/volumes.proto', {
  includeDirs: [`${import.meta.dirname}/protos`],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true
})

/** By the name of the call. */
export type Methods = Record<string, MethodDefinition<object, object>>

export const controllerMethods = volumesPackage['csi.v1.Controller'] as unknown as Methods
export const nodeMethods = volumesPackage['csi.v1.Node'] as unknown as Methods
