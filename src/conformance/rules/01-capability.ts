/**
 * The sidecar asks before anything else, and exits where the capability is missing.
 * Source: CSI specification, GetPluginCapabilities; external-snapshot-metadata exits without it
 */
import { ended, fail, pass, skip, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 1,
  level: 'must',
  title: 'GetPluginCapabilities names SNAPSHOT_METADATA_SERVICE',
  source: 'CSI specification, GetPluginCapabilities; external-snapshot-metadata exits without it',
  ask: async (asker) => void (await asker.unary('capabilities', 'Identity/GetPluginCapabilities')),
  judge: (run) => {
    const call = run.unary(1, 'GetPluginCapabilities')
    if (call === undefined) return skip('it was not asked')
    if (!isOk(call.end)) return fail(`GetPluginCapabilities: ${ended(call.end)}`)
    const types = (call.response?.['capabilities'] as { service?: { type: string } }[]).map(
      ({ service }) => service?.type ?? 'another kind'
    )
    return (types.includes('SNAPSHOT_METADATA_SERVICE') ? pass : fail)(`capabilities: ${types.join(', ') || 'none'}`)
  }
}
