/**
 * Memory that frames are made in. A thread keeps that of its last record for the next one: some megabytes of new memory
 * for each record would have the garbage collector hold up the walk.
 */
import { PairEncoder } from './packed-pairs.ts'
import { RunEncoder } from './runs.ts'

export interface FrameRoom {
  readonly runs: RunEncoder
  readonly pairs: PairEncoder
  /** For the bytes of frames, those that are not in use. */
  readonly buffers: Buffer[]
}

let spare: FrameRoom | undefined

export function newFrameRoom(): FrameRoom {
  return { runs: new RunEncoder(), pairs: new PairEncoder(), buffers: [] }
}

/** For one record. @param most runs, or mappings, in a frame */
export function takeFrameRoom(most: number): FrameRoom {
  const room = spare ?? newFrameRoom()
  spare = undefined
  room.runs.begin(most)
  room.pairs.begin(most)
  return room
}

/** Once all frames of the record are written. */
export function giveBackFrameRoom(room: FrameRoom): void {
  spare ??= room
}

/** Gives the memory back to the system, at the next garbage collection. */
export function forgetFrameRoom(): void {
  spare = undefined
}
