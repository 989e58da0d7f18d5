/**
 * What a snapshot is to this node, in a word that both sides make for themselves. Whoever reads a snapshot's data from
 * a device (`deltamapper nbd`) says with each question which device that is. A handle alone can stand for one thing to
 * the agent and for another below /dev: for a recorded pool, or a snapshot of the same name that was taken since.
 */
import type { DeviceNumber } from '../../native/device.ts'
import { DeltamapperError } from '../errors.ts'

/** @param metadata of its pool @param thinId in there */
export function namedThin({ major, minor }: DeviceNumber, thinId: number): string {
  return `thin:${major}:${minor}:${thinId}`
}

/** @param uuid of the snapshot's own device, as device-mapper has it */
export function namedClassic(uuid: string): string {
  return `classic:${uuid}`
}

/** @param id of the catalog's record, which is never used again */
export function namedTracked(id: string): string {
  return id
}

/**
 * @param handle as the client asked for it
 * @param meant what it has the data of; undefined where it did not say
 * @param found what the handle stands for here; undefined where there is no device
 * @throws DM_NO_SUCH_DEVICE where they are two things
 */
export function checkIsMeant(handle: string, meant: string | undefined, found: string | undefined): void {
  if (meant === undefined || meant === found) return
  throw new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `what the agent calls ${handle} is not what its device has: another source of the agent has that name, or the snapshot was taken anew`,
    "name the snapshot's own block device with --device, or begin again"
  )
}
