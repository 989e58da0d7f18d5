/**
 * Walks through a pool's live metadata while a storm goes over the pool: nothing is reserved, and no answer may be wrong. Runs inside
 * the kernel lab:
 *
 *   node test/kernel/storm.ts --seed S --walks N [--agent N]
 *
 * Some snapshots stay as they are: what they have allocated and how they differ is found out once, in quiet, and every walk has to
 * find the same, whatever else happens. The storm's own snapshots are written to, discarded in, deleted and replaced while they are
 * walked: then the walk ends with an error, or it is complete and what was there at some moment of it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { Random } from '../support/random.ts'
import { parseThinDelta } from '../support/thin-tools.ts'
import { type BlockMap, collectBlocks, firstDisagreement, KnownAnswers, type Offspring } from './block-map.ts'
import { discard } from './discard.ts'
import {
  alignedBuffer,
  createDevice,
  createLinear,
  run,
  sectorBytes,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from './dmsetup.ts'
import { LiveAgent } from './live-agent.ts'
import { SlotHistory, type SlotState } from './slot-history.ts'
import { Storm, type StormCounts } from './storm-weather.ts'
import { closeSync, constants, fsyncSync, openSync, writeSync } from 'node:fs'

const mebibyte = 2 ** 20
const blockBytes = 65536
/** Virtual size of the volume in blocks; about two thirds of them are mapped, in trees of three levels. */
const blocks = 60_000
const sizeBytes = blocks * blockBytes
/** What an agent says of a snapshot that is gone. */
const goneCodes = ['DM_SNAPSHOT_NOT_FOUND', 'DM_NO_SUCH_DEVICE', 'DM_BASE_LOST'] as const
/** Walks under way at the same time. */
const AT_ONCE = 3
const metadataDevice = '/dev/mapper/storm-metadata'
const pool = 'storm-pool'
const volume = 'storm-volume'
const volumeId = 0
/** Thin ids of the snapshots that stay as they are. */
const stable = [1, 2, 3, 4, 5]
/** Thin ids of the storm's own. */
const slots = [101, 102, 103, 104]

export interface StormOptionsForWalks {
  readonly seed: number
  /** Walks through the metadata directly. */
  readonly walks: number
  /** Walks through an agent. */
  readonly agentWalks: number
  readonly onProgress?: (line: string) => void
}

export interface StormReport {
  /** Mappings of the first and the last stable snapshot. */
  mappings: [first: number, last: number]
  walks: number
  agentWalks: number
  /** Complete and right: of snapshots that stay as they are, and of those that do not. */
  ofStable: number
  ofOthers: number
  /** Answered while a foreign metadata snapshot was held. */
  whileHeld: number
  /** Ended with an error that was due. */
  ended: Partial<Record<ErrorCode, number>>
  /** Mean and longest walk, in milliseconds. */
  meanMs: number
  longestMs: number
  /** What the storm did meanwhile. */
  storm: StormCounts
  /** Commits of the pool for each walk, about: every flush, message and change of a slot is one. */
  commitsPerWalk: number
}

/** A device to ask about: one that stays as it is, or what is in a slot. */
type Asked = { readonly stable: number } | { readonly slot: number }

