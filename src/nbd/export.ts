/**
 * What a client can connect to: one snapshot's data, under a name, with what is known of its ranges.
 */
import type { StatusMap } from './status-map.ts'

/** A part of a volume: bytes `[offset, offset + size)`. */
export interface Part {
  readonly offset: number
  readonly size: number
  /** Where it is in what is read, in bytes; undefined where there is nothing, which reads as zeros. */
  readonly position: number | undefined
}

/** Where a snapshot's bytes come from. */
export interface ExportData {
  /** A range, cut where what it is made of lies apart. Ascending, without gaps. @throws what finding it throws */
  parts(offset: number, size: number): Promise<Part[]>
  /**
   * Reads a part that has a position.
   *
   * @param into page-aligned, with room for 8 KiB more than the part
   * @returns its bytes, somewhere in `into`
   */
  read(part: Part, into: Buffer): Promise<Buffer>
}

export interface Export {
  readonly name: string
  /** For people. */
  readonly description: string
  readonly sizeBytes: number
  /** What it is best read in, in bytes: a power of two of 512 or more. */
  readonly preferredBytes: number
  /** By their full names. */
  readonly contexts: ReadonlyMap<string, StatusMap>
  readonly data: ExportData
}
