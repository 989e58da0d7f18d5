/**
 * Finds the end of the runs in XML: the size of a volume, if nothing else tells it. The XML is read twice for that, or
 * kept in memory if it cannot be.
 */
import type { XmlDocument } from '../../devicemapper/xml-stream.ts'
import { DeltamapperError } from '../../errors.ts'
import type { XmlInput } from './xml-input.ts'

/** The most runs that are kept of XML that cannot be read twice: some 100 MB. */
const REMEMBERED_RUNS = 4_000_000

export interface RunBatch {
  readonly count: number
  readonly begins: Float64Array
  readonly lengths: Float64Array
}

export interface Whole<Batch> {
  /** The end of the last wanted run; 0 if there is none. */
  endBlock: number
  /** Whether any batch was wanted. */
  found: boolean
  /** The wanted batches, from the beginning. */
  batches: AsyncIterable<Batch>
}

/**
 * Reads a document to its end, to find that.
 *
 * @param copy makes a batch that stays valid
 * @param wanted which batches matter
 */
export async function readWhole<Header, Batch extends RunBatch>(
  input: XmlInput,
  first: XmlDocument<Header, Batch>,
  open: () => Promise<XmlDocument<Header, Batch>>,
  copy: (batch: Batch) => Batch,
  wanted: (batch: Batch) => boolean = () => true
): Promise<Whole<Batch>> {
  const remembered: Batch[] = []
  let runs = 0
  let endBlock = 0
  let found = false
  for await (const batch of first.batches) {
    if (!wanted(batch)) continue
    found = true
    endBlock = endOf(batch, endBlock)
    if (input.again) continue
    runs += batch.count
    if (runs > REMEMBERED_RUNS) throw tooMuchToRemember(input)
    remembered.push(copy(batch))
  }
  if (!input.again) return { endBlock, found, batches: replayed(remembered) }
  const again = await open()
  return { endBlock, found, batches: withSameEnd(again.batches) }

  async function* withSameEnd(batches: AsyncIterable<Batch>): AsyncGenerator<Batch> {
    let end = 0
    for await (const batch of batches) {
      if (!wanted(batch)) continue
      end = endOf(batch, end)
      // Checked before it is shown: runs beyond the first reading's end would be cut off.
      if (end > endBlock) break
      yield batch
    }
    if (end === endBlock) return
    throw new DeltamapperError('DM_READ_FAILED', `${input.name} has changed while it was read`, 'try again')
  }
}

async function* replayed<Batch>(batches: Batch[]): AsyncGenerator<Batch> {
  yield* batches
}

function endOf({ count, begins, lengths }: RunBatch, before: number): number {
  return count === 0 ? before : begins[count - 1] + lengths[count - 1]
}

function tooMuchToRemember({ name }: XmlInput): DeltamapperError {
  return new DeltamapperError(
    'DM_ARGUMENT_MISSING',
    `${name} cannot be read twice, and has more than ${REMEMBERED_RUNS / 1e6} million ranges, too many to remember`,
    'give the size of the target with --size, or the XML as a file'
  )
}
