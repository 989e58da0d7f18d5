/**
 * A tuple that begins at the end of the volume or behind names bytes that there are not. One that only ends behind
 * is a warning.
 * Source: clients: Velero clips, the verifier tolerates; the specification is silent about a last tuple that is too
 * long
 */
import { quoted } from '../answer.ts'
import { eachStream, tupleBreach, warn, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 11,
  level: 'must',
  title: 'tuples lie within the capacity',
  source:
    'clients: Velero clips, the verifier tolerates; the specification is silent about a last tuple that is too long',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) =>
    eachStream(run, ({ answer: { reaches, beginsLast, capacityBytes } }) => {
      if (capacityBytes === null || reaches === null || beginsLast === null) return undefined
      if (beginsLast.byteOffset >= capacityBytes)
        return tupleBreach(beginsLast, `begins at or behind the capacity ${capacityBytes}`)
      const beyond = reaches.byteOffset + reaches.sizeBytes > capacityBytes
      return beyond ? warn(`${quoted(reaches)} ends behind the capacity ${capacityBytes}`) : undefined
    })
}
