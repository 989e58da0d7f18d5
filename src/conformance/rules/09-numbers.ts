/**
 * An empty or negative range names no bytes.
 * Source: CSI specification, BlockMetadata
 */
import { eachStream, tupleBreach, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 9,
  level: 'must',
  title: 'size_bytes is above 0 and byte_offset is not below 0',
  source: 'CSI specification, BlockMetadata',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) =>
    eachStream(
      run,
      ({ answer: { empty, negative } }) =>
        tupleBreach(empty, 'names no bytes') ?? tupleBreach(negative, 'begins before the volume')
    )
}
