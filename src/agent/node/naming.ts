/**
 * The device-mapper names and UUIDs of the devices of owned pools. The UUID decides which device it is and that it is
 * ours; a name is for people, and anything can have it.
 */
import { checkName } from '../../../native/device.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import { isHandleName } from '../../handle.ts'

/** So that pool, slash and name fit into a handle of 128 bytes, and the UUID into device-mapper's 128. */
const MAX_POOL_NAME = 63
const MAX_NAME = 64
const POOL_PREFIX = 'DELTAMAPPER-pool-'

export function poolUuid(pool: { readonly name: string }): string {
  return `${POOL_PREFIX}${pool.name}`
}

/** Whether a device-mapper UUID is of a pool that an agent made. */
export function isOwnPoolUuid(uuid: string): boolean {
  return uuid.startsWith(POOL_PREFIX)
}

/** The name of the pool that has this UUID. */
export function poolNameOf(uuid: string): string {
  return uuid.slice(POOL_PREFIX.length)
}

/** @param thin with the id that the catalog gave it, `thin:` and a random UUID */
export function thinUuid(thin: { readonly id: string }): string {
  return `DELTAMAPPER-${thin.id.replace(':', '-')}`
}

/**
 * POOL-NAME, with the dashes of either doubled. Unambiguous: doubled dashes leave exactly one odd run of dashes, and it
 * ends just before NAME, which never starts with a dash.
 *
 * @throws DM_ARGUMENT_INVALID when that is too long
 */
export function thinDeviceName(pool: string, name: string): string {
  const device = [pool, name].map((each) => each.replaceAll('-', '--')).join('-')
  checkName(device)
  return device
}

/** @throws DM_ARGUMENT_INVALID, DM_ARGUMENT_MISSING */
export function checkPoolName(name: string): void {
  check('pool', name, MAX_POOL_NAME)
  checkName(name)
}

/** Of a volume or snapshot. @throws DM_ARGUMENT_INVALID, DM_ARGUMENT_MISSING */
export function checkThinName(name: string): void {
  check('volume or snapshot', name, MAX_NAME)
}

function check(what: string, name: string, most: number): void {
  if (name === '') throw new DeltamapperError('DM_ARGUMENT_MISSING', `the ${what} has no name`, 'give it one')
  if (isHandleName(name) && name.length <= most && !name.startsWith('-')) return
  throw invalid(
    `${JSON.stringify(name.slice(0, 200))} cannot be the name of a ${what}`,
    `use 1 to ${most} letters, digits and + _ . -, and no dash to begin with`
  )
}
