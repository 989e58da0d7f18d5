/**
 * Classic LVM snapshots (`lvcreate -s -L`): `VG/LV`, of a thick or a thin volume. What changed since one was taken is
 * in its store.
 *
 *   look up both, at one look ─▶ count their entries ─▶ read the lists ─▶ look up again ─▶ the catalog ─▶ first message
 *                                                                        the kernel, before each message ─┘
 *
 * LVM says what a snapshot is: its UUID, and how it is tied to its origin (snapshot-links.ts). The kernel says whether
 * its devices stand as LVM puts them (classic-devices.ts), and whether its store is whole. A store itself says neither
 * whose it is nor since when.
 */
import { isDeepStrictEqual } from 'node:util'
import { DeltamapperError, type ErrorCode } from '../../errors.ts'
import { LEAST_DELTA_BYTES, wantedDeltaBytes } from '../../devicemapper/cow/delta.ts'
import type { ClassicServices } from './classic-services.ts'
import {
  checkClassicBase,
  checkClassicList,
  type ClassicFacts,
  type ClassicRow,
  longestList,
  rejoined
} from '../catalog/classic-served.ts'
import { resumeRefused } from '../catalog/fingerprint.ts'
import type { LogicalVolume } from '../lvm/parse.ts'
import type { SnapshotLink, SnapshotLinks } from '../lvm/snapshot-links.ts'
import { byName, fullName, volumeKind } from '../lvm/volume.ts'
import {
  type ClassicDevices,
  classicDevices,
  type ClassicPort,
  type ClassicReference,
  detached,
  entriesCounted,
  merging,
  openToWriters,
  refuseWriters,
  type TablesBelow,
  tablesBelow,
  tableToCome
} from '../node/classic-devices.ts'
import { unlikeLvm } from '../lvm/lvm-tables.ts'
import type { BegunStores, ClassicWalkRequest, ReadStores } from '../walks/classic-walk.ts'
import type { WalkUnderWay } from '../walks/plan.ts'
import type { FoundSnapshot, SnapshotSource } from '../walks/snapshot.ts'
import { namedClassic } from '../../devicemapper/device-named.ts'
import { DeviceMapperLook, type LvmPort } from './one-look.ts'
import { changedMeanwhile, lookAgain } from './second-look.ts'
import { type LookedBelow, rightBelow, type UnlikeTable, whatIsUnlike } from './classic-tables.ts'
import { type AnswerServices, checkOffset, type LookUp, type TargetAnswers } from './target.ts'
import { volumeUuid } from './volume-group.ts'

/**
 * LVM makes a snapshot's volume and ties it to its origin in one command; more apart, it was tied once more, by a clock
 * that may have gone back meanwhile. Seconds.
 */
const ONE_COMMAND = 60

/** What the kernel says of a snapshot that it keeps no more. */
const givenUp: readonly string[] = ['DM_COW_INVALID', 'DM_COW_OVERFLOWED'] satisfies ErrorCode[]

/** A classic snapshot as its source knows it. */
export interface ClassicSnapshot extends FoundSnapshot, LookedBelow {
  readonly kind: 'classic'
  /** The LV's UUID, and the origin's. */
  readonly identity: string
  readonly volume: string
  readonly volumeName: string
  /** How it is tied to its origin. */
  readonly link: SnapshotLink
  /** To LVM and the kernel: nobody may write into it, and nobody has since it was activated. */
  readonly readOnly: boolean
  /** Their UUIDs, as device-mapper has them. */
  readonly uuid: string
  readonly originUuid: string
  readonly devices: ClassicDevices
}

/**
 * The classic snapshots of a group; undefined for everything else.
 *
 * `snapshot()` throws DM_COW_INACTIVE, DM_COW_MERGING, DM_COW_TRANSIENT, DM_COW_DETACHED, DM_VOLUME_IN_USE for what has
 * such snapshots, DM_LVM_FAILED, and what device-mapper calls throw.
 */
