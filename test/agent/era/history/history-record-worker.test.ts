/** What the thread that reads a history makes of a metadata snapshot that does not stay. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import type { HistoryReading } from '../../../../src/agent/era/history/history-reading.ts'
import type { FromHistoryReader } from '../../../../src/agent/era/history/history-record-worker.ts'
import { readEraSlot } from '../../../../src/agent/leases/era-slot-content.ts'
import { writeEraImage } from '../../../support/era-image.ts'
import { EraModel } from '../../../support/era-model.ts'
import { testFolder } from '../../../support/test-folder.ts'

const folder = testFolder(test)
const program = new URL('../../../../src/agent/era/history/history-record-worker.ts', import.meta.url)

for (const [what, change, expected] of [
  ['stays', () => undefined, 'end'],
  ['is dropped', (model) => model.dropSnapshot(), 'DM_LEASE_LOST'],
  [
    'is dropped, and another taken',
    (model) => {
      model.dropSnapshot()
      model.takeSnapshot()
    },
    'DM_LEASE_LOST'
  ]
] as [string, (model: EraModel) => void, string][]) {
  test(`a metadata snapshot that ${what} while it is read`, async (t) => {
    const path = join(folder, `${what}.img`)
    const model = new EraModel(100)
    const store = () => writeFile(path, writeEraImage(model.view(), model.held ? { held: model.held } : {}).bytes)
    model.write(5)
    model.takeSnapshot()
    await store()
    const { heldRoot } = await readEraSlot(path)
    const workerData: HistoryReading = {
      ...{ metadata: { path }, heldRoot, sinceEra: 1, untilEra: 1 },
      ...{ blockSectors: 128, readDeadlineMs: undefined }
    }
    const worker = new Worker(program, { workerData, execArgv: [] })
    const next = async () => ((await once(worker, 'message')) as [FromHistoryReader])[0]
    t.is((await next()).kind, 'chunks')
    change(model)
    await store()
    worker.postMessage('more')
    const last = await next()
    t.is<string, string>(last.kind === 'error' ? last.error.code : last.kind, expected)
    await worker.terminate()
  })
}
