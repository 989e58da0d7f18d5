/** `deltamapper delta --since ERA`: the blocks of an era device written since an era, straight from its metadata. */
import { openEraMetadata } from '../../devicemapper/era/era-metadata.ts'
import type { ExtentStream } from '../../devicemapper/extents.ts'
import type { AnswerOptions, Question, Remark } from './question.ts'
import { describeEraView } from '../inspection/era-views.ts'
import { UsageError } from '../command-line/failure.ts'
import { firstBeyond, remarkLeftOut } from './left-out.ts'
import { humanSize } from '../command-line/quantities.ts'

/** Hands the answer to `use`. @throws UsageError for options that do not fit; what reading throws */
export async function answerSince(
  sinceEra: number,
  { base, target }: Question,
  options: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  const { metadata: path, size, baseSize, liveRoot = false, startingOffset = 0 } = options
  if (path === undefined) {
    throw new UsageError(
      '--since goes with --metadata and --xml only',
      "name the era device's metadata device, or a copy of it, with --metadata FILE; or what era_dump has printed, with --xml FILE"
    )
  }
  if (options.engine !== undefined) {
    throw new UsageError('--engine is for thin pools', 'leave it out: the metadata of era devices is read natively')
  }
  if (base !== undefined || target !== undefined) {
    throw new UsageError(
      `--since asks about the one device that era metadata is of, and ${base ?? target} was named as well`,
      'leave out BASE and TARGET; or leave out --since, to compare two devices of a thin pool'
    )
  }
  const metadata = await openEraMetadata(path, { liveRoot })
  try {
    remark(`reading ${describeEraView(metadata)}`)
    if (size === undefined) {
      const taken = `${metadata.sizeBytes} bytes (${humanSize(metadata.sizeBytes)}), up to the end of its last block`
      remark(`size of the device: ${taken}; --size says otherwise`)
    }
    if (size !== undefined) {
      const beyond = firstBeyond(size, metadata.superblock.blockBytes)
      const written = async () => metadata.written({ sinceEra, startingOffset: beyond, signal })
      if (beyond < metadata.sizeBytes) await remarkLeftOut(written, remark)
    }
    await use(await metadata.written({ sinceEra, sizeBytes: size, baseSizeBytes: baseSize, startingOffset, signal }))
  } finally {
    await metadata.close()
  }
}
