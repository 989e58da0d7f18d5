import test from 'ava'
import { pino } from 'pino'
import { FullnessLog } from '../../../src/agent/owned-pools/fullness.ts'
import type { DescribedPool } from '../../../src/agent/owned-pools/description.ts'
import { fullPool, inactivePool } from '../../grpc/admin-backend.ts'

const gibibyte = 2 ** 30

function watcher() {
  let lines: string[] = []
  const logger = pino(
    {},
    {
      write(text: string) {
        const { level, msg } = JSON.parse(text) as { level: number; msg: string }
        lines.push(`${level === 40 ? 'warn' : 'info'}: ${msg}`)
      }
    }
  )
  const log = new FullnessLog(logger)
  /** What is said of a pool with so much in use, of 100 GiB each. */
  return (data: number, metadata = 0, changes: Partial<DescribedPool> = {}): string[] => {
    lines = []
    const usage = {
      ...{ dataUsedBytes: data * gibibyte, dataTotalBytes: 100 * gibibyte },
      ...{ metadataUsedBytes: metadata * gibibyte, metadataTotalBytes: 100 * gibibyte },
      ...{ transactionId: '1', needsCheck: false }
    }
    const state = { state: 'read-write' as const, problem: '', lowWaterBytes: 0 }
    log.look({ ...fullPool, ...state, usage, ...changes })
    return lines
  }
}

test('each threshold is said once, when it is reached, and when that is over', (t) => {
  const look = watcher()
  t.deepEqual(look(79.9, 10), [])
  t.regex(look(80, 10).join(), /^warn: pool tank has used 80 % of its data space: .*`deltamapper pool grow tank`$/)
  t.deepEqual(look(89, 10), [])
  t.regex(look(96, 91).join(), /^warn: .*95 % of its data space.*,warn: .*90 % of its metadata space/)
  t.deepEqual(look(97, 92), [])
  t.regex(look(100, 92).join(), /100 % of its data space/)
  t.deepEqual(look(50, 92), ['info: pool tank has used less than 100 % of its data space again'])
  t.regex(look(80, 92).join(), /80 % of its data space/)
})

test('a state for the worse is a warning with what to do, one for the better is told', (t) => {
  const look = watcher()
  t.deepEqual(look(10), [])
  t.deepEqual(look(10, 0, { state: 'out-of-data-space', problem: 'enlarge it' }), [
    'warn: pool tank is out-of-data-space: enlarge it'
  ])
  t.deepEqual(look(10, 0, { state: 'out-of-data-space', problem: 'enlarge it' }), [])
  t.deepEqual(look(10), ['info: pool tank is read-write'])
})

test('the low-water mark is said, where there is one', (t) => {
  const look = watcher()
  t.deepEqual(look(10, 0, { lowWaterBytes: 50 * gibibyte }), [])
  t.deepEqual(look(50, 0, { lowWaterBytes: 50 * gibibyte }), [
    `warn: pool tank has reached its low-water mark of ${50 * gibibyte} free bytes`
  ])
  t.deepEqual(look(51, 0, { lowWaterBytes: 50 * gibibyte }), [])
})

test('without numbers, what was said of them stands', (t) => {
  const look = watcher()
  look(85)
  const unknown: DescribedPool = { ...inactivePool, name: fullPool.name, state: 'unknown', problem: 'it hangs' }
  const lines: string[] = []
  const log = new FullnessLog(pino({}, { write: (text: string) => lines.push(text) }))
  log.look(fullPool)
  const before = lines.length
  log.look(unknown)
  t.is(lines.length, before + 1)
  log.look({ ...fullPool })
  t.is(lines.length, before + 2, 'the state, and not the fullness once more')
  log.look(inactivePool)
  t.is(lines.length, before + 2, 'what was never in use is nothing to warn of')
})