export async function walkThroughStorm(options: StormOptionsForWalks): Promise<StormReport> {
  const { seed, walks, agentWalks, onProgress = () => undefined } = options
  const random = new Random(seed)
  buildPool(random)
  const known = await quietAnswers()
  const history = new SlotHistory()
  const storm = new Storm(
    { seed: random.uint32(), pool, volume, volumeId, blocks, blockBytes, stable, slots },
    (event) => history.add(event)
  )
  await storm.settle()
  const walkers = new Walkers(random, known, history, storm)
  const report = walkers.report
  const begun = performance.now()
  let agent: LiveAgent | undefined
  /** A few at a time: most of a walk is waiting for the disk. */
  const many = async (count: number, walk: () => Promise<void>) => {
    let started = 0
    const one = async () => {
      while (started < count) {
        started++
        await walk()
        if (started % 500 === 0) onProgress(`walk ${started}: ${JSON.stringify(report)}`)
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, one))
  }
  try {
    await many(walks, () => walkers.direct())
    if (agentWalks > 0) {
      const live = (agent = await LiveAgent.start())
      const client = live.client()
      await many(agentWalks, async () => {
        await walkers.throughAgent(client)
        live.log = live.log.slice(-100)
      })
      const status = await live.stop()
      if (status !== 0) throw new Error(`the agent ended with status ${status}: ${live.stderr}`)
    }
  } catch (error) {
    await storm.abandon()
    await agent?.kill()
    const again = `node test/lab/run.ts --timeout 7200 test/kernel/storm.ts --seed ${seed} --walks ${walks} --agent ${agentWalks}`
    const { walks: direct, agentWalks: throughAgent } = walkers.report
    throw new Error(`${(error as Error).message}\nin walk ${direct + throughAgent} of seed ${seed}; again: ${again}`, {
      cause: error
    })
  }
  await storm.stop()
  report.storm = storm.counts
  const { flushes, snapshots, deletions } = storm.counts
  report.commitsPerWalk = round((flushes + snapshots + deletions) / (walks + agentWalks))
  report.meanMs = round(report.meanMs / (walks + agentWalks))
  report.longestMs = round(report.longestMs)
  onProgress(`${round((performance.now() - begun) / 1000)} s of storm`)
  // What was not to change has not.
  const after = await quietAnswers()
  for (const base of [undefined, ...stable.keys()]) {
    for (const target of stable.keys()) {
      const [one, other] = [known, after].map((each) =>
        each.expected(base === undefined ? undefined : untouched(base), untouched(target))
      )
      const disagreement = firstDisagreement(one, other)
      if (disagreement !== undefined) throw new Error(`after the storm, ${base} to ${target}: ${disagreement}`)
    }
  }
  tearDown()
  return report
}

class Walkers {
  readonly report: StormReport = {
    ...{ mappings: [0, 0], walks: 0, agentWalks: 0, ofStable: 0, ofOthers: 0, whileHeld: 0, ended: {} },
    ...{ meanMs: 0, longestMs: 0, commitsPerWalk: 0 },
    storm: { writes: 0, flushes: 0, discards: 0, snapshots: 0, deletions: 0, reservations: 0 }
  }
  readonly #random: Random
  readonly #known: KnownAnswers
  readonly #history: SlotHistory
  readonly #storm: Storm

  constructor(random: Random, known: KnownAnswers, history: SlotHistory, storm: Storm) {
    this.#random = random
    this.#known = known
    this.#history = history
    this.#storm = storm
    const mappings = (of: number) => known.expected(undefined, untouched(of)).reduce((sum, each) => sum + each, 0)
    this.report.mappings = [mappings(0), mappings(stable.length - 1)]
  }

