/**
 * Each request carries one. What the driver writes to its log is not seen from here.
 * Source: CSI specification, Secrets Requirements
 */
import { SECRET } from '../asker.ts'
import { describe, pass, skip, warn, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 42,
  level: 'should',
  title: 'no status message quotes a secret of the request',
  source: 'CSI specification, Secrets Requirements',
  ask: async (asker) => {
    await asker.wholes()
    await asker.stream('refused', { target: '' })
    for (const question of asker.questions) await asker.stream('refused', { ...question, maxResults: -1 })
  },
  judge: (run) => {
    const messages = run.streams.flatMap((call) =>
      call.end.how === 'status' && call.end.message !== '' ? [{ call, text: call.end.message }] : []
    )
    const leak = messages.find(({ text }) => text.includes(SECRET))
    if (leak !== undefined) return warn(`${describe(leak.call.question)}: ${leak.text.slice(0, 200)}`)
    if (messages.length === 0) return skip('no status had a message')
    return pass(`${messages.length} status messages, none with the secret; its log cannot be seen from here`)
  }
}