export function classicSource(
  volumeGroup: string,
  { lvm, deviceMapper }: { lvm: LvmPort; deviceMapper: ClassicPort }
): SnapshotSource<ClassicSnapshot> {
  return {
    async snapshot(name) {
      const named = byName((await lvm.logicalVolumes(volumeGroup)) ?? [])
      const lv = named.get(name)
      if (!lv) return undefined
      const kind = volumeKind(lv, named)
      if (kind === 'thick volume' && lv.role.includes('thickorigin')) throw originInUse(lv)
      if (kind !== 'copy-on-write snapshot') return undefined
      const origin = lv.origin === undefined ? undefined : named.get(lv.origin)
      if (!origin || origin.uuid !== lv.originUuid) throw contradiction(lv, 'its origin is not in the report')
      if (lv.merging || lv.attributes.volumeType === 'merging snapshot') throw merging(fullName(lv))
      const found = await lvm.snapshotLinks(volumeGroup)
      const [link, ...more] = found?.links.filter(({ snapshot }) => snapshot === name) ?? []
      if (found?.vgUuid !== lv.vgUuid || link?.origin !== origin.name || more.length > 0) {
        throw contradiction(lv, 'its metadata does not tie it to its origin')
      }
      if (link.merging || found.links.some((each) => each.merging && each.origin === origin.name)) {
        throw merging(fullName(lv))
      }
      const reference = { handle: fullName(lv), uuid: volumeUuid(lv), originUuid: volumeUuid(origin) }
      const below = await lookBelow(deviceMapper, reference, { origin: origin.name, store: name }, found)
      const devices = await classicDevices(deviceMapper, reference)
      if (devices.sizeBytes !== link.sizeBytes) {
        throw detached(fullName(lv), `its device has ${devices.sizeBytes} bytes, and ${link.sizeBytes} to LVM`)
      }
      return {
        ...({ kind: 'classic', identity: lv.uuid, link } as const),
        ...{ ...reference, ...below, devices },
        ...{ volume: origin.uuid, volumeName: fullName(origin) },
        readOnly: lv.attributes.permissions === 'read-only' && devices.readOnly && devices.untouched
      }
    }
  }
}

/** @param volumes what LVM calls the untouched origin, and the store */
async function lookBelow(
  deviceMapper: ClassicPort,
  reference: ClassicReference,
  volumes: Readonly<Record<keyof TablesBelow, string>>,
  found: SnapshotLinks
): Promise<LookedBelow> {
  const both = ['origin', 'store'] as const
  const toCome = await Promise.all(both.map((below) => tableToCome(deviceMapper, reference, below)))
  const tables = await tablesBelow(deviceMapper, reference)
  const unlike: UnlikeTable[] = []
  for (const [i, below] of both.entries()) {
    const why = (table: TablesBelow['store']) => unlikeLvm(deviceMapper, table, found.segments(volumes[below]), found)
    const next = toCome[i]
    const now = await why(tables[below])
    if (now !== undefined) unlike.push({ below, why: now, isLeaving: next !== undefined && !(await why(next)) })
  }
  return { handle: reference.handle, tables, unlike, sequenceNumber: found.sequenceNumber }
}

export function classicAnswers({ classic }: AnswerServices): TargetAnswers<ClassicSnapshot> {
  return {
    where: 'is a classic snapshot',
    named: ({ uuid }) => namedClassic(uuid),
    async plan({ base: foundBase, target: foundTarget, startingOffset, maxResults, lookUp }) {
      if (classic === undefined) throw new Error('nothing is lent for classic snapshots')
      const base = foundBase && (await asked(foundBase, classic))
      const target = await asked(foundTarget, classic)
      // An answer may be refused, or end early: what was seen stands all the same.
      for (const each of base ? [base, target] : [target]) {
        if (!each.readOnly) await classic.catalog.classicSnapshots.sawWritable(factsOf(each))
      }
      checkOffset(startingOffset, target.handle, target.devices.sizeBytes)
      if (base) checkRelated(base, target)
      const answer = new ClassicAnswer(base, target, Number(startingOffset), lookUp, classic)
      await answer.checkBelow()
      const request: ClassicWalkRequest = {
        ...(base && { base: base.devices }),
        ...{ target: target.devices, startingOffset: Number(startingOffset), maxResults },
        compareBytesPerSecond: classic.compareBytesPerSecond
      }
      return {
        kind: base ? 'delta' : 'allocated',
        capacityBytes: target.devices.sizeBytes,
        task: { target: 'classic', request },
        asides: {
          begin: async (_: undefined, { signal }: WalkUnderWay) => answer.begin(signal),
          read: async (stores: ReadStores) => answer.read(stores),
          state: async () => answer.checkState(),
          doubtful: (bytes: number) => classic.onDoubtful?.(bytes)
        },
        explained: async (error) => answer.explained(error)
      }
    }
  }
}