  /** One walk by thin id, straight through the metadata. */
  async direct(): Promise<void> {
    const random = this.#random
    const target = this.#pick()
    const base = random.chance(0.75) ? this.#pick(target) : undefined
    const what = `${base === undefined ? 'all' : describe(base)} to ${describe(target)}`
    const pause = this.#pauses()
    this.report.walks++

    const begun = process.hrtime.bigint()
    const answer = await outcomeOf(async () => {
      const metadata = await openPoolMetadata(metadataDevice, { liveRoot: true })
      try {
        const targetId = thinIdOf(target)
        const stream =
          base === undefined
            ? await metadata.allocated({ deviceId: targetId, sizeBytes })
            : await metadata.delta({ baseId: thinIdOf(base), targetId, baseSizeBytes: sizeBytes, sizeBytes })
        return await collectBlocks(stream, blockBytes, pause)
      } finally {
        await metadata.close()
      }
    })
    const ended = process.hrtime.bigint()
    await this.#storm.settle()
    this.#took(begun, ended)

    const states = [base, target].map((each) => each && this.#statesOf(each, begun, ended))
    const [baseStates, targetStates] = states
    const steady = [base, target].every((each, index) => {
      return (
        each === undefined || 'stable' in each || (states[index]?.length === 1 && states[index][0].kind === 'there')
      )
    })
    if (answer instanceof DeltamapperError) {
      const due = answer.code === 'DM_SNAPSHOT_CHANGED' || answer.code === 'DM_DEVICE_NOT_FOUND'
      if (steady || !due)
        throw new Error(`${what} ended, ${steady ? 'and nothing had happened' : 'wrongly'}: ${answer.line}`)
      this.#countEnd(answer)
      return
    }
    this.#check(what, answer, baseStates, targetStates ?? [])
    this.#countRight(base, target)
  }

  /** A backup of one of the storm's snapshots, or of one that stays, and then what changed since, through an agent. */
  async throughAgent(client: SnapshotMetadataClient): Promise<void> {
    const random = this.#random
    const target = this.#pick()
    const base = random.chance(0.85) ? this.#pick(target) : undefined
    const [baseName, targetName] = [base && this.#nameOf(base), this.#nameOf(target)]
    const what = `${baseName === undefined ? 'all' : baseName} to ${targetName}, through the agent`
    this.report.agentWalks++

    // A client has a backup of its base. What that holds is what the base was when it was made.
    let backedUp: SlotState[] | undefined
    if (base !== undefined) {
      const begun = process.hrtime.bigint()
      const full = await outcomeOf(async () =>
        collectBlocks(await client.allocated({ snapshotId: `${pool}/${baseName}` }), blockBytes)
      )
      const ended = process.hrtime.bigint()
      await this.#storm.settle()
      const states = this.#statesOf(base, begun, ended, baseName)
      if (full instanceof DeltamapperError) {
        this.#checkRefusal(`all to ${baseName}, through the agent`, full, undefined, states)
        this.#countEnd(full)
        return
      }
      this.#check(`all to ${baseName}, through the agent`, full, undefined, states)
      backedUp = states.filter(
        (each) => each.kind === 'there' && firstDisagreement(full, this.#known.expected(undefined, each)) === undefined
      )
    }

    const pause = this.#pauses()
    const begun = process.hrtime.bigint()
    const answer = await outcomeOf(async () => {
      const targetSnapshotId = `${pool}/${targetName}`
      const stream =
        baseName === undefined
          ? await client.allocated({ snapshotId: targetSnapshotId })
          : await client.delta({ baseSnapshotId: `${pool}/${baseName}`, targetSnapshotId })
      return collectBlocks(stream, blockBytes, pause)
    })
    const ended = process.hrtime.bigint()
    await this.#storm.settle()
    this.#took(begun, ended)

    const targetStates = this.#statesOf(target, begun, ended, targetName)
    if (answer instanceof DeltamapperError) {
      const baseStates = base && this.#statesOf(base, begun, ended, baseName)
      this.#checkRefusal(what, answer, baseStates && [...backedUp!, ...baseStates], targetStates)
      this.#countEnd(answer)
      return
    }
    this.#check(what, answer, backedUp, targetStates)
    this.#countRight(base, target)
  }

  /** Complete answers are right: for something that the base and the target were meanwhile. */
  #check(what: string, answer: BlockMap, bases: readonly SlotState[] | undefined, targets: readonly SlotState[]): void {
    let closest: string | undefined
    for (const target of targets) {
      for (const base of bases ?? [undefined]) {
        if (target.kind === 'gone' || base?.kind === 'gone') continue
        const disagreement = firstDisagreement(answer, this.#known.expected(base, target))
        if (disagreement === undefined) return
        closest ??= disagreement
      }
    }
    const seen = (states: readonly SlotState[] | undefined) => states?.map((each) => each.what).join(', ') ?? 'nothing'
    throw new Error(
      `${what}: the answer is wrong (${closest ?? 'there was nothing to answer about'}); base: ${seen(bases)}; target: ${seen(targets)}`
    )
  }

  /** What an agent may say about snapshots that are not left alone. */
  #checkRefusal(
    what: string,
    refusal: DeltamapperError,
    bases: readonly SlotState[] | undefined,
    targets: readonly SlotState[]
  ): void {
    const due = new Map<ErrorCode, string>()
    for (const states of [bases ?? [], targets]) {
      if (states.length > 1) due.set('DM_SNAPSHOT_CHANGED', 'it changed meanwhile')
      if (states.some(({ kind }) => kind === 'gone')) {
        for (const code of goneCodes) due.set(code, 'it is gone')
      }
    }
    const serials = (states: readonly SlotState[] = []) => states.map(({ serial }) => serial)
    if (bases !== undefined) {
      if (Math.max(...serials(bases)) > Math.min(...serials(targets)))
        due.set('DM_ORDER_REVERSED', 'the base is younger')
      const touched = bases.some((each) => each.kind === 'there' && each.touched.size > 0)
      if (touched || bases.length > 1) due.set('DM_BASE_CHANGED', 'the base was touched')
    }
    if (due.has(refusal.code)) return
    const seen = (states: readonly SlotState[] | undefined) => states?.map((each) => each.what).join(', ') ?? 'nothing'
    throw new Error(
      `${what} was refused (${refusal.line}); due was ${[...due.keys()].join(' or ') || 'an answer'}; base: ${seen(bases)}; target: ${seen(targets)}`
    )
  }

  #pick(other?: Asked): Asked {
    const random = this.#random
    for (;;) {
      const asked = random.chance(0.5) ? { stable: random.integer(0, stable.length - 1) } : { slot: random.pick(slots) }
      if (other === undefined || describe(asked) !== describe(other)) return asked
    }
  }

  #statesOf(asked: Asked, from: bigint, until: bigint, name?: string): SlotState[] {
    return 'stable' in asked ? [untouched(asked.stable)] : this.#history.statesOf(asked.slot, from, until, name)
  }

