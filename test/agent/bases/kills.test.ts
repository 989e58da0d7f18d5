/**
 * An agent's process is killed around the last message of answers and the writing of their records. What was promised by
 * an end holds afterwards: the snapshot may go, and a delta from it is right. What was not is right, or refused with the
 * reason.
 *
 * LAB_COUNT kills, which follow from LAB_SEED.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeltamapperError } from '../../../src/errors.ts'
import { servedTarget } from '../../../src/agent/answers/served-target.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import type { Extent } from '../sample-pool.ts'
import { answer, closeAnswering, numbered, snapshotOf, startAnswering } from './answering.ts'

const folder = testFolder(test)
const { LAB_SEED = '1', LAB_COUNT = '3' } = process.env
const random = new Random(Number(LAB_SEED))
const kills = Number(LAB_COUNT)
/** After so many, all that they have left is asked about. */
const KILLS_AT_ONCE = 20
/** An answer takes as long, about; milliseconds. */
const LONGEST_MS = 60
const [catalog, records] = [join(folder, 'catalog'), join(folder, 'bases')]

/** Snapshots 2 and 3 of device 1, and 5, which is the target of all that is asked later. */
function history(): PoolModel {
  const model = new PoolModel({
    random: new Random(21),
    shape: { leafEntries: 6, internalEntries: 6, split: 'middle' }
  })
  const scatter = (writes: number) => {
    for (let i = 0; i < writes; i++) model.write(1, random.integer(0, 299))
  }
  model.createThin(1)
  scatter(200)
  for (const id of [2, 3, 5]) {
    model.createSnapshot(id, 1)
    scatter(20)
    for (let i = 0; i < 5; i++) model.discard(1, random.integer(0, 299))
  }
  return model
}

async function image(model: PoolModel, name: string): Promise<string> {
  const path = join(folder, name)
  await writeFile(path, writeMetadataImage(model, { random: new Random(22) }).bytes)
  return path
}

/** One life of the process: which answers it began and ended. It is killed a moment after one of the first began. */
async function killed(first: number, path: string): Promise<{ began: number; ended: number }> {
  const script = join(import.meta.dirname, 'answering.ts')
  const child = spawn(process.execPath, [script, catalog, records, path, String(first)], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  const life = { began: first - 1, ended: first - 1 }
  const last = first + random.integer(0, 3)
  const due = Promise.withResolvers<void>()
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const lines = (said + text).split('\n')
    said = lines.pop() ?? ''
    for (const line of lines) {
      const [what, number] = line.split(' ')
      life[what as 'began' | 'ended'] = Number(number)
      if (life.began >= last) due.resolve()
    }
  })
  const gone = once(child, 'close')
  await Promise.race([due.promise, gone])
  await sleep(random.integer(0, LONGEST_MS))
  child.kill('SIGKILL')
  await gone
  return life
}

test(`what an answer's end has promised holds, whenever the process dies (LAB_SEED=${LAB_SEED})`, async (t) => {
  t.timeout(120_000 + kills * 10_000)
  const model = history()
  const before = await image(model, 'before')
  const living = new Map<number, Extent[]>()
  const agent = await startAnswering(join(folder, 'living'), join(folder, 'living-bases'))
  for (const id of [2, 3]) {
    living.set(id, await answer(agent, { base: snapshotOf(id, before), target: snapshotOf(5, before) }))
  }
  await closeAnswering(agent)
  model.delete(2)
  model.delete(3)
  const after = await image(model, 'after')
  const outcomes: Record<string, number> = {}
  let next = 0
  for (let done = 0; done < kills;) {
    const begun: { number: number; isPromised: boolean }[] = []
    for (let i = 0; i < KILLS_AT_ONCE && done < kills; i++, done++) {
      const { began, ended } = await killed(next, before)
      for (; next <= began; next++) begun.push({ number: next, isPromised: next <= ended })
      // The next one begins with an answer that is whole.
      next += next % 2
    }
    for (const [what, count] of Object.entries(await asked(begun))) outcomes[what] = (outcomes[what] ?? 0) + count
    if (kills > KILLS_AT_ONCE) console.error(`${done} kills: ${JSON.stringify(outcomes)}`)
  }
  t.log(`${kills} kills: ${JSON.stringify(outcomes)}`)
  t.true(outcomes['promised, right'] > 0)

  async function asked(begun: readonly { number: number; isPromised: boolean }[]): Promise<Record<string, number>> {
    const found: Record<string, number> = {}
    const survivor = await startAnswering(catalog, records)
    t.deepEqual(
      readdirSync(records).filter((each) => each.endsWith('.part')),
      [],
      'nothing half is left'
    )
    const target = snapshotOf(5, after)
    for (const { number, isPromised } of begun) {
      await lookedAt(survivor, number)
      const what = await fromRecord(survivor, number, target)
      t.false(isPromised && what !== 'right', `vg/${number} was promised: ${what}`)
      const key = `${isPromised ? 'promised' : 'not promised'}, ${what}`
      found[key] = (found[key] ?? 0) + 1
    }
    await closeAnswering(survivor)
    return found
  }

  /** The agent has been there all the time, and seen the snapshot a moment before it went. */
  async function lookedAt({ catalog, bases }: Awaited<ReturnType<typeof startAnswering>>, number: number) {
    const snapshot = numbered(number, before)
    const metadata = await openPoolMetadata(before, { liveRoot: true })
    const device = await metadata.device(snapshot.thinId)
    const fingerprint = await metadata.fingerprint(device)
    await metadata.close()
    const seen = { snapshot, transactionId: device.details.transactionId, fingerprint }
    const look = await bases.look(seen)
    if (look) await catalog.bases.saw(servedTarget(seen), look)
  }

  async function fromRecord(
    survivor: Awaited<ReturnType<typeof startAnswering>>,
    number: number,
    target: ReturnType<typeof snapshotOf>
  ): Promise<string> {
    try {
      const recorded = await survivor.bases.find(`vg/${number}`, 'pool')
      if (recorded === undefined) return 'never admitted'
      t.deepEqual(await answer(survivor, { recorded, target }), living.get(number % 2 === 0 ? 2 : 3), `vg/${number}`)
      return 'right'
    } catch (error) {
      if (!(error instanceof DeltamapperError)) throw error
      t.true(error.code.startsWith('DM_BASE_RECORD_'), error.line)
      return error.code
    }
  }
})
