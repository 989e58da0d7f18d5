/**
 * Checks names from callers before they become part of a path or a connection. `..` would be another path, and an empty
 * name a list. A malformed address would be a network error for as long as it is tried.
 */
import { DeltamapperError } from '../errors.ts'
import { parseHostPort } from '../grpc/address.ts'

/** RFC 1123, as the API server takes them: a label for namespaces, labels with dots for most other names. */
const label = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/
const subdomain = /^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$/
const longestSubdomain = 253

/** @throws DM_ARGUMENT_MISSING, DM_ARGUMENT_INVALID */
export function checkNamespace(name: string): void {
  if (name === '') throw missing('namespace')
  if (!label.test(name)) {
    throw invalid(
      name,
      'name of a namespace',
      'it is of at most 63 small letters, digits and - (kubectl get namespaces)'
    )
  }
}

/** @throws DM_ARGUMENT_MISSING, DM_ARGUMENT_INVALID */
export function checkSnapshotName(name: string): void {
  if (name === '') throw missing('name of the VolumeSnapshot')
  if (!isObjectName(name)) {
    throw invalid(
      name,
      'name of a VolumeSnapshot',
      `it is of at most ${longestSubdomain} small letters, digits, - and . (kubectl get volumesnapshots -A)`
    )
  }
}

/** The CSI handle of a base; only the driver understands its content. @throws DM_ARGUMENT_MISSING */
export function checkHandle(handle: string): void {
  if (handle === '') throw missing('handle of the base')
}

/** NAMESPACE/NAME. @throws DM_ARGUMENT_INVALID */
export function checkServiceAccount(text: string): void {
  const [namespace, name, ...rest] = text.split('/')
  if (name !== undefined && rest.length === 0 && label.test(namespace) && isObjectName(name)) return
  throw new DeltamapperError(
    'DM_ARGUMENT_INVALID',
    `${JSON.stringify(text)} names no service account`,
    'write it as NAMESPACE/NAME'
  )
}

/** HOST:PORT. @throws DM_ARGUMENT_INVALID */
export function checkAddress(text: string): void {
  if (parseHostPort(text) !== undefined) return
  throw invalid(text, 'address of a service', 'write it as HOST:PORT, as in localhost:6443')
}

function isObjectName(name: string): boolean {
  return name.length <= longestSubdomain && subdomain.test(name)
}

function missing(what: string): DeltamapperError {
  return new DeltamapperError('DM_ARGUMENT_MISSING', `the ${what} is empty`, 'give it')
}

function invalid(text: string, what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_ARGUMENT_INVALID', `${JSON.stringify(text)} is no ${what}`, remedy)
}
