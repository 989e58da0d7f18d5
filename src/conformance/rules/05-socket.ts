/**
 * The sidecar dials the socket with the authority localhost. Some HTTP/2 servers refuse an authority that they do
 * not know.
 * Source: CSI specification, RPC Interface; grpc-go sends :authority localhost
 */
import { ended, fail, pass, skip, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 5,
  level: 'must',
  title: 'it answers at one unix socket, also to the authority localhost',
  source: 'CSI specification, RPC Interface; grpc-go sends :authority localhost',
  ask: async (asker) => {
    const { run } = asker
    const usual = run.unary(0, 'GetPluginInfo')
    if (usual !== undefined && isOk(usual.end)) return
    await asker.unary('another authority', 'Identity/GetPluginInfo', {}, { authority: 'csi.sock' })
  },
  judge: (run) => {
    const [usual, another] = [run.unary(0, 'GetPluginInfo'), run.unary(5, 'GetPluginInfo')]
    if (usual === undefined) return skip('it was not asked')
    if (isOk(usual.end)) return pass('GetPluginInfo with :authority localhost: OK')
    const otherwise = another === undefined ? '' : `; with :authority csi.sock: ${ended(another.end)}`
    return fail(`GetPluginInfo with :authority localhost: ${ended(usual.end)}${otherwise}`)
  }
}
