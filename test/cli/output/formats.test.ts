/**
 * What all formats have in common: they stream, a chunk at a time, however long the answer and however slow the reader.
 */
import { Writable } from 'node:stream'
import test from 'ava'
import type { ExtentAnswer, ExtentBatch } from '../../../src/devicemapper/extents.ts'
import { writeJson } from '../../../src/cli/output/json.ts'
import { writeMap } from '../../../src/cli/output/map.ts'
import { writeNdjson } from '../../../src/cli/output/ndjson.ts'
import { withProgress } from '../../../src/cli/output/progress.ts'
import { writeTable } from '../../../src/cli/output/table.ts'
import { TextOutput } from '../../../src/cli/output/text-output.ts'

const formats: [string, (answer: ExtentAnswer, output: TextOutput) => Promise<void>][] = [
  ['table', (answer, output) => writeTable(answer, output, 'changed')],
  ['json', writeJson],
  ['ndjson', writeNdjson],
  ['map', (answer, output) => writeMap(answer, output, 'changed', { columns: 64, colour: false })]
]

const BATCHES = 60
const PER_BATCH = 4096
const BLOCK = 65536

/** Batches whose memory is used again for the next, as real ones are; counts what was asked for. */
function longAnswer(asked: { batches: number }, failure?: Error): ExtentAnswer {
  async function* produce(): AsyncGenerator<ExtentBatch> {
    const offsets = new Float64Array(PER_BATCH)
    const sizes = new Float64Array(PER_BATCH).fill(BLOCK)
    for (let batch = 0; batch < BATCHES; batch++) {
      asked.batches++
      for (let i = 0; i < PER_BATCH; i++) offsets[i] = 2 * BLOCK * (batch * PER_BATCH + i)
      yield { count: PER_BATCH, offsets, sizes }
    }
    if (failure) throw failure
  }
  return { capacityBytes: 2 * BLOCK * BATCHES * PER_BATCH, batches: produce() }
}

test('a capacity that nobody said is left out or said in words: never 0, nor null', async (t) => {
  const shown: Record<string, string> = {}
  for (const [name, write] of formats) {
    async function* nothing(): AsyncGenerator<ExtentBatch> {}
    const chunks: Buffer[] = []
    const sink = new Writable({ write: (chunk: Buffer, _encoding, done) => (chunks.push(Buffer.from(chunk)), done()) })
    await write({ capacityBytes: undefined, batches: nothing() }, new TextOutput(sink, new AbortController().signal))
    shown[name] = Buffer.concat(chunks).toString()
  }
  t.is(shown['json'], '{"block_metadata_type":"VARIABLE_LENGTH","block_metadata":[]}\n')
  t.is(shown['ndjson'], '{"block_metadata_type":"VARIABLE_LENGTH"}\n{"complete":true,"extents":0,"bytes":0}\n')
  const summary = /^0 extents, 0 bytes \(0 B\) changed of a volume whose size the driver did not say; complete\n$/m
  for (const name of ['table', 'map']) t.regex(shown[name], summary)
})

test('what a server said of the sizes is passed on', async (t) => {
  for (const [name, write] of formats.filter(([each]) => each.endsWith('json'))) {
    for (const blockMetadataType of ['FIXED_LENGTH', 'VARIABLE_LENGTH'] as const) {
      async function* nothing(): AsyncGenerator<ExtentBatch> {}
      let text = ''
      const sink = new Writable({ write: (chunk: Buffer, _encoding, done) => ((text += String(chunk)), done()) })
      const answer = { capacityBytes: 1000, blockMetadataType, batches: nothing() }
      await write(withProgress(answer, { isTTY: true } as never), new TextOutput(sink, new AbortController().signal))
      t.regex(text, new RegExp(`^{"block_metadata_type":"${blockMetadataType}","volume_capacity_bytes":1000`), name)
    }
  }
})

/** A reader that takes one chunk each few turns of the event loop, and sees whether it ever gets two at once. */
class SlowReader extends Writable {
  text = ''
  chunks = 0
  longest = 0
  overlapped = false
  #busy = false

  constructor() {
    super({ decodeStrings: true, highWaterMark: 1 })
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.overlapped ||= this.#busy || this.writableLength > chunk.length
    this.#busy = true
    this.chunks++
    this.longest = Math.max(this.longest, chunk.length)
    setTimeout(() => {
      // Only now: whoever used the chunk again before we were done would be found out.
      this.text += chunk.toString()
      this.#busy = false
      done()
    }, 1)
  }
}

for (const [format, write] of formats) {
  test(`${format} hands over one chunk at a time, and all of it`, async (t) => {
    const reader = new SlowReader()
    const asked = { batches: 0 }
    await write(longAnswer(asked), new TextOutput(reader, new AbortController().signal))
    t.is(asked.batches, BATCHES)
    t.false(reader.overlapped)
    t.true(reader.longest <= 256 * 1024)
    if (format === 'map') return
    t.true(reader.chunks > 20)
    const offsets = [
      ...reader.text.matchAll(format === 'table' ? /^ *(\d+) +65536 +64 KiB$/gm : /"byte_offset":(\d+)/g)
    ]
    t.is(offsets.length, BATCHES * PER_BATCH)
    t.true(offsets.every(([, offset], i) => Number(offset) === 2 * BLOCK * i))
  })

  test(`${format} asks for no more while nobody reads`, async (t) => {
    const controller = new AbortController()
    const stuck = new Writable({ write: () => undefined })
    const asked = { batches: 0 }
    const reason = new Error('given up')
    setTimeout(() => controller.abort(reason), 300)
    const error = await t.throwsAsync(write(longAnswer(asked), new TextOutput(stuck, controller.signal)))
    t.is(error, reason)
    if (format !== 'map') t.true(asked.batches < 5)
  })

  test(`${format} does not look complete where the answer failed`, async (t) => {
    const reader = new SlowReader()
    const failure = new Error('broken')
    const answer = longAnswer({ batches: 0 }, failure)
    t.is(await t.throwsAsync(write(answer, new TextOutput(reader, new AbortController().signal))), failure)
    t.false(reader.text.includes('complete'))
    if (format === 'json') t.throws(() => JSON.parse(reader.text) as unknown)
    if (format === 'map') t.is(reader.text, '')
  })
}
