import test from 'ava'
import { judgeBase } from '../../../src/agent/inventory/base-verdict.ts'
import type { Role, ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import { servedTarget } from '../catalog/examples.ts'

const now = servedTarget({ mappedBlocks: 50 })

for (const [name, recorded, asBase, because] of [
  ['nothing was served', [], 'never-served', /never served/],
  ['served, and the same', [now], 'unchanged', /unchanged since it was served/],
  ['served by another name, and the same', [servedTarget({ ...now, handle: 'vg/other' })], 'unchanged', /./],
  ['written to', [servedTarget({ ...now, mappedBlocks: 49 })], 'changed', /written to: 49 blocks became 50/],
  ['trimmed', [servedTarget({ ...now, mappedBlocks: 51 })], 'changed', /trimmed from 51 to 50/],
  ['served twice, different in between', [now, servedTarget({ ...now, mappedBlocks: 99 })], 'changed', /./],
  ['another snapshot of the same name', [servedTarget({ ...now, identity: 'lvm:x' })], 'changed', /another snapshot/],
  [
    'another snapshot under its thin id',
    [servedTarget({ ...now, handle: 'gone', transactionId: 1n })],
    'never-served',
    /./
  ],
  [
    'a snapshot was merged into it, and it was renamed',
    [servedTarget({ ...now, handle: 'gone', creationTime: 1 })],
    'changed',
    /clock at its creation/
  ],
  ['used as a base, and never served', [{ ...now, role: 'base' }], 'unrecorded', /nothing proves/]
] as [string, (ServedTarget & { role?: Role })[], string, RegExp][]) {
  test(`${name}: ${asBase}`, (t) => {
    const verdict = judgeBase(
      recorded.map((each) => ({ role: 'target', firstServedAt: 1, ...each })),
      now
    )
    t.is(verdict.asBase, asBase as typeof verdict.asBase)
    t.regex(verdict.because, because)
  })
}

for (const [name, firstServedAt, asBase] of [
  ['before its pool went back', 99, 'changed'],
  ['since its pool went back', 101, 'unchanged']
] as const) {
  test(`served, and the same, ${name}: ${asBase}`, (t) => {
    const recorded = [{ ...now, role: 'target', firstServedAt } as const]
    const verdict = judgeBase(recorded, now, { at: 100, how: 'its clock was 5 before, and is 3' })
    t.is(verdict.asBase, asBase)
    if (asBase === 'changed') t.regex(verdict.because, /was restored to an earlier state.*clock was 5/)
  })
}

test('taken since its pool went back, and never served: never-served', (t) => {
  t.is(judgeBase([], now, { at: 100, how: 'its clock was 5 before, and is 3' }).asBase, 'never-served')
})
