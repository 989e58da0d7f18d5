/**
 * The header of a base record: what identifies the base, as JSON.
 */
import { z } from 'zod'
import { type BaseRecordHeader, damagedRecord, MAX_TIME } from './format.ts'

const count = z.number().int().nonnegative()
const bigCount = z
  .string()
  .regex(/^\d{1,20}$/)
  .transform(BigInt)
const headerSchema = z.object({
  pool: z.object({
    identity: z.string().optional(),
    dataBlockBytes: count.positive(),
    dataBlocks: count.optional(),
    metadataUuid: z.string().optional(),
    dataUuid: z.string().optional(),
    moment: z.object({
      time: count.max(MAX_TIME),
      transactionId: bigCount,
      devices: z.base64().transform((text) => new Uint8Array(Buffer.from(text, 'base64')))
    })
  }),
  device: z.object({
    id: count,
    creationTime: count,
    transactionId: bigCount,
    mappedBlocks: count,
    sizeBytes: count,
    identity: z.string().optional(),
    volume: z.string().optional(),
    watchedSince: count.optional(),
    externalOrigin: z.object({ identity: z.string(), readOnly: z.boolean() }).optional()
  }),
  handles: z.array(z.string()),
  madeAt: count
})

/** @throws DM_BASE_RECORD_DAMAGED */
export function parseHeader(path: string, json: Buffer): BaseRecordHeader {
  let header: unknown
  try {
    header = JSON.parse(json.toString())
  } catch (error) {
    throw damagedRecord(path, 'its header is no JSON', error)
  }
  const { data, error } = headerSchema.safeParse(header)
  if (!data) throw damagedRecord(path, 'its header lacks something', error)
  const { pool, device, ...rest } = data
  return {
    ...rest,
    pool: { ...pool, identity: pool.identity },
    device: { ...device, identity: device.identity, volume: device.volume }
  }
}
