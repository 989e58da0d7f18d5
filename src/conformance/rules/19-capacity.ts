/**
 * A client makes a volume of that size and compares it with the answer.
 * Source: practice of clients
 */
import { fail, pass, skip, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 19,
  level: 'must',
  title: 'the capacity is the size of what is restored from the snapshot',
  source: 'practice of clients',
  ask: async (asker) => {
    for (const target of Object.keys(asker.given.deviceBytes)) await asker.whole(null, target)
  },
  judge: (run) => {
    const devices = Object.entries(run.given.deviceBytes).map(([id, bytes]) => ({
      id,
      bytes,
      said: run.whole(null, id)?.answer.capacityBytes
    }))
    const restored = run.contents.map(({ target, deviceBytes, capacityBytes }) => ({
      id: target,
      bytes: deviceBytes,
      said: capacityBytes
    }))
    const known = [...devices, ...restored].filter(({ said, bytes }) => said != null && bytes > 0)
    if (known.length === 0) return skip('no device was given: see --device, --hooks and --content')
    const wrong = known.find(({ bytes, said }) => said !== bytes)
    if (wrong !== undefined)
      return fail(`${wrong.id}: volume_capacity_bytes ${wrong.said}, and its device has ${wrong.bytes} bytes`)
    return pass(`${known.length} devices are as large as the capacity`)
  }
}
