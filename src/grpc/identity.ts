/**
 * The csi.v1.Identity service: the CSI driver's name of this server, and that it serves snapshot metadata and nothing
 * else.
 *
 * The name is that of the driver whose snapshots are served: the sidecar compares it with the snapshot's driver, and
 * Kubernetes names the SnapshotMetadataService object after it. (CSI spec, "Identity Service RPC".)
 */
import { findPackageJSON } from 'node:module'
import { readFileSync } from 'node:fs'
import type { sendUnaryData, ServerUnaryCall, ServiceDefinition } from '@grpc/grpc-js'
import { status as grpcStatus } from '@grpc/grpc-js'
import { asDeltamapperError, DeltamapperError } from '../errors.ts'
import { create, type Message } from '@bufbuild/protobuf'
import {
  GetPluginCapabilitiesResponseSchema,
  GetPluginInfoResponseSchema,
  Identity,
  PluginCapability_Service_Type,
  ProbeResponseSchema
} from './generated/csi/v1/csi_pb.ts'
import { methodsOf, unaryMethod } from './method-definitions.ts'
import { toStatus } from './status.ts'

export interface IdentityOptions {
  /** Name of the CSI driver whose snapshots are served. */
  readonly driverName: string
  /** Default: the version in package.json. */
  readonly vendorVersion?: string
  /** False while starting; throws when waiting does not help. */
  readonly isReady: () => boolean | Promise<boolean>
}

type Handler = (call: ServerUnaryCall<Message, Message>, respond: sendUnaryData<Message>) => void

export class IdentityService {
  static readonly definition: ServiceDefinition = Object.fromEntries(
    methodsOf(Identity).map(([, method]) => [method.name, unaryMethod(method)])
  )

  readonly implementation: {
    GetPluginInfo: Handler
    GetPluginCapabilities: Handler
    Probe: Handler
  }

  constructor({ driverName, vendorVersion = packageVersion(), isReady }: IdentityOptions) {
    checkDriverName(driverName)
    this.implementation = {
      GetPluginInfo: (_call, respond) =>
        respond(null, create(GetPluginInfoResponseSchema, { name: driverName, vendorVersion })),
      GetPluginCapabilities: (_call, respond) =>
        respond(null, create(GetPluginCapabilitiesResponseSchema, { capabilities: [{ type: snapshotMetadata }] })),
      Probe: (_call, respond) => {
        void probe(isReady).then(
          (ready) => respond(null, create(ProbeResponseSchema, { ready })),
          // The one status for "unhealthy" in CSI, for any reason. The sidecar gives up on it.
          (error: unknown) =>
            respond({ ...toStatus(asDeltamapperError(error)), code: grpcStatus.FAILED_PRECONDITION }, null)
        )
      }
    }
  }
}

/** The one capability, as a oneof of PluginCapability. */
const snapshotMetadata = {
  case: 'service',
  value: { type: PluginCapability_Service_Type.SNAPSHOT_METADATA_SERVICE }
} as const

async function probe(isReady: IdentityOptions['isReady']): Promise<boolean> {
  return isReady()
}

/**
 * Throws DM_CONFIG_INVALID unless `name` can be a CSI driver's: at most 63 characters, letters, digits, dots and
 * dashes; the first and the last are a letter or digit.
 */
export function checkDriverName(name: string): void {
  if (!/^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$/.test(name)) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `${JSON.stringify(name)} is no CSI driver name`,
      'give the name of the driver whose snapshots are served: at most 63 letters, digits, dots and dashes, a letter first and last'
    )
  }
}

/**
 * Whether the name also satisfies the conformance tests of CSI, which are stricter than the specification: a letter
 * first and last.
 */
export function isPortableDriverName(name: string): boolean {
  return /^[A-Za-z](?:.*[A-Za-z])?$/.test(name)
}

/** The version of this package: sources and the built package lie at different depths below their package.json. */
export function packageVersion(): string {
  const path = findPackageJSON(import.meta.url)
  if (path === undefined) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      'the package has lost its package.json',
      'install deltamapper again'
    )
  }
  return (JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version
}
