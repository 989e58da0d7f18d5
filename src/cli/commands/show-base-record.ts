/**
 * `inspect` of a base record: what it stands for, and that it is whole.
 */
import { basename } from 'node:path'
import { BaseRecordReader } from '../../devicemapper/thin/base-record/reader.ts'
import { facts } from '../output/columns.ts'
import { moment as written } from '../output/moment.ts'
import { counted, humanSize } from '../command-line/quantities.ts'
import type { TextOutput } from '../output/text-output.ts'

/** @throws DM_BASE_RECORD_DAMAGED, DM_READ_FAILED */
export async function showBaseRecord(
  path: string,
  output: 'table' | 'json',
  text: TextOutput,
  signal: AbortSignal
): Promise<void> {
  const record = await BaseRecordReader.open(path)
  try {
    let runs = 0
    for (let each; (each = await record.next()) !== undefined; runs += each.runs) signal.throwIfAborted()
    text.text(output === 'json' ? `${JSON.stringify(asJson(record, runs))}\n` : asText(record, runs))
    await text.flush()
  } finally {
    await record.close()
  }
}

function asJson({ path, header: { pool, device, handles, madeAt }, bytes }: BaseRecordReader, runs: number) {
  const { externalOrigin: origin } = device
  return {
    kind: 'base record',
    path,
    record_bytes: bytes,
    made_at: new Date(madeAt).toISOString(),
    handles,
    size_bytes: device.sizeBytes,
    mapped_blocks: device.mappedBlocks,
    runs,
    id: device.id,
    transaction_id: String(device.transactionId),
    creation_time: device.creationTime,
    identity: device.identity ?? null,
    volume: device.volume ?? null,
    external_origin: origin ? { identity: origin.identity, read_only: origin.readOnly } : null,
    pool: {
      identity: pool.identity ?? null,
      data_block_size_bytes: pool.dataBlockBytes,
      data_blocks: pool.dataBlocks ?? null,
      metadata_uuid: pool.metadataUuid ?? null,
      data_uuid: pool.dataUuid ?? null,
      time: pool.moment.time,
      transaction_id: String(pool.moment.transactionId)
    }
  }
}

function asText({ path, header: { pool, device, handles, madeAt }, bytes }: BaseRecordReader, runs: number): string {
  const { time, transactionId } = pool.moment
  return facts([
    ['base record', basename(path)],
    ['made', written(madeAt)],
    ['stands for', handles.length > 0 ? handles.join(', ') : `thin device ${device.id}`],
    ['size', humanSize(device.sizeBytes)],
    [
      'maps',
      `${counted(device.mappedBlocks, 'block')} of ${humanSize(pool.dataBlockBytes)}, in ${counted(runs, 'run')}`
    ],
    ['created at', `pool time ${device.creationTime}, transaction ${device.transactionId}`],
    ['read at', `pool time ${time}, transaction ${transactionId}`],
    ['pool', pool.identity ?? 'not known: read from metadata, which does not say'],
    ['record', `${humanSize(bytes)}; complete`]
  ])
}
