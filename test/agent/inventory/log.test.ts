import test from 'ava'
import { pino } from 'pino'
import { logInventory } from '../../../src/agent/inventory/log.ts'
import type { Finding } from '../../../src/agent/inventory/examination.ts'
import { examinationOf, poolOf, thinOf } from '../../support/examination.ts'

test('one line of figures, and one for each finding that is more than a note', (t) => {
  const lines: Record<string, unknown>[] = []
  const logger = pino({ base: null }, { write: (line: string) => lines.push(JSON.parse(line) as (typeof lines)[0]) })
  const finding = (severity: Finding['severity'], command = ''): Finding => {
    return { severity, kind: `${severity}-kind`, about: 'vg0/pool', what: `a ${severity}`, remedy: 'do it', command }
  }
  const thins = [thinOf(), thinOf({ asBase: 'changed' }), thinOf({ asBase: 'never-served' })]
  const findings = [finding('problem', 'lvchange -ay x'), finding('warning'), finding('note')]
  logInventory(examinationOf({ pools: [poolOf({ thins })], findings }), logger)
  t.like(lines[0], {
    msg: 'inventory',
    level: 30,
    pools: ['vg0/pool (lvm, read-write)'],
    volumesAndSnapshots: 3,
    bases: 1,
    changedBases: 1,
    problems: 1,
    warnings: 1,
    notes: 1
  })
  t.deepEqual(
    lines.slice(1).map(({ msg, level, command }) => [msg, level, command]),
    [
      ['a problem', 40, 'lvchange -ay x'],
      ['a warning', 40, undefined]
    ]
  )
})
