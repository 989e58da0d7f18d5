/**
 * A client of Kubernetes' SnapshotMetadata service: TLS with the authority that the cluster names, and the sidecar's
 * forms of errors.
 */
import { type Client, credentials, status as grpcStatus } from '@grpc/grpc-js'
import { DeltamapperError } from '../errors.ts'
import { parseHostPort } from './address.ts'
import { openChannelTo } from './client.ts'
import { connectionFailure } from './connection-failure.ts'
import { fromStatus, type WireStatus } from './status.ts'

/** Where a driver's sidecar is, according to its SnapshotMetadataService object. */
export interface SidecarService {
  /** HOST:PORT. The server's certificate has to be for HOST. */
  readonly address: string
  /** Certificates in PEM form. */
  readonly caCert: Buffer
}

/** gRPC's own limit, which the sidecar keeps. */
const maximumMessageBytes = 4 * 1024 * 1024

/** Go's gRPC servers, the sidecar's among them, hang up on clients that ping more often than every five minutes. */
const keepalive = { 'grpc.keepalive_time_ms': 330_000, 'grpc.keepalive_timeout_ms': 20_000 }

/**
 * A channel to a sidecar. It connects with the first call, and again after a loss.
 *
 * @param at HOST:PORT where it is reached from here, if that is not the address of its certificate
 * @throws DM_CLUSTER_SETUP for a malformed address or malformed certificates
 */
export function openSidecarChannel({ address, caCert }: SidecarService, at = address): Client {
  const host = parseHostPort(address)?.host
  if (host === undefined) {
    throw new DeltamapperError(
      'DM_CLUSTER_SETUP',
      `the address of the snapshot metadata service, ${JSON.stringify(address)}, is not HOST:PORT`,
      'correct spec.address of its SnapshotMetadataService (kubectl edit snapshotmetadataservice DRIVER)'
    )
  }
  let channelCredentials
  try {
    if (!/-----BEGIN CERTIFICATE-----/.test(caCert.toString('latin1'))) throw new Error('it holds no PEM certificate')
    channelCredentials = credentials.createSsl(caCert)
  } catch (cause) {
    throw new DeltamapperError(
      'DM_CLUSTER_SETUP',
      `the caCert of the snapshot metadata service at ${address} cannot be used: ${(cause as Error).message}`,
      'put the PEM of its authority into spec.caCert of its SnapshotMetadataService (deltamapper: deploy/certificates/snapshot-metadata-service.sh)',
      { cause }
    )
  }
  const elsewhere = at === address ? {} : { 'grpc.ssl_target_name_override': host, 'grpc.default_authority': address }
  return openChannelTo(`dns:${at}`, channelCredentials, {
    ...keepalive,
    ...elsewhere,
    'grpc.max_receive_message_length': maximumMessageBytes
  })
}

const denials: readonly number[] = [grpcStatus.UNAUTHENTICATED, grpcStatus.PERMISSION_DENIED]

/** How grpc-js describes a broken connection without the status UNAVAILABLE. */
const ofTheConnection: readonly number[] = [grpcStatus.INTERNAL, grpcStatus.UNKNOWN, grpcStatus.CANCELLED]
const broken = /RST_STREAM|GOAWAY|ECONN|EPIPE|socket|connection/i

/** Node's words for a certificate that it does not accept (X509_verify_cert_error_string), whatever the status. */
const ofTheCertificate = /certificate|altnames/i

/** How a call to a sidecar ended. Errors that it passes on from a driver of ours keep their code. */
export function fromSidecarStatus(wire: WireStatus, address: string): DeltamapperError {
  const { code, details } = wire
  if (/^DM_[A-Z_]+: /.test(details)) return fromStatus(wire, address)
  const said = details.replaceAll(/\s+/g, ' ').trim()
  const text = said || 'no reason given'
  if (denials.includes(code)) {
    return new DeltamapperError(
      'DM_ACCESS_DENIED',
      `the snapshot metadata service at ${address} does not let us: ${text}`,
      'let the service account get volumesnapshots in the namespace; see that its token is for the audience of the SnapshotMetadataService'
    )
  }
  if (ofTheCertificate.test(said)) {
    return new DeltamapperError(
      'DM_CLUSTER_SETUP',
      `the certificate of the snapshot metadata service at ${address} is not of the authority in spec.caCert of its SnapshotMetadataService, or not for this address: ${connectionFailure(said).why}`,
      'where the authority was replaced, make that object again (deltamapper: deploy/certificates/snapshot-metadata-service.sh)'
    )
  }
  if (grpcStatus[code] === 'UNAVAILABLE' || (ofTheConnection.includes(code) && broken.test(said))) {
    return new DeltamapperError(
      'DM_UNREACHABLE',
      `the snapshot metadata service at ${address} is not available: ${connectionFailure(said).why}`,
      'ask again; if it stays, see the log of the sidecar (csi-snapshot-metadata), and that the address can be reached from here'
    )
  }
  return fromStatus(wire, address)
}
