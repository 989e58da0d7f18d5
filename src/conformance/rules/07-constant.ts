/**
 * A client decides once how to read a stream.
 * Source: CSI specification, Metadata Format
 */
import { eachStream, fail, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 7,
  level: 'must',
  title: 'type and capacity are the same in every message of a stream',
  source: 'CSI specification, Metadata Format',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) =>
    eachStream(run, ({ answer: { type, otherType, capacityBytes, otherCapacity } }) => {
      if (otherType !== null)
        return fail(`block_metadata_type ${type} in message 1, ${otherType.type} in message ${otherType.message}`)
      if (otherCapacity === null) return undefined
      return fail(
        `volume_capacity_bytes ${capacityBytes} in message 1, ${otherCapacity.capacityBytes} in message ${otherCapacity.message}`
      )
    })
}
