/**
 * `delta --base-record FILE TARGET` of an agent: lends it the record, so that it answers although its own file is gone.
 * Whether the record may stand for its snapshot, the agent decides.
 */
import { randomUUID } from 'node:crypto'
import { open } from 'node:fs/promises'
import { BaseRecordReader } from '../../devicemapper/thin/base-record/reader.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { PART_BYTES } from '../../grpc/record-part.ts'

/**
 * @returns the handle by which the agent knows the base
 * @throws DM_BASE_RECORD_… for a record that is of no use there; DM_READ_FAILED; what the connection throws
 */
export async function lendRecord(agent: Pick<AdminClient, 'lendBase'>, path: string): Promise<string> {
  // Another file is refused here, whatever its size.
  const reader = await BaseRecordReader.open(path)
  await reader.close()
  const lending = randomUUID()
  const file = await open(path)
  try {
    for (let offset = 0; ;) {
      const { bytesRead, buffer } = await file.read(Buffer.alloc(PART_BYTES), 0, PART_BYTES, offset)
      const isLast = bytesRead === 0
      const { handle } = await agent.lendBase({ lending, offset, part: buffer.subarray(0, bytesRead), isLast })
      if (isLast) return handle
      offset += bytesRead
    }
  } finally {
    await file.close()
  }
}
