/**
 * What the dialects of all four tools have in common: they collect runs of blocks into one batch, whose memory is used
 * again, and know where in the document they are.
 */
import { mistaken } from './xml-tools.ts'
import { type Dialect, refuse, type XmlElement, type XmlTool } from './xml-stream.ts'

/** Runs that a batch has room for. */
export const BATCH_RUNS = 4096

/** @typeParam Place where in the document it may be, apart from `outside` the root element */
export abstract class RunDialect<
  Header,
  Batch extends { count: number; last?: boolean },
  Place extends string
> implements Dialect<Header, Batch> {
  abstract readonly patterns: readonly string[]
  header: Header | undefined
  protected readonly batch: Batch
  protected place: Place | 'outside' = 'outside'
  readonly #tool: XmlTool

  protected constructor(tool: XmlTool, batch: Batch) {
    this.#tool = tool
    this.batch = batch
  }

  abstract matched(pattern: number, numbers: Float64Array): void
  abstract opened(element: XmlElement): void
  abstract closed(): void

  get waiting(): Batch | undefined {
    return this.batch.last === true || this.batch.count > 0 ? this.batch : undefined
  }

  taken(): void {
    this.batch.count = 0
    if (this.batch.last === true) this.batch.last = false
  }

  get full(): boolean {
    return this.batch.last === true || this.batch.count === BATCH_RUNS
  }

  get complete(): boolean {
    return this.place === 'outside' && this.header !== undefined
  }

  /** Whether an element that does not belong here may show that another tool wrote the document. */
  protected get isOfUnknownTool(): boolean {
    return this.header === undefined
  }

  /** @throws an error about an element that does not belong here */
  protected misplaced(name: string): never {
    if (this.isOfUnknownTool) mistaken(name, this.#tool)
    refuse(`<${name}> does not belong here`)
  }
}
