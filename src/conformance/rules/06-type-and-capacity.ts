/**
 * A message whose type is UNKNOWN tells nobody how to read it. What is no message of the service at all breaks
 * this rule too.
 * Source: CSI specification, GetMetadataAllocatedResponse and GetMetadataDeltaResponse
 */
import { describe, eachStream, ended, fail, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 6,
  level: 'must',
  title: 'every message has a type, FIXED_LENGTH or VARIABLE_LENGTH, and a capacity above 0',
  source: 'CSI specification, GetMetadataAllocatedResponse and GetMetadataDeltaResponse',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) => {
    const undecodable = run.streams.find(({ end }) => end.how === 'undecodable')
    if (undecodable !== undefined) return fail(`${describe(undecodable.question)}: ${ended(undecodable.end)}`)
    return eachStream(run, ({ answer: { type, otherType, capacityBytes, otherCapacity } }) => {
      if (type !== 1 && type !== 2) return fail(`message 1: block_metadata_type ${type}`)
      if (otherType !== null && ![1, 2].includes(otherType.type)) {
        return fail(`message ${otherType.message}: block_metadata_type ${otherType.type}`)
      }
      if (capacityBytes === null || capacityBytes <= 0) return fail(`message 1: volume_capacity_bytes ${capacityBytes}`)
      if (otherCapacity !== null && otherCapacity.capacityBytes <= 0) {
        return fail(`message ${otherCapacity.message}: volume_capacity_bytes ${otherCapacity.capacityBytes}`)
      }
      return undefined
    })
  }
}
