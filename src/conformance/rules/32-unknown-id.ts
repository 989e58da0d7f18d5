/**
 * The id is a real one with other letters and digits, so that it has the form that the driver knows.
 * Source: CSI specification, error tables
 */
import { refusals, type Rule } from '../rule.ts'

/** The last eight letters and digits replaced by others of their kind, hexadecimal where the id may be. */
function disguised(id: string): string {
  const characters = [...id]
  let left = 8
  for (let i = characters.length - 1; i >= 0 && left > 0; i--) {
    const character = characters[i]
    if (/[0-9]/.test(character)) characters[i] = String(9 - Number(character))
    else if (/[a-z]/.test(character)) characters[i] = character === 'd' ? 'e' : 'd'
    else if (/[A-Z]/.test(character)) characters[i] = character === 'D' ? 'E' : 'D'
    else continue
    left--
  }
  return characters.join('')
}

export const rule: Rule = {
  number: 32,
  level: 'must',
  title: 'an unknown snapshot id is NOT_FOUND',
  source: 'CSI specification, error tables',
  ask: async (asker) => {
    const [target] = asker.given.snapshots.slice(-1)
    if (target === undefined) return
    const unknown = disguised(target)
    await asker.stream('unknown', { target: unknown })
    await asker.stream('unknown', { base: unknown, target })
    await asker.stream('unknown', { base: target, target: unknown })
  },
  judge: (run) => refusals(run.streamsOf(32), ['NOT_FOUND'])
}
