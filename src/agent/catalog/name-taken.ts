/**
 * What whoever wants a name that something else has is told: to choose another. Never to remove what has it, which is
 * in use.
 */
import { DeltamapperError } from '../../errors.ts'

/** @param has what goes by that name, as a clause */
export function nameTaken(has: string, lists?: string): DeltamapperError {
  const seen = lists === undefined ? '' : `; \`${lists}\` lists those that are taken`
  return new DeltamapperError('DM_NAME_TAKEN', has, `choose another name${seen}`)
}

/** The name of a volume or snapshot in a pool of the agent's own. */
export function thinNameTaken({ pool, name, kind }: { pool: string; name: string; kind: string }): DeltamapperError {
  return nameTaken(`pool ${pool} already has a ${kind} ${name}`, `deltamapper ${kind} list ${pool}`)
}

/** The name of a device that device-mapper has already, whoever made it. */
export function deviceNameTaken(device: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NAME_TAKEN',
    `there already is a device-mapper device ${device}`,
    `choose another name; \`dmsetup info ${device}\` tells of what goes by this one`
  )
}
