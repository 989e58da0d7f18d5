/**
 * What names lead to, while it changes: volumes and pools that swap their names between any two looks that a question takes, pools that
 * are made anew by the same names, disks that are put back to an earlier copy. An answer is exact, or there is none. Runs
 * inside the kernel lab: node test/lab/run.ts test/kernel/missed-blocks-lookup.test.ts
 */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { pino } from 'pino'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { snapshotMetadataBackend } from '../../src/agent/answers/backend.ts'
import { openCatalog } from '../../src/agent/catalog/catalog.ts'
import { LvmReporter } from '../../src/agent/lvm/report.ts'
import { answersWith } from '../../src/agent/targets.ts'
import { catalogKnowledge } from '../../src/agent/answers/served-target.ts'
import { type LiveNode, Sources } from '../../src/agent/answers/sources.ts'
import { Walkers } from '../../src/agent/walks/walkers.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { decode } from '../agent/sample-pool.ts'
import type { Extent } from '../support/expected.ts'
import { copyOut, run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { createGroup, createPool, createSnapshot, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'
import { blockBytes, expectedDelta, RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
const { random, count, again } = labRun(1)
const group = 'looked-vg'
/** Where on the disk volume groups end and pools of dmsetup's begin, in MiB. */
const GROUPS_MIB = 512

prepareLvm()
lvm('pvcreate', '--setphysicalvolumesize', `${GROUPS_MIB}m`, '/dev/ubda')
createGroup(group, '/dev/ubda')
const deviceMapper = new DeviceMapper()
const reporter = new LvmReporter()
const walkers = new Walkers(1)
const catalog = await openCatalog(join(mkdtempSync(join(tmpdir(), 'looked-')), 'catalog'))
const knowledge = catalogKnowledge(catalog, pino({ level: 'silent' }))
// Neither walkers nor device-mapper's helper keep a process alive on their own.
const alive = setInterval(() => undefined, 1000)
test.after.always(async () => {
  clearInterval(alive)
  await walkers.close()
  await catalog.close()
  await deviceMapper.close()
})

/** A moment in the life of a question: before its n-th call to LVM or device-mapper, or when all is looked up and nothing opened yet. */
type Moment = number | 'before opening'

/** A question during which something happens. Calls to LVM and device-mapper come one after the other, so that it is known when. */
async function askWhile(
  question: { base?: string; target: string },
  moment: Moment | undefined,
  event: () => void
): Promise<{ extents: Extent[]; calls: number }> {
  let calls = 0
  let last: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(call: () => Promise<T>): Promise<T> => {
    const turn = last
      .catch(() => undefined)
      .then(() => {
        if (++calls === moment) event()
        return call()
      })
    last = turn
    return turn
  }
  const node = {
    deviceMapper: {
      info: (device) => inTurn(() => deviceMapper.info(device)),
      table: (device) => inTurn(() => deviceMapper.table(device))
    },
    lvm: {
      logicalVolumes: (name) => inTurn(() => reporter.logicalVolumes(name)),
      allLogicalVolumes: () => inTurn(() => reporter.allLogicalVolumes()),
      snapshotLinks: (name) => inTurn(() => reporter.snapshotLinks(name))
    }
  } satisfies LiveNode
  const backend = snapshotMetadataBackend(new Sources(new Map(), node), walkers, answersWith({ knowledge }))
  const { signal } = new AbortController()
  const rest = { startingOffset: 0n, maxResults: 0 }
  const { base, target } = question
  const stream = await (base === undefined
    ? backend.allocated({ snapshotId: target, ...rest }, signal)
    : backend.delta({ baseSnapshotId: base, targetSnapshotId: target, ...rest }, signal))
  if (moment === 'before opening') event()
  const extents: Extent[] = []
  for await (const message of stream.messages) {
    extents.push(...decode(message).extents)
  }
  return { extents, calls }
}

async function ask(question: { base?: string; target: string }): Promise<Extent[]> {
  return (await askWhile(question, undefined, () => undefined)).extents
}

/** What became of a question: its extents, or the code of its error. */
async function outcome(answer: Promise<{ extents: Extent[] }>): Promise<Extent[] | string> {
  try {
    return (await answer).extents
  } catch (error) {
    if (error instanceof DeltamapperError) return error.code
    throw error
  }
}

/** Three names trade places. */
function swap(rename: (from: string, to: string) => void, one: string, other: string): void {
  rename(one, 'in-between')
  rename(other, one)
  rename('in-between', other)
}

const lvrename = (from: string, to: string) => lvm('lvrename', group, from, to)
const dmRename = (from: string, to: string) => run('dmsetup', ['rename', from, to])

/**
 * Rounds of a question during which something happens: each event once before anything is opened, which is where it hurts most, then any
 * of them at a random moment. Returns how often each error was the answer.
 */
async function rounds(
  roundsToDo: number,
  question: { base: string; target: string },
  expected: readonly Extent[],
  events: readonly (() => void)[]
): Promise<Record<string, number>> {
  const { extents, calls } = await askWhile(question, undefined, () => undefined)
  if (JSON.stringify(extents) !== JSON.stringify(expected)) throw new Error('it is wrong while nothing happens')
  const seen: Record<string, number> = {}
  for (let round = 0; round < roundsToDo; round++) {
    const isEachOnce = round < events.length
    const event = isEachOnce ? events[round] : random.pick(events)
    const moment = isEachOnce
      ? 'before opening'
      : random.pick<Moment>(['before opening', 2, random.integer(1, calls), random.integer(1, calls)])
    let happened = false
    const once = () => {
      happened = true
      event()
    }
    const found = await outcome(askWhile(question, moment, once))
    // There and back: the next round begins as this one did.
    if (happened) event()
    const what = typeof found === 'string' ? found : JSON.stringify(found)
    if (typeof found !== 'string' && what !== JSON.stringify(expected)) {
      throw new Error(`round ${round}, event at ${moment}: ${what} where ${JSON.stringify(expected)} is due (${again})`)
    }
    const key = typeof found === 'string' ? found : 'exact'
    seen[key] = (seen[key] ?? 0) + 1
  }
  return seen
}

/** "Ask again", or what is true after the event. */
const CODES = ['exact', 'DM_SNAPSHOT_CHANGED', 'DM_SNAPSHOT_NOT_FOUND', 'DM_ORDER_REVERSED', 'DM_READ_FAILED']

test.serial('logical volumes and pools that swap names during a question', async (t) => {
  t.timeout(600_000 + count * 120_000)
  // The same thin ids and transactions in both; only in the first is there a difference between the snapshots.
  for (const [i, blocks] of [10, 0].entries()) {
    createPool(group, `pool${i}`, 32)
    const volume = createThin(group, `pool${i}`, `data${i}`, 16)
    writeBlocks(volume, 0, 4, 'a')
    createSnapshot(group, `data${i}`, `base${i}`)
    if (blocks > 0) writeBlocks(volume, 20, blocks, 'b')
    createSnapshot(group, `data${i}`, `target${i}`)
  }
  const expected: Extent[] = [[20 * blockBytes, 10 * blockBytes]]
  const events = [() => swap(lvrename, 'base0', 'target0'), () => swap(lvrename, 'pool0', 'pool1')]
  const seen = await rounds(count, { base: `${group}/base0`, target: `${group}/target0` }, expected, events)
  t.log(JSON.stringify(seen))
  for (const code of Object.keys(seen)) t.true(CODES.includes(code), code)
})

/** Places on the disk; there is room for so many. */
const PLACES = 70
let places = 0

/** A pool of dmsetup's at a place of its own on the disk, or at one that was used before. */
function rawPool(name: string, place = places++ % PLACES, writesBefore = 0): RawPool {
  const offsetBytes = (GROUPS_MIB + place * 20) * mebibyte
  return new RawPool({ name, offsetBytes, metadataBytes: 4 * mebibyte, dataBytes: 16 * mebibyte, writesBefore })
}

test.serial("pools of dmsetup's that swap names during a question", async (t) => {
  t.timeout(600_000 + count * 120_000)
  const [one, other] = [rawPool('looked-one'), rawPool('looked-other')]
  for (const pool of [one, other]) {
    pool.createVolume(`${pool.name}-volume`, 0, 64)
    pool.write(`${pool.name}-volume`, 0, 4)
    pool.snapshot(`${pool.name}-volume`, `${pool.name}-base`, 1)
    if (pool === one) pool.write(`${pool.name}-volume`, 20, 10)
    pool.snapshot(`${pool.name}-volume`, `${pool.name}-target`, 2)
  }
  const swapping = (suffix: string) => () => swap(dmRename, `looked-one${suffix}`, `looked-other${suffix}`)
  const events = [swapping('-metadata'), swapping(''), swapping('-base'), swapping('-target')]
  const question = { base: one.handle('looked-one-base'), target: one.handle('looked-one-target') }
  // A name of dmsetup's costs little to change.
  const seen = await rounds(2 * count, question, [[20 * blockBytes, 10 * blockBytes]], events)
  t.log(JSON.stringify(seen))
  for (const code of Object.keys(seen)) t.true([...CODES, 'DM_POOLS_DIFFER'].includes(code), code)
  one.close()
  other.close()
})

/** Each in turn: the slice in `npm test` has them all. */
function pickOf<T extends string>(ways: readonly T[], round: number): T {
  return ways[round % ways.length]
}

/** Codes that send the client to a full backup. */
const REFUSED = ['DM_POOL_WENT_BACK', 'DM_BASE_CHANGED', 'DM_BASE_LOST']

test.serial("pools of dmsetup's that are made anew by the same names", async (t) => {
  t.timeout(600_000 + count * 120_000)
  const seen: Record<string, number> = {}
  for (let round = 0; round < count; round++) {
    const how = pickOf(['fewer snapshots', 'other ids', 'another place'], round)
    const [name, place] = [`anew-${round}`, (2 * round) % PLACES]
    const [volume, base, target] = ['volume', 'base', 'target'].map((each) => `${name}-${each}`)
    const make = (at: number, before: number, ids: readonly [number, number]): RawPool => {
      const pool = rawPool(name, at, before)
      pool.createVolume(volume, 0, 64)
      pool.write(volume, 0, 4)
      pool.snapshot(volume, base, ids[0])
      pool.write(volume, 20, 10)
      pool.snapshot(volume, target, ids[1])
      return pool
    }
    const first = make(place, 0, [1, 2])
    for (let id = 3, last = 3 + random.integer(0, 3); id <= last; id++) {
      first.snapshot(volume, `${name}-more${id}`, id)
    }
    await ask({ target: first.handle(base) })
    first.close()
    const second = make(how === 'another place' ? place + 1 : place, 1000, how === 'other ids' ? [7, 8] : [1, 2])
    // Its clock has caught up, and more.
    if (how === 'other ids') for (let id = 9; id < 14; id++) second.snapshot(volume, `${name}-more${id}`, id)
    const question = { base: second.handle(base), target: second.handle(target) }
    const found = await outcome(askWhile(question, undefined, () => undefined))
    t.true(typeof found === 'string' && REFUSED.includes(found), `${how}: ${JSON.stringify(found)} (${again})`)
    seen[`${how}: ${String(found)}`] = (seen[`${how}: ${String(found)}`] ?? 0) + 1
    second.close()
  }
  t.log(JSON.stringify(seen))
})

test.serial('disks that are put back to an earlier copy', async (t) => {
  t.timeout(600_000 + count * 120_000)
  const copy = join(mkdtempSync(join(tmpdir(), 'copy-')), 'metadata')
  const seen: Record<string, number> = {}
  for (let round = 0; round < count; round++) {
    const how = pickOf(['looked at in between', 'fewer snapshots', 'other ids'], round)
    const name = `back-${round}`
    const [volume, first, base, target] = ['volume', 'first', 'base', 'target'].map((each) => `${name}-${each}`)
    const pool = rawPool(name)
    const take = (snapshot: string, id: number) => {
      // As many writes each time: the trees of one life lie where those of the other did.
      pool.write(volume, 5 * id, 3)
      pool.snapshot(volume, snapshot, id)
    }
    pool.createVolume(volume, 0, 128)
    take(first, 1)
    pool.deactivateAll()
    copyOut(pool.metadata, copy)
    pool.activateAll()
    take(base, 2)
    for (let id = 3; id < 6; id++) take(`${name}-more${id}`, id)
    await ask({ target: pool.handle(base) })

    pool.deactivateAll()
    run('dd', [`if=${copy}`, `of=${pool.metadata}`, 'bs=1M', 'conv=fsync', 'status=none'])
    for (const each of [...pool.thins.keys()]) if (each !== volume && each !== first) pool.thins.delete(each)
    pool.activateAll()
    if (how === 'looked at in between') await ask({ target: pool.handle(first) })
    take(base, 2)
    take(target, 9)
    // Its clock catches up, and passes what was seen.
    if (how !== 'fewer snapshots') for (let id = 10; id < 14; id++) take(`${name}-new${id}`, id)
    const question = { base: pool.handle(base), target: pool.handle(target) }
    t.is(await outcome(askWhile(question, undefined, () => undefined)), 'DM_POOL_WENT_BACK', `${how} (${again})`)
    seen[how] = (seen[how] ?? 0) + 1

    // What is served from then on is a base again.
    take(`${name}-later`, 20)
    await ask({ target: pool.handle(`${name}-later`) })
    take(`${name}-last`, 21)
    t.deepEqual(
      await ask({ base: pool.handle(`${name}-later`), target: pool.handle(`${name}-last`) }),
      expectedDelta(pool.thin(`${name}-later`), pool.thin(`${name}-last`))
    )
    pool.close()
  }
  t.log(JSON.stringify(seen))
})
