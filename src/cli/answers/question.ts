/**
 * What `allocated` and `delta` are asked on the command line, whoever answers it.
 */
import type { Engine } from '../../devicemapper/tools/engine.ts'
import type { TlsOptions } from '../command-line/endpoint.ts'

/**
 * What the target has allocated, or what changed since the base. They are named by snapshot handles for an endpoint, and by thin device ids
 * for metadata. XML may name them itself.
 */
export interface Question {
  ask: 'allocated' | 'delta'
  base?: string | undefined
  target?: string | undefined
}

/** A question that names everything it is about. */
export interface NamedQuestion {
  base: string | undefined
  target: string
}

/** What the command line may say of it. Sizes and offsets in bytes. */
export interface AnswerOptions extends TlsOptions {
  endpoint?: string
  metadata?: string
  xml?: string
  /** An era: of an era device, what was written to since. */
  since?: number
  /** The store of a classic snapshot, the base; and that of the target. */
  cow?: string
  targetCow?: string
  /** What both stores have is told apart by its old contents. */
  compare?: boolean
  /** Of an era device, where the XML does not say it. */
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

/** Says on the side, in a line of its own, what the answer rests on. */
export type Remark = (text: string) => void
