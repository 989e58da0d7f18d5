/**
 * The rules that the messages of one SnapshotMetadata stream obey together, from any sender (CSI spec, "Metadata
 * Format" and "GetMetadata…" request fields):
 *
 * - type and capacity are the same in every message;
 * - extents ascend, do not overlap and are not empty, across messages too; of FIXED_LENGTH ones all sizes are equal;
 * - the first extent ends after the starting offset;
 * - no message holds more than `max_results` extents, if a limit was given.
 */
import { DeltamapperError } from '../errors.ts'
import { BlockMetadataType, type BlockMetadataMessage } from './block-metadata.ts'

export class StreamRules {
  readonly #startingOffset: number
  readonly #maxResults: number
  #type: number | undefined
  #capacityBytes = 0
  #previousEnd = 0
  #fixedSize = 0

  /**
   * @param startingOffset bytes, as asked for
   * @param maxResults extents per message, as asked for; 0 for no limit
   */
  constructor(startingOffset: number, maxResults: number) {
    this.#startingOffset = startingOffset
    this.#maxResults = maxResults
  }

  /**
   * Checks the next message of the stream, and throws DM_ANSWER_INVALID if it breaks a rule. It corrects one thing: an
   * extent that begins within the capacity and ends beyond it, as the last one of a FIXED_LENGTH stream may, is cut at
   * the capacity.
   */
  check(message: BlockMetadataMessage): void {
    const { type, capacityBytes, count, offsets, sizes } = message
    if (this.#type === undefined) {
      if (type !== BlockMetadataType.FIXED_LENGTH && type !== BlockMetadataType.VARIABLE_LENGTH) {
        throw broken(`block_metadata_type is ${type}`)
      }
      this.#type = type
      this.#capacityBytes = capacityBytes
    }
    if (type !== this.#type) throw broken(`block_metadata_type changes from ${this.#type} to ${type}`)
    if (capacityBytes !== this.#capacityBytes) {
      throw broken(`volume_capacity_bytes changes from ${this.#capacityBytes} to ${capacityBytes}`)
    }
    if (this.#maxResults > 0 && count > this.#maxResults) {
      throw broken(`a message holds ${count} extents, and max_results is ${this.#maxResults}`)
    }
    if (count === 0) return

    const fixed = type === BlockMetadataType.FIXED_LENGTH
    if (fixed && this.#fixedSize === 0) this.#fixedSize = sizes[0]!
    const isFirst = this.#previousEnd === 0
    if (isFirst && sizes[0] > 0 && offsets[0] + sizes[0] <= this.#startingOffset) {
      throw broken(
        `the first extent, ${at(offsets[0], sizes[0])}, ends before the starting offset ${this.#startingOffset}`
      )
    }
    let previousEnd = this.#previousEnd
    for (let i = 0; i < count; i++) {
      const offset = offsets[i]
      const size = sizes[i]
      if (size === 0) throw broken(`the extent at ${offset} is empty`)
      if (offset < previousEnd)
        throw broken(`the extent ${at(offset, size)} begins before ${previousEnd}, where one ended`)
      if (fixed && size !== this.#fixedSize) {
        throw broken(`the extent ${at(offset, size)} is FIXED_LENGTH, and others have ${this.#fixedSize} bytes`)
      }
      previousEnd = offset + size
      if (previousEnd > capacityBytes) {
        if (offset >= capacityBytes)
          throw broken(`the extent ${at(offset, size)} lies beyond the capacity ${capacityBytes}`)
        sizes[i] = capacityBytes - offset
      }
    }
    this.#previousEnd = previousEnd
  }
}

function at(offset: number, size: number): string {
  return `of ${size} bytes at ${offset}`
}

function broken(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_ANSWER_INVALID',
    `the answer breaks the rules of CSI: ${what}`,
    'do not use what was received of this answer; take a full backup, and report it to the makers of the server'
  )
}