/** One answer, in the main thread. */
class ClassicAnswer {
  readonly #base: AskedSnapshot | undefined
  readonly #target: AskedSnapshot
  readonly #startingOffset: number
  readonly #lookUp: LookUp
  readonly #services: ClassicServices
  /** What is on record of the base as target. */
  #record: ClassicRow | undefined
  /** What lies below them at the last look at LVM; undefined before the first. */
  #below: readonly LookedBelow[] | undefined
  /** What each list has to begin with. */
  readonly #known: { base?: ClassicRow | undefined; target?: ClassicRow | undefined } = {}

  constructor(
    base: AskedSnapshot | undefined,
    target: AskedSnapshot,
    startingOffset: number,
    lookUp: LookUp,
    services: ClassicServices
  ) {
    this.#base = base
    this.#target = target
    this.#startingOffset = startingOffset
    this.#lookUp = lookUp
    this.#services = services
  }

  get #snapshots(): readonly ClassicSnapshot[] {
    return this.#base ? [this.#base, this.#target] : [this.#target]
  }

  /**
   * What has to be known before the stores are read. Both snapshots are there by now, so that whatever changed between
   * them is on disk.
   *
   * @param signal aborted when the walk is over
   * @throws DM_BASE_CHANGED, DM_COW_REJOINED, DM_BASE_UNRECORDED, DM_RESUME_REFUSED, DM_COW_INVALID, DM_COW_OVERFLOWED,
   *   DM_TOO_MANY_STREAMS; what the catalog throws
   */
  async begin(signal: AbortSignal): Promise<BegunStores> {
    await this.#checkResumed()
    if (this.#base) this.#record = await this.#checkBase(this.#base)
    const [target, base] = [this.#target, this.#base]
    const known = this.#known
    known.target = await this.#longestList(target)
    if (base) known.base = await this.#longestList(base)
    return {
      target: {
        counted: await this.#counted(target),
        ...(known.target && { prefix: known.target.entries })
      },
      ...(base && {
        base: {
          counted: await this.#counted(base),
          ...(known.base && { prefix: known.base.entries })
        }
      }),
      isSame: base?.identity === target.identity && this.#isContentKnown() && this.#record !== undefined,
      compareBytes: this.#compareBytes(),
      memoryBytes: this.#takeMemory(signal)
    }
  }

  /** Both lists are read, and in order. @throws DM_SNAPSHOT_CHANGED, DM_BASE_CHANGED; what the catalog throws */
  async read({ base, target }: ReadStores): Promise<void> {
    await this.#lookAgain()
    const { catalog } = this.#services
    if (this.#known.base && base) checkClassicList(this.#known.base, base)
    if (this.#known.target) checkClassicList(this.#known.target, target)
    if (this.#base && base) await catalog.classicSnapshots.remember(factsOf(this.#base), base, 'base')
    await catalog.classicSnapshots.remember(factsOf(this.#target), target, 'target')
  }

  /** Whether what lies below them is LVM's, and nobody else writes there. @throws what says that it is not */
  async checkBelow(): Promise<void> {
    this.#below = await this.#rightBelow(this.#snapshots)
    await refuseWriters(this.#services.deviceMapper, this.#snapshots)
  }

  /** Whether the kernel still keeps both, and their devices stand as they did. @throws what says that they do not */
  async checkState(): Promise<void> {
    // At one look, because they have one origin.
    const { deviceMapper } = this.#services
    const look = new DeviceMapperLook(deviceMapper)
    const snapshots = this.#snapshots
    const [found, tables] = await Promise.all([
      Promise.all(snapshots.map(async (snapshot) => classicDevices(look, snapshot))),
      Promise.all(snapshots.map(async (snapshot) => tablesBelow(look, snapshot)))
    ])
    for (const [i, snapshot] of snapshots.entries()) {
      if (!isDeepStrictEqual(found[i], snapshot.devices)) {
        // What was seen stands, whatever becomes of this answer.
        if (!found[i].untouched) await this.#services.catalog.classicSnapshots.sawWritable(factsOf(snapshot))
        throw changedMeanwhile(snapshot.handle)
      }
      await this.#counted(snapshot)
    }
    await refuseWriters(deviceMapper, snapshots)
    // Perhaps by LVM, which may move data at any time.
    const known = this.#below?.map((each) => each.tables)
    if (!isDeepStrictEqual(tables, known)) await this.#lookAgain(tables)
  }

  /** @param seen tables below that were seen since the last look @throws DM_SNAPSHOT_CHANGED, DM_COW_DETACHED … */
  async #lookAgain(seen?: readonly TablesBelow[]): Promise<void> {
    this.#below = await this.#rightBelow(await this.#lookedUp(), seen)
  }

  async #lookedUp(): Promise<readonly ClassicSnapshot[]> {
    const { classicSnapshots } = this.#services.catalog
    const lookUp: LookUp = async (handles) => {
      const now = await this.#lookUp(handles)
      for (const each of now) if (isWritable(each)) await classicSnapshots.sawWritable(factsOf(each))
      return now
    }
    return lookAgain(this.#snapshots, lookUp, steady)
  }

  async #rightBelow(
    snapshots: readonly ClassicSnapshot[],
    seen?: readonly TablesBelow[]
  ): Promise<readonly LookedBelow[]> {
    const { logger } = this.#services
    const onUnlike = (each: LookedBelow) =>
      logger.warn(
        { handle: each.handle, why: whatIsUnlike(each) },
        "a table is not as LVM's metadata says; looking again"
      )
    return rightBelow(snapshots, () => this.#lookedUp(), { good: this.#below, seen, onUnlike })
  }

  /**
   * What a store says against a question, the kernel or LVM may say better: that it was given up, merged, or made anew.
   */
  async explained(error: unknown): Promise<unknown> {
    if (error instanceof DeltamapperError && error.code !== 'DM_METADATA_DAMAGED' && error.code !== 'DM_READ_FAILED') {
      return error
    }
    return this.checkState().then(
      () => error,
      (found: unknown) => found
    )
  }

  /** The entries that the kernel has counted. That it has given a snapshot up is remembered. */
  async #counted(snapshot: ClassicSnapshot): Promise<number> {
    const { catalog, deviceMapper } = this.#services
    try {
      return await entriesCounted(deviceMapper, snapshot, snapshot.devices)
    } catch (error) {
      if (error instanceof DeltamapperError && givenUp.includes(error.code)) {
        await catalog.classicSnapshots.giveUp(factsOf(snapshot))
      }
      throw error
    }
  }

  async #longestList(snapshot: ClassicSnapshot): Promise<ClassicRow | undefined> {
    const facts = factsOf(snapshot)
    return longestList(await this.#services.catalog.classicSnapshots.find(facts), facts)
  }

  async #checkBase(base: ClassicSnapshot): Promise<ClassicRow | undefined> {
    const { catalog, logger, strictBases } = this.#services
    const facts = factsOf(base)
    await catalog.classicSnapshots.refuseServedAsThin(facts.handle)
    const records = await catalog.classicSnapshots.find(facts)
    const record = checkClassicBase(records, facts)
    if (record) return record
    if (strictBases) {
      throw new DeltamapperError(
        'DM_BASE_UNRECORDED',
        `${base.handle} was never served here, or was forgotten: nothing proves that it holds what the backup of it does`,
        'take a full backup through this agent; `strictBases: false` answers for such bases'
      )
    }
    checkTimes(base)
    logger.warn(
      { base: base.handle, code: 'DM_BASE_UNRECORDED' },
      "the base was never served here: that it was not split off and joined again rests on LVM's times"
    )
    return undefined
  }

  /** @throws DM_RESUME_REFUSED */
  async #checkResumed(): Promise<void> {
    if (this.#startingOffset === 0) return
    const { link } = this.#target
    const { handle, identity, readOnly } = factsOf(this.#target)
    const all = await this.#services.catalog.classicSnapshots.find({ handle, identity })
    const records = all.filter(({ role }) => role === 'target')
    const isOnRecord = records.some((each) => each.handle === handle && each.identity === identity)
    const wasWritable = all.some((each) => each.identity === identity && each.readOnly === 0)
    const isAnother = records.some((each) => each.identity !== identity || each.link !== link.id)
    if (!isOnRecord) throw resumeRefused(handle, 'no answer about it was begun by this name')
    if (isAnother) throw resumeRefused(handle, 'it is another snapshot than the one that it was begun about')
    if (!readOnly || wasWritable)
      throw resumeRefused(handle, 'it can be written to, or could, and what was written since is not known')
  }

  /** Nobody can write into either, or could, as far as is known. */
  #isContentKnown(): boolean {
    const isKnown = (snapshot: AskedSnapshot | undefined) => snapshot?.readOnly === true && !snapshot.isOpen
    return isKnown(this.#base) && isKnown(this.#target) && (this.#record === undefined || this.#record.readOnly === 1)
  }

  /** For all of the volume at once where there is enough. @throws DM_TOO_MANY_STREAMS */
  #takeMemory(signal: AbortSignal): number {
    const chunks = this.#snapshots.map(({ devices }) => Math.ceil(devices.sizeBytes / devices.chunkBytes))
    const wanted = wantedDeltaBytes(Math.max(...chunks), this.#compareBytes() > 0)
    return this.#services.memory.take(LEAST_DELTA_BYTES, wanted, signal)
  }

  /**
   * How much may be compared. Only where nobody can write into either, or did: who wrote the target's content into the
   * base would hide a change from what was backed up.
   */
  #compareBytes(): number {
    const { compare, compareBytes } = this.#services
    if (compare === 'never' || !this.#isContentKnown()) return 0
    if (compare === 'always') return Number.MAX_SAFE_INTEGER
    return this.#record ? compareBytes : 0
  }
}

/**
 * Whether a base that is not on record was tied to its origin when it was made.
 *
 * @throws DM_COW_REJOINED; DM_BASE_UNRECORDED where LVM has noted no times
 */
function checkTimes({ handle, link: { linkedAt, createdAt } }: ClassicSnapshot): void {
  if (linkedAt === 0 || createdAt === 0) {
    throw new DeltamapperError(
      'DM_BASE_UNRECORDED',
      `${handle} was never served here, and LVM has not noted when it was taken: it may have been split off and joined again`,
      'take a full backup through this agent'
    )
  }
  if (Math.abs(linkedAt - createdAt) > ONE_COMMAND) throw rejoined(handle)
}

/**
 * What of a snapshot stays as it is: its place is another one as soon as somebody else's volume is removed, and LVM may
 * move data. (Whether it is read-only, its devices say.)
 */
function steady(snapshot: FoundSnapshot): unknown {
  if (snapshot.kind !== 'classic') return snapshot
  const { link } = snapshot as ClassicSnapshot
  const below = { tables: undefined, unlike: undefined, sequenceNumber: undefined }
  const opened = { readOnly: undefined, isOpen: undefined }
  return { ...snapshot, ...below, ...opened, link: { ...link, place: 0 } }
}

/** A snapshot of a question, and who has it open. */
interface AskedSnapshot extends ClassicSnapshot {
  /** By somebody of whom nothing tells whether they only read: nothing is to rest on its content. */
  readonly isOpen: boolean
}

function isWritable(snapshot: FoundSnapshot): snapshot is ClassicSnapshot {
  return snapshot.kind === 'classic' && !(snapshot as ClassicSnapshot).readOnly
}

/** A read-only one that somebody may write into all the same is not. @throws what device-mapper calls throw */
async function asked(
  snapshot: ClassicSnapshot,
  { deviceMapper }: Pick<ClassicServices, 'deviceMapper'>
): Promise<AskedSnapshot> {
  const writers = snapshot.readOnly ? await openToWriters(deviceMapper, snapshot.devices) : undefined
  return { ...snapshot, readOnly: snapshot.readOnly && !writers?.areKnown, isOpen: writers !== undefined }
}

/** By one name, whatever it was asked for by: names rotate. */
function factsOf(snapshot: ClassicSnapshot): ClassicFacts {
  const { handle, ownHandle = handle, identity, link, volume, devices, readOnly } = snapshot
  const { sizeBytes, chunkBytes } = devices
  return { handle: ownHandle, identity, link: link.id, origin: volume, sizeBytes, chunkBytes, readOnly }
}

/** @throws DM_VOLUMES_DIFFER, DM_ORDER_REVERSED */
function checkRelated(base: ClassicSnapshot, target: ClassicSnapshot): void {
  // A group that was cloned (vgimportclone) has the volumes' UUIDs, and an origin of its own.
  if (base.originUuid !== target.originUuid) {
    throw new DeltamapperError(
      'DM_VOLUMES_DIFFER',
      `${base.handle} is a snapshot of ${base.volumeName}, ${target.handle} of ${target.volumeName}`,
      'compare snapshots of one volume'
    )
  }
  // A clock may have gone back in between, and a volume been put before others: what the two say together is taken for
  // true. (Either way the answer has all that differs; it is the caller who has mixed something up.)
  if (base.link.createdAt > target.link.createdAt && base.link.place > target.link.place) {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `base ${base.handle} was taken after target ${target.handle}`,
      'ask the other way round'
    )
  }
}

function originInUse(lv: LogicalVolume): DeltamapperError {
  return new DeltamapperError(
    'DM_VOLUME_IN_USE',
    `${fullName(lv)} is a volume in use, not a snapshot`,
    `take a snapshot of it (lvcreate -s -L SIZE ${fullName(lv)}), and ask for that`
  )
}

function contradiction(lv: LogicalVolume, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `LVM contradicts itself about ${fullName(lv)}: ${what}`,
    'ask again; if it happens again, `vgck` checks the volume group'
  )
}
