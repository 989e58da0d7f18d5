import test from 'ava'
import { judgeBase } from '../../../src/agent/inventory/base-verdict.ts'
import type { ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import { servedTarget } from '../catalog/examples.ts'

const now = servedTarget({ root: 100, mappedBlocks: 50 })

for (const [name, recorded, asBase, because] of [
  ['nothing was served', [], 'never-served', /never served/],
  ['served, and the same', [now], 'unchanged', /what it was/],
  ['served by another name, and the same', [servedTarget({ ...now, handle: 'vg/other' })], 'unchanged', /./],
  ['written to', [servedTarget({ ...now, mappedBlocks: 49 })], 'changed', /written to: 49 blocks became 50/],
  ['trimmed', [servedTarget({ ...now, mappedBlocks: 51 })], 'changed', /trimmed from 51 to 50/],
  ['another root', [servedTarget({ ...now, root: 99 })], 'changed', /mappings are not those/],
  ['served twice, different in between', [now, servedTarget({ ...now, root: 99 })], 'changed', /./],
  ['another snapshot of the same name', [servedTarget({ ...now, identity: 'lvm:x' })], 'changed', /another snapshot/],
  [
    'another snapshot under its thin id',
    [servedTarget({ ...now, handle: 'gone', creationTime: 1 })],
    'never-served',
    /./
  ]
] as [string, ServedTarget[], string, RegExp][]) {
  test(`${name}: ${asBase}`, (t) => {
    const verdict = judgeBase(recorded, now)
    t.is(verdict.asBase, asBase as typeof verdict.asBase)
    t.regex(verdict.because, because)
  })
}