  #nameOf(asked: Asked): string {
    return 'stable' in asked ? stableName(asked.stable) : this.#history.latestName(asked.slot)
  }

  /** A client that takes its time, in one of four walks. */
  #pauses(): () => Promise<void> | undefined {
    if (!this.#random.chance(0.25)) return () => undefined
    const milliseconds = this.#random.integer(1, 15)
    return () => sleep(milliseconds)
  }

  #took(begun: bigint, ended: bigint): void {
    const milliseconds = Number(ended - begun) / 1e6
    this.report.meanMs += milliseconds
    this.report.longestMs = Math.max(this.report.longestMs, milliseconds)
  }

  #countEnd({ code }: DeltamapperError): void {
    this.report.ended[code] = (this.report.ended[code] ?? 0) + 1
  }

  #countRight(base: Asked | undefined, target: Asked): void {
    this.report[[base, target].some((each) => each && 'slot' in each) ? 'ofOthers' : 'ofStable']++
    if (this.#storm.held) this.report.whileHeld++
  }
}

function describe(asked: Asked): string {
  return 'stable' in asked ? stableName(asked.stable) : `slot ${asked.slot}`
}

function thinIdOf(asked: Asked): number {
  return 'stable' in asked ? stable[asked.stable] : asked.slot
}

function stableName(index: number): string {
  return `stable-${index}`
}

function untouched(of: number): SlotState & Offspring {
  return { kind: 'there', of, touched: new Map(), serial: of - stable.length, what: stableName(of) }
}

