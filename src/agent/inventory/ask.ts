/**
 * The examination that an agent gives over its socket.
 */
import { askInventory } from '../../grpc/inventory.ts'
import type { Examination } from './examination.ts'

/**
 * @param address of its unix socket
 * @throws the agent's error; DM_UNREACHABLE when nothing answers; DM_SERVER_FAILED when it has no such service;
 *   DM_DEADLINE_EXCEEDED; DM_CONFIG_INVALID for what is no address of a unix socket; the signal's reason
 */
export async function askForExamination(
  address: string,
  options: { deadlineMs: number; signal?: AbortSignal }
): Promise<Examination> {
  // An agent of another version may use words that this one does not know: they are shown as they are.
  return (await askInventory(address, options)) as Examination
}
