/**
 * `deltamapper base save VG/LV`: the record that an agent has made, to a file that travels with the backup.
 */
import { randomUUID } from 'node:crypto'
import { open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { damagedRecord } from '../../devicemapper/thin/base-record/format.ts'
import { readWholeRecord } from '../../devicemapper/thin/base-record/reader.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { syncFolder } from '../../sync-folder.ts'
import { withAdmin } from '../command-line/agent-orders.ts'
import { counted, humanSize } from '../command-line/quantities.ts'
import { refused } from './save-base.ts'

/** @throws what the agent answers; DM_UNREACHABLE; DM_OUTPUT_FAILED; DM_BASE_RECORD_DAMAGED */
export async function saveAgentBase(
  handle: string,
  { endpoint, to }: { readonly endpoint?: string; readonly to: string }
): Promise<void> {
  const part = `${to}.${randomUUID()}.part`
  await withAdmin(endpoint, async (agent) => {
    try {
      await download(agent, handle, part, to)
      const said = await describe(part)
      await rename(part, to).catch(refused(to))
      await syncFolder(dirname(to)).catch(refused(to))
      process.stderr.write(`deltamapper: ${to}: ${said}; complete\n`)
    } finally {
      await rm(part, { force: true })
    }
  })
}

async function download(agent: AdminClient, handle: string, path: string, to: string): Promise<void> {
  const file = await open(path, 'wx', 0o600).catch(refused(to))
  try {
    let [record, offset] = ['', 0]
    for (;;) {
      const answer = await agent.readBase({ handle, record, offset })
      if (answer.part.length === 0 && offset < answer.recordBytes) {
        throw damagedRecord(to, `the agent has sent ${offset} of its ${answer.recordBytes} bytes`)
      }
      await file.appendFile(answer.part).catch(refused(to))
      record = answer.record
      offset += answer.part.length
      if (offset >= answer.recordBytes) break
    }
    await file.sync().catch(refused(to))
  } finally {
    await file.close()
  }
}

/** @throws DM_BASE_RECORD_DAMAGED */
async function describe(path: string): Promise<string> {
  const { header, bytes } = await readWholeRecord(path)
  const { mappedBlocks, sizeBytes } = header.device
  return `${counted(mappedBlocks, 'block')} of a device of ${humanSize(sizeBytes)}, in ${humanSize(bytes)}`
}