async function outcomeOf<T>(act: () => Promise<T>): Promise<T | DeltamapperError> {
  try {
    return await act()
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
}

/** A volume of 40,000 mappings, and snapshots that differ here and there. */
function buildPool(random: Random): void {
  createLinear('storm-metadata', '/dev/ubda', 0, 128 * mebibyte)
  zeroStart(metadataDevice)
  const dataBytes = 2 ** 40
  const dataDevice = createDevice('storm-data', `0 ${dataBytes / sectorBytes} zero`)
  const features = ['skip_block_zeroing', 'no_discard_passdown']
  createDevice(pool, thinPoolTable({ metadataDevice, dataDevice, dataBytes, blockBytes, features }))
  sendMessage(pool, `create_thin ${volumeId}`)
  const path = createDevice(volume, thinTable(pool, volumeId, sizeBytes))
  const file = openSync(path, constants.O_RDWR | constants.O_DIRECT)
  const buffer = alignedBuffer(32 * blockBytes)
  for (let block = 0; block < blocks; block += 48) writeSync(file, buffer, 0, buffer.length, block * blockBytes)
  for (const [index, id] of stable.entries()) {
    const cluster = random.integer(0, blocks - 2000)
    for (let i = 0; i < 600; i++) {
      writeSync(file, buffer, 0, sectorBytes, random.integer(0, blocks - 1) * blockBytes)
      writeSync(file, buffer, 0, sectorBytes, (cluster + 2 * i) * blockBytes)
    }
    for (let i = 0; i < 100; i++) discard(file, random.integer(0, blocks - 9) * blockBytes, 8 * blockBytes)
    fsyncSync(file)
    sendMessage(pool, `create_snap ${id} ${volumeId}`)
    createDevice(stableName(index), thinTable(pool, id, sizeBytes), '--readonly')
  }
  closeSync(file)
}

function tearDown(): void {
  const names = [...stable.keys()].map(stableName)
  run('dmsetup', ['remove', ...names, volume, pool, 'storm-data', 'storm-metadata'])
}

/** What the stable snapshots are like, found out while nothing else happens; thin_delta agrees with one of the answers. */
async function quietAnswers(): Promise<KnownAnswers> {
  const metadata = await openPoolMetadata(metadataDevice, { liveRoot: true })
  try {
    const allocated: BlockMap[] = []
    for (const deviceId of stable) {
      allocated.push(await collectBlocks(await metadata.allocated({ deviceId, sizeBytes }), blockBytes))
    }
    const deltas: BlockMap[][] = []
    for (const baseId of stable) {
      const row: BlockMap[] = []
      for (const targetId of stable) {
        row.push(await collectBlocks(await metadata.delta({ baseId, targetId, sizeBytes }), blockBytes))
      }
      deltas.push(row)
    }
    const [first = 0, last = 0] = [stable[0], stable.at(-1)]
    const disagreement = firstDisagreement(deltas[0][stable.length - 1], thinDelta(first, last))
    if (disagreement !== undefined) throw new Error(`thin_delta says otherwise: ${disagreement}`)
    return new KnownAnswers(allocated, deltas)
  } finally {
    await metadata.close()
  }
}

function thinDelta(base: number, target: number): BlockMap {
  sendMessage(pool, 'reserve_metadata_snap')
  try {
    const xml = run('thin_delta', ['-m', '--thin1', String(base), '--thin2', String(target), metadataDevice])
    const map = new Uint8Array(blocks)
    for (const { kind, begin, length } of parseThinDelta(xml, base, target)) {
      if (kind !== 'same') map.fill(1, begin, begin + length)
    }
    return map
  } finally {
    sendMessage(pool, 'release_metadata_snap')
  }
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { seed: { type: 'string' }, walks: { type: 'string' }, agent: { type: 'string', default: '0' } }
  })
  if (values.seed === undefined || values.walks === undefined) {
    throw new Error('usage: storm.ts --seed S --walks N [--agent N] (inside the kernel lab)')
  }
  try {
    const onProgress = (line: string) => console.log(line)
    const [seed, walks, agentWalks] = [values.seed, values.walks, values.agent].map(Number)
    console.log(JSON.stringify(await walkThroughStorm({ seed, walks, agentWalks, onProgress })))
    process.exit(0)
  } catch (error) {
    console.error((error as Error).stack)
    process.exit(1)
  }
}
