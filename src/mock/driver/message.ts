/**
 * Messages of the SnapshotMetadata service as the mock sends them: protobuf by hand, since most of what a liar says
 * no encoder would write. The field numbers are those of block-metadata.ts.
 */
import type { Tuple } from './history.ts'

export interface Message {
  /** BlockMetadataType as a number; 0 is UNKNOWN. */
  readonly type: number
  readonly capacityBytes: number
  readonly tuples: readonly Tuple[]
  /** Bytes of a field that nobody knows, to make the message as large. */
  readonly paddingBytes?: number
}

export const typeNumbers = { FIXED_LENGTH: 1, VARIABLE_LENGTH: 2 } as const

const FIELD_NOBODY_KNOWS = 15

export function encodeMessage({ type, capacityBytes, tuples, paddingBytes }: Message): Buffer {
  const bytes: number[] = []
  if (type !== 0) bytes.push(0x08, ...varint(type))
  if (capacityBytes !== 0) bytes.push(0x10, ...varint(capacityBytes))
  for (const [offset, size] of tuples) {
    const tuple = [...(offset === 0 ? [] : [0x08, ...varint(offset)]), ...(size === 0 ? [] : [0x10, ...varint(size)])]
    bytes.push(0x1a, tuple.length, ...tuple)
  }
  if (paddingBytes === undefined) return Buffer.from(bytes)
  const tag = [(FIELD_NOBODY_KNOWS << 3) | 2, ...varint(paddingBytes)]
  return Buffer.concat([Buffer.from([...bytes, ...tag]), Buffer.alloc(paddingBytes)])
}

/** An int64; negative ones take ten bytes. */
function varint(value: number): number[] {
  let rest = BigInt.asUintN(64, BigInt(value))
  const bytes: number[] = []
  for (; rest > 0x7fn; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80)
  bytes.push(Number(rest))
  return bytes
}
