/**
 * What `allocated` and `delta` are asked on the command line, whoever answers it.
 */
import type { Engine } from '../../devicemapper/tools/engine.ts'
import type { TlsOptions } from '../command-line/endpoint.ts'

/**
 * The allocated blocks of the target, or the changes since the base. Snapshot handles name them for an endpoint, thin
 * device ids for metadata. XML may name them itself.
 */
export interface Question {
  ask: 'allocated' | 'delta'
  base?: string | undefined
  target?: string | undefined
}

/** A question with all its names. */
export interface NamedQuestion {
  base: string | undefined
  target: string
}

/** The options of the command line. Sizes and offsets in bytes. */
export interface AnswerOptions extends TlsOptions {
  endpoint?: string
  metadata?: string
  xml?: string
  /** An era: for an era device, since when it was written. */
  since?: number
  /** The store of a classic snapshot, the base; and that of the target. */
  cow?: string
  targetCow?: string
  /** What both stores have is told apart by its old contents. */
  compare?: boolean
  /** Of an era device, if the XML does not have it. */
  blockSize?: number
  size?: number
  baseSize?: number
  /** A base that is gone, by its record. */
  baseRecord?: string
  liveRoot?: boolean
  engine?: Engine
  startingOffset?: number
  maxResults?: number
}

/** Prints a remark on the basis of the answer, in a line of its own. */
export type Remark = (text: string) => void
