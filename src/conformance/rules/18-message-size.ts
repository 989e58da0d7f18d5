/**
 * The sidecar ends a stream with RESOURCE_EXHAUSTED at a larger one. Our own reader has no limit.
 * Source: external-snapshot-metadata: the limit of its gRPC client
 */
import { describe, fail, pass, skip, told, type Rule } from '../rule.ts'
import type { StreamCall } from '../run.ts'

const LIMIT_BYTES = 4 * 1024 * 1024
const sizeOf = ({ answer }: StreamCall): number => answer.largestMessage?.bytes ?? 0

export const rule: Rule = {
  number: 18,
  level: 'must',
  title: 'a message stays below 4 MiB',
  source: 'external-snapshot-metadata: the limit of its gRPC client',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) => {
    const streams = told(run)
    if (streams.length === 0) return skip('no stream had a message')
    const largest = streams.reduce((one, other) => (sizeOf(other) > sizeOf(one) ? other : one))
    const seen = `${describe(largest.question)}: message ${largest.answer.largestMessage?.message} has ${sizeOf(largest)} bytes`
    return (sizeOf(largest) > LIMIT_BYTES ? fail : pass)(seen)
  }
}
