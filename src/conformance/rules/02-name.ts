/**
 * The SnapshotMetadataService object has the driver's name, so that the name has to fit there.
 * Source: CSI specification, GetPluginInfo
 */
import { ended, fail, pass, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

/** Characters. */
const LONGEST_NAME = 63

const domainNotation = /^[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$/

export const rule: Rule = {
  number: 2,
  level: 'must',
  title: 'GetPluginInfo names the driver in domain notation, at most 63 characters',
  source: 'CSI specification, GetPluginInfo',
  judge: (run) => {
    const call = run.unary(0, 'GetPluginInfo')
    if (call === undefined || !isOk(call.end)) return fail(`GetPluginInfo: ${call ? ended(call.end) : 'not asked'}`)
    const { name } = run.driver
    const shown = `name ${JSON.stringify(name.slice(0, 100))}, ${name.length} characters`
    if (name === '' || name.length > LONGEST_NAME) return fail(shown)
    return (domainNotation.test(name) ? pass : fail)(shown)
  }
}
