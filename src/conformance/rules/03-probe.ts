/**
 * The sidecar waits while a driver is not ready, and exits when it hears anything else.
 * Source: CSI specification, Probe; external-snapshot-metadata exits at any other error
 */
import { ended, fail, pass, skip, statusName, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 3,
  level: 'must',
  title: 'Probe answers; not ready is ready=false or DEADLINE_EXCEEDED',
  source: 'CSI specification, Probe; external-snapshot-metadata exits at any other error',
  ask: async (asker) => void (await asker.unary('probe', 'Identity/Probe')),
  judge: (run) => {
    const call = run.unary(3, 'Probe')
    if (call === undefined) return skip('it was not asked')
    if (statusName(call.end) === 'DEADLINE_EXCEEDED') return pass('Probe: DEADLINE_EXCEEDED, which means not ready')
    if (!isOk(call.end)) return fail(`Probe: ${ended(call.end)}`)
    const ready = (call.response?.['ready'] as { value?: boolean } | null)?.value
    return pass(ready === false ? 'not ready' : 'ready')
  }
}
