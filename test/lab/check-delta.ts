/**
 * Whether an answer has every byte in which two devices differ: compared by reading both, in full.
 *
 *   node check-delta.ts BASE TARGET ANSWER      ANSWER: what `delta -o ndjson` has printed
 *
 * Prints `differ BYTES, missed BYTES, listed BYTES`, in units of 4096; exit status 1 if any was missed.
 */
import { openSync, readFileSync, readSync } from 'node:fs'

const UNIT = 4096
const CHUNK = 256 * UNIT
const [base = '', target = '', answer = ''] = process.argv.slice(2)
const lines = readFileSync(answer, 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as { byte_offset?: number; size_bytes?: number; complete?: boolean })
if (lines.at(-1)?.complete !== true) throw new Error('the answer is not complete')
const extents = lines.flatMap(({ byte_offset: at, size_bytes: size }) =>
  at === undefined || size === undefined ? [] : [{ at, end: at + size }]
)
const devices = [base, target].map((each) => openSync(each, 'r'))
const chunks = devices.map(() => Buffer.alloc(CHUNK))
let [differ, missed] = [0, 0]
for (let offset = 0; ; offset += CHUNK) {
  const [, read = 0] = devices.map((each, i) => readSync(each, chunks[i] ?? Buffer.alloc(0), 0, CHUNK, offset))
  for (let at = 0; at < read; at += UNIT) {
    const [one, other] = chunks.map((each) => each.subarray(at, at + UNIT))
    if (one === undefined || other === undefined || one.equals(other)) continue
    differ += UNIT
    const [from, to] = [offset + at, offset + at + UNIT]
    if (!extents.some((each) => each.at <= from && each.end >= to)) missed += UNIT
  }
  if (read < CHUNK) break
}
const listed = extents.reduce((sum, { at, end }) => sum + end - at, 0)
console.log(`differ ${differ}, missed ${missed}, listed ${listed}`)
process.exitCode = missed > 0 ? 1 : 0
