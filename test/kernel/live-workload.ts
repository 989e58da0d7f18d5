/**
 * A random history of a thin pool that is in use, with backups taken through a real agent at random moments: every answer restores
 * the snapshot, byte for byte, or is a refusal that the history justifies (expected-refusals.ts). Runs inside the kernel lab:
 *
 *   node test/kernel/live-workload.ts --pool dmsetup|lvm --seed S --steps N
 *
 * The workload does not know what volumes hold: it reads the snapshots. A backup of everything allocated begins with zeros, one of
 * what changed begins with an earlier backup, cut or filled up to the snapshot's size; the extents of the answer are read from
 * the snapshot's device and laid over it, and the result is compared with the whole device.
 */
import {
  closeSync,
  constants,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  writeFileSync,
  writeSync
} from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { Random } from '../support/random.ts'
import { parseThinDelta } from '../support/thin-tools.ts'
import { BackgroundWriter } from './background-writer.ts'
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
import { DmsetupPool } from './dmsetup-workload-pool.ts'
import {
  expectedRefusals,
  type NamedThin,
  type PoolDevice,
  type Refusal,
  type ServedRecord,
  type Stranger
} from './expected-refusals.ts'
import { LiveAgent } from './live-agent.ts'
import { LvmPool } from './lvm-workload-pool.ts'
import { DeviceReader, type Extent, VolumeContent } from './volume-content.ts'
import { blockBytes, type WorkloadPool } from './workload-pool.ts'

const mebibyte = 2 ** 20
const disk = '/dev/ubda'
/** Backups that are kept to be bases of later ones; each may hold a volume in memory. */
const MOST_BACKUPS = 24
const MOST_SNAPSHOTS = 12
const MOST_VOLUMES = 4
/** The thin in a pool of its own. */
const elsewhere = { pool: 'other-pool', name: 'elsewhere' }

export interface WorkloadOptions {
  readonly pool: WorkloadPool['kind']
  readonly seed: number
  readonly steps: number
  /** Told how it goes on, now and then. */
  readonly onProgress?: (line: string) => void
}

export interface WorkloadReport {
  steps: number
  /** Backups that were restored and compared. */
  full: number
  incremental: number
  /** Of those, with a base of another size, or of which less was allocated than it had. */
  resized: number
  /** Incremental ones that thin_delta agreed with. */
  agreedWithThinDelta: number
  /** Answers that were left early and resumed. */
  resumed: number
  refused: Partial<Record<ErrorCode, number>>
  /** What somebody else did to the pool meanwhile. */
  background: { writes: number; flushes: number; commands: number }
  /** How often each kind of step was taken. */
  actions: Record<string, number>
}

interface Thin extends NamedThin {
  name: string
  identity: string
  device: PoolDevice
  sizeBytes: number
  originIdentity: string | undefined
  merging: boolean
  thinId: number
  /** In use, rather than kept for backups. */
  isVolume: boolean
  mountedAt: string | undefined
}

/** What was read of a snapshot, and how it was asked for. */
interface Backup {
  readonly handle: string
  readonly device: PoolDevice
  readonly version: number
  readonly content: VolumeContent
}

interface Answer {
  readonly capacityBytes: number
  readonly extents: Extent[]
  readonly resumed: boolean
}

/** Lives through a history and checks everything on the way. Throws an Error that says which step of which seed went wrong, and how. */
export async function liveWorkload(options: WorkloadOptions): Promise<WorkloadReport> {
  const random = new Random(options.seed)
  const pool = options.pool === 'lvm' ? LvmPool.create(disk) : await DmsetupPool.create(disk, random.chance(0.7))
  const agent = await LiveAgent.start()
  const { noise } = pool
  const background = new BackgroundWriter({
    seed: random.uint32(),
    own: { path: noise.path, sizeBytes: noise.sizeBytes },
    commands: noise.commands,
    commandsApart: noise.commandsApart
  })
  const workload = new Workload(pool, agent, background, random)
  let step = 0
  try {
    await workload.begin()
    while (step < options.steps) {
      await workload.step()
      step++
      if (step % 100 === 0) options.onProgress?.(`step ${step}: ${JSON.stringify(workload.report)}`)
    }
  } catch (error) {
    const again = `node test/lab/run.ts --timeout 7200 test/kernel/live-workload.ts --pool ${options.pool} --seed ${options.seed} --steps ${step + 1}`
    const history = workload.history.slice(-40).join('\n  ')
    throw new Error(
      `${(error as Error).message}\nin step ${step + 1} of seed ${options.seed}, ${options.pool} pool; again: ${again}\nbefore that:\n  ${history}`,
      { cause: error }
    )
  }
  await background.stop()
  await workload.end()
  const status = await agent.stop()
  if (status !== 0) throw new Error(`the agent ended with status ${status}: ${agent.stderr}`)
  await pool.close()
  return workload.report
}

class Workload {
  /** What was done, for a person who looks into a failure. */
  readonly history: string[] = []
  readonly report: WorkloadReport = {
    ...{ steps: 0, full: 0, incremental: 0, resized: 0, agreedWithThinDelta: 0, resumed: 0 },
    refused: {},
    background: { writes: 0, flushes: 0, commands: 0 },
    actions: {}
  }
  readonly #pool: WorkloadPool
  readonly #agent: LiveAgent
  readonly #client: SnapshotMetadataClient
  readonly #background: BackgroundWriter
  readonly #random: Random
  #thins: Thin[] = []
  readonly #backups: Backup[] = []
  readonly #records: ServedRecord[] = []
  #serial = 0
  #names = 0
  readonly #buffer = alignedBuffer(mebibyte)

  constructor(pool: WorkloadPool, agent: LiveAgent, background: BackgroundWriter, random: Random) {
    this.#pool = pool
    this.#agent = agent
    this.#client = agent.client()
    this.#background = background
    this.#random = random
  }

  async begin(): Promise<void> {
    if (this.#pool.kind === 'dmsetup') createOtherPool()
    const volume = await this.#createVolume(16 * mebibyte)
    this.#format(volume)
    for (let i = 0; i < 2; i++) await this.#write(await this.#createVolume())
    await this.#backUp()
  }

  async end(): Promise<void> {
    for (const thin of this.#thins) this.#unmount(thin)
    if (this.#pool.kind === 'dmsetup') removeOtherPool()
  }

  async step(): Promise<void> {
    this.report.steps++
    const random = this.#random
    const snapshots = this.#snapshots
    const volumes = this.#thins.filter((each) => each.isVolume)
    const unmounted = volumes.filter((each) => each.mountedAt === undefined)
    const mounted = volumes.filter((each) => each.mountedAt !== undefined)
    const full = snapshots.length >= MOST_SNAPSHOTS || (await this.#pool.fullness()) > 0.75
    // What LVM does takes half a second: there is less of it.
    const managed = this.#pool.kind === 'lvm' ? 0.6 : 1

    type Action = readonly [what: string, weight: number, among: readonly Thin[], act: (thin: Thin) => Promise<unknown>]
    const actions: readonly Action[] = [
      ['back up', 34, this.#thins, () => this.#backUp()],
      ['write', 20, unmounted, (thin) => this.#write(thin)],
      ['discard', 6, unmounted, (thin) => this.#discard(thin)],
      ['use files', 8, mounted, (thin) => this.#useFiles(thin)],
      ['trim files', 2, mounted, (thin) => this.#trimFiles(thin)],
      ['remount', 1, mounted, (thin) => this.#remount(thin)],
      ['snapshot', full ? 0 : 16 * managed, volumes, (thin) => this.#snapshot(thin)],
      ['snapshot a snapshot', full ? 0 : 3 * managed, snapshots, (thin) => this.#snapshot(thin)],
      ['remove a snapshot', full ? 60 : 5 * managed, snapshots, (thin) => this.#remove(thin)],
      ['remove a volume', volumes.length > 2 ? 1.5 * managed : 0, unmounted, (thin) => this.#remove(thin)],
      ['create a volume', volumes.length < MOST_VOLUMES ? 2 * managed : 0, volumes, () => this.#createVolume()],
      ['restore', volumes.length < MOST_VOLUMES && !full ? 3 * managed : 0, snapshots, (thin) => this.#restore(thin)],
      ['replace', 2 * managed, snapshots, (thin) => this.#replace(thin)],
      ['rename', 1.5 * managed, snapshots, (thin) => this.#rename(thin)],
      ['exchange names', 0.7 * managed, snapshots, (thin) => this.#exchangeNames(thin)],
      ['resize', 5 * managed, unmounted, (thin) => this.#resize(thin)],
      ['resize a snapshot', 1 * managed, snapshots, (thin) => this.#resize(thin)],
      ['write to a snapshot', 2, snapshots, (thin) => this.#write(thin)],
      ['discard in a snapshot', 2, snapshots, (thin) => this.#discard(thin)],
      ['merge', this.#pool.merge ? 3 : 0, this.#mergeable(), (thin) => this.#merge(thin)]
    ]
    const possible = actions.filter(([, weight, among]) => weight > 0 && among.length > 0)
    let dice = random.fraction() * possible.reduce((sum, [, weight]) => sum + weight, 0)
    const [what, , among, act] = possible.find(([, weight]) => (dice -= weight) < 0) ?? possible[0]
    this.report.actions[what] = (this.report.actions[what] ?? 0) + 1
    await act(random.pick(among))
    this.report.background = this.#background.counts
    // A log line to a call.
    this.#agent.log = this.#agent.log.slice(-100)
  }

  get #snapshots(): Thin[] {
    return this.#thins.filter((each) => !each.isVolume)
  }

  // What happens to the pool

  async #createVolume(sizeBytes = this.#randomSize()): Promise<Thin> {
    const name = `vol${++this.#names}`
    await this.#pool.createVolume(name, sizeBytes)
    const device = { serial: ++this.#serial, isSnapshot: false, version: 0, written: false }
    const thin = await this.#add(name, device, true)
    this.#say(`create ${this.#describe(thin)}`)
    return thin
  }

  async #snapshot(origin: Thin, name = `snap${++this.#names}`): Promise<Thin> {
    await this.#pool.snapshot(origin.name, name, this.#random.chance(0.15))
    const thin = await this.#add(name, { serial: ++this.#serial, isSnapshot: true, version: 0, written: false }, false)
    this.#say(`snapshot of ${origin.name}: ${this.#describe(thin)}`)
    return thin
  }

  /** A snapshot that is used from now on. */
  async #restore(snapshot: Thin): Promise<void> {
    const name = `vol${++this.#names}`
    await this.#pool.snapshot(snapshot.name, name, true)
    const device = { serial: ++this.#serial, isSnapshot: true, version: 0, written: false }
    const thin = await this.#add(name, device, true)
    this.#say(`restore ${snapshot.name} as ${this.#describe(thin)}`)
    if (this.#random.chance(0.7)) await this.#write(thin)
  }

  async #remove(thin: Thin): Promise<void> {
    this.#unmount(thin)
    await this.#pool.remove(thin.name)
    this.#thins = this.#thins.filter((each) => each !== thin)
    this.#say(`remove ${this.#describe(thin)}`)
    await this.#refresh()
  }

  /** Another snapshot under the same name and, where ids are used again, the same id. */
  async #replace(snapshot: Thin): Promise<void> {
    const origin = this.#random.pick(this.#thins.filter((each) => each !== snapshot))
    await this.#remove(snapshot)
    await this.#snapshot(origin, snapshot.name)
  }

  async #rename(thin: Thin, name = `snap${++this.#names}`): Promise<void> {
    await this.#pool.rename(thin.name, name)
    this.#say(`rename ${thin.name} to ${name}`)
    thin.name = name
    await this.#refresh()
  }

  async #exchangeNames(one: Thin): Promise<void> {
    const others = this.#snapshots.filter((each) => each !== one)
    if (others.length === 0) return
    const other = this.#random.pick(others)
    const [oneName, otherName] = [one.name, other.name]
    await this.#rename(one, `snap${++this.#names}`)
    await this.#rename(other, oneName)
    await this.#rename(one, otherName)
  }

  async #resize(thin: Thin): Promise<void> {
    const sizeBytes = this.#randomSize()
    const before = thin.sizeBytes
    await this.#pool.resize(thin.name, sizeBytes)
    this.#say(`resize ${thin.name} from ${before} to ${sizeBytes} bytes`)
    await this.#refresh()
  }

  #mergeable(): Thin[] {
    return this.#snapshots.filter((each) => {
      const origin = this.#thins.find(({ identity }) => identity === each.originIdentity)
      return origin?.isVolume === true && origin.mountedAt === undefined
    })
  }

  async #merge(snapshot: Thin): Promise<void> {
    const origin = this.#thins.find(({ identity }) => identity === snapshot.originIdentity)
    if (origin === undefined || this.#pool.merge === undefined) return
    this.#say(`merge ${snapshot.name} into ${origin.name}`)
    const whilePending = async () => {
      snapshot.merging = true
      // Until the merge is done the volume is what it was.
      for (const each of [snapshot, origin]) await this.#backUp(each)
    }
    await this.#pool.merge(snapshot.name, origin.name, this.#random.chance(0.5) ? whilePending : undefined)
    this.#thins = this.#thins.filter((each) => each !== snapshot)
    origin.device = snapshot.device
    await this.#refresh()
  }

  async #write(thin: Thin): Promise<void> {
    const random = this.#random
    const buffered = random.chance(0.3)
    const kind = random.pick(['one', 'cluster', 'scattered'] as const)
    await this.#pool.withDevice(thin.name, (path) => {
      const file = openSync(path, buffered ? constants.O_RDWR : constants.O_RDWR | constants.O_DIRECT)
      try {
        const count = kind === 'one' ? 1 : random.integer(2, 12)
        let at = this.#randomOffset(thin.sizeBytes)
        for (let i = 0; i < count; i++) {
          const size = sectorBytes * random.integer(1, random.chance(0.5) ? 8 : 256)
          const within = Math.min(size, thin.sizeBytes - at)
          this.#fillBuffer(within)
          writeSync(file, this.#buffer, 0, within, at)
          at = kind === 'cluster' ? (at + within) % thin.sizeBytes : this.#randomOffset(thin.sizeBytes)
        }
        // What is to be in a backup has to be in the pool's metadata.
        fsyncSync(file)
      } finally {
        closeSync(file)
      }
    })
    touched(thin.device)
    this.#say(`write ${kind}${buffered ? ', buffered,' : ''} to ${thin.name}`)
  }

  async #discard(thin: Thin): Promise<void> {
    const random = this.#random
    const offset = random.chance(0.2) ? 0 : this.#randomOffset(thin.sizeBytes)
    const most = random.chance(0.15) ? thin.sizeBytes : 20 * blockBytes
    const length = Math.min(thin.sizeBytes - offset, sectorBytes * random.integer(1, most / sectorBytes))
    await this.#pool.withDevice(thin.name, async (path) => {
      const before = await this.#pool.mappedBlocks(path)
      run('blkdiscard', ['--offset', String(offset), '--length', String(length), path])
      const file = openSync(path, 'r+')
      fsyncSync(file)
      closeSync(file)
      const after = await this.#pool.mappedBlocks(path)
      // Only whole blocks that were mapped make a difference.
      if (after !== before) thin.device.version++
      this.#say(`discard ${length} bytes from ${offset} in ${thin.name}: ${before} blocks, then ${after}`)
    })
  }

  // A file system

  #format(thin: Thin): void {
    const path = this.#pool.volumePath(thin.name)
    run('mkfs.ext4', ['-q', '-F', path])
    touched(thin.device)
    thin.mountedAt = `/run/mnt/${thin.name}`
    mkdirSync(thin.mountedAt, { recursive: true })
    run('mount', [path, thin.mountedAt])
    this.#say(`ext4 on ${thin.name}`)
  }

  async #useFiles({ name, device, mountedAt = '' }: Thin): Promise<void> {
    const random = this.#random
    touched(device)
    const names = readdirSync(mountedAt).filter((each) => each !== 'lost+found')
    const removed = names.filter(() => random.chance(0.3))
    for (const each of removed) rmSync(join(mountedAt, each))
    const created = names.length < 12 ? random.integer(1, 4) : 0
    for (let i = 0; i < created; i++) {
      const size = random.integer(1, 400_000)
      this.#fillBuffer(size)
      writeFileSync(join(mountedAt, `file${++this.#names}`), this.#buffer.subarray(0, size), {
        flush: random.chance(0.5)
      })
    }
    this.#say(`${removed.length} files removed, ${created} created on ${name}`)
  }

  async #trimFiles({ name, device, mountedAt = '' }: Thin): Promise<void> {
    run('fstrim', [mountedAt])
    touched(device)
    this.#say(`fstrim of ${name}`)
  }

  async #remount(thin: Thin): Promise<void> {
    const { mountedAt = '' } = thin
    this.#unmount(thin)
    // As a target it can be compared while it is not in use.
    if (this.#random.chance(0.5)) await this.#backUp(thin)
    run('mount', [this.#pool.volumePath(thin.name), mountedAt])
    thin.mountedAt = mountedAt
    touched(thin.device)
    this.#say(`mount ${thin.name} again`)
  }

  #unmount(thin: Thin): void {
    if (thin.mountedAt === undefined) return
    run('umount', [thin.mountedAt])
    touched(thin.device)
    thin.mountedAt = undefined
    this.#say(`unmount ${thin.name}`)
  }

  // Backups

  async #backUp(chosen?: Thin): Promise<void> {
    const random = this.#random
    const comparable = this.#thins.filter((each) => each.mountedAt === undefined)
    const target =
      chosen ?? random.pick(random.chance(0.9) && this.#snapshots.length > 0 ? this.#snapshots : comparable)
    const stray = chosen === undefined && random.chance(0.04)
    const [targetHandle, targetThin] = stray ? this.#strayHandle(false) : [this.#handle(target), target]
    const base = this.#chooseBase(target)
    const [baseHandle, baseThin] = this.#baseHandle(base)

    const pair = [target, baseThin]
    const written = this.#thins.filter(
      (each) => each.isVolume && !each.mountedAt && !pair.includes(each) && !each.merging
    )
    const beside = random.chance(0.7) ? written : []
    for (const { device } of beside) touched(device)
    await this.#background.writeTo(
      beside.map(({ name, sizeBytes }) => ({ path: this.#pool.volumePath(name), sizeBytes }))
    )
    try {
      const what = `${baseHandle === undefined ? 'all' : `from ${baseHandle}`} to ${targetHandle}`
      const expected = expectedRefusals(
        {
          target: targetThin,
          ...(baseThin !== undefined && { base: baseThin }),
          ...(baseHandle !== undefined && { baseHandle })
        },
        this.#records
      )
      const outcome = await this.#ask(baseHandle, targetHandle)
      // Bases are on record as well.
      if (baseHandle !== undefined && typeof baseThin === 'object') this.#recordServed(baseHandle, baseThin, false)
      if (outcome instanceof DeltamapperError) {
        this.#say(`${what}: ${outcome.code}`)
        if (typeof targetThin !== 'string') this.#recordServed(targetHandle, targetThin, false)
        this.#checkRefusal(what, outcome, expected)
      } else {
        const { capacityBytes, extents } = outcome
        this.#say(`${what}: ${extents.length} extents`)
        if (typeof targetThin === 'string') throw new Error(`${what} was answered, and there is no such snapshot`)
        this.#recordServed(targetHandle, targetThin, true)
        const mistake = expected.find(({ certain }) => certain)
        if (mistake) throw new Error(`${what} was answered, and should have been ${mistake.code}: ${mistake.why}`)
        if (capacityBytes !== targetThin.sizeBytes) {
          throw new Error(`${what}: the capacity is ${capacityBytes}, and should be ${targetThin.sizeBytes}`)
        }
        await this.#compare(what, base, targetHandle, targetThin, outcome)
        const ofThisPool = typeof baseThin === 'object' && baseThin !== targetThin
        if (ofThisPool && random.chance(0.15)) await this.#compareWithThinDelta(what, baseThin, targetThin, extents)
      }
    } finally {
      await this.#background.writeTo([])
    }
  }

  /** Mostly a backup that ought to do as base; sometimes any, or none at all. */
  #chooseBase(target: Thin): Backup | undefined {
    const random = this.#random
    const dice = random.fraction()
    if (dice < 0.12 || this.#backups.length === 0) return undefined
    if (dice < 0.3) return random.pick(this.#backups)
    const fitting = this.#backups.filter(({ device, version, handle }) => {
      const base = this.#thins.find((each) => each.device === device)
      if (base === undefined || this.#handle(base) !== handle || device.version !== version) return false
      const refusals = expectedRefusals({ base, baseHandle: handle, target }, this.#records)
      return refusals.every(({ code }) => code === 'DM_RESUME_REFUSED')
    })
    if (fitting.length > 0) return random.pick(fitting)
    return random.chance(0.3) ? random.pick(this.#backups) : undefined
  }

  /** How the base of a backup is asked for: as it was then, mostly; and what goes by that handle now. */
  #baseHandle(base: Backup | undefined): [handle: string | undefined, thin: Thin | Stranger | undefined] {
    if (base === undefined) return [undefined, undefined]
    if (this.#random.chance(0.03)) return this.#strayHandle(true)
    const still = this.#thins.find(({ device }) => device === base.device)
    const handle = still && this.#random.chance(0.3) ? this.#handle(still) : base.handle
    return [handle, this.#thins.find((each) => this.#handle(each) === handle) ?? 'nothing']
  }

  #strayHandle(asBase: boolean): [handle: string, stranger: Stranger] {
    const dice = this.#random.integer(0, 2)
    if (this.#pool.kind === 'dmsetup' && dice === 0) return [`${this.#pool.source}/thin-3`, 'bare device id']
    if (this.#pool.kind === 'dmsetup' && dice === 1 && asBase) {
      return [`${elsewhere.pool}/${elsewhere.name}`, 'in another pool']
    }
    return [`${this.#pool.source}/never`, 'nothing']
  }

  /** The whole answer; sometimes in two parts, the second one asked for where the first was left. */
  async #ask(base: string | undefined, target: string): Promise<Answer | DeltamapperError> {
    const random = this.#random
    const maxResults = random.pick([0, 0, 0, 1, 3, 20])
    const most = random.chance(0.2) ? random.integer(1, 6) : Infinity
    const extents: Extent[] = []
    const part = async (startingOffset: number, count: number): Promise<number> => {
      const options = { startingOffset, maxResults, deadlineMs: 60_000 }
      const stream =
        base === undefined
          ? await this.#client.allocated({ snapshotId: target, ...options })
          : await this.#client.delta({ baseSnapshotId: base, targetSnapshotId: target, ...options })
      const { capacityBytes } = stream
      if (capacityBytes === undefined) throw new Error('our own agent always says the capacity')
      for await (const batch of stream.batches) {
        for (let i = 0; i < batch.count; i++) {
          if (extents.length === count) return capacityBytes
          extents.push([batch.offsets[i], batch.sizes[i]])
        }
      }
      return capacityBytes
    }
    try {
      const capacityBytes = await part(0, most)
      const resumed = extents.length === most
      if (resumed) {
        const [offset, size] = extents[most - 1]
        const again = await part(offset + size, Infinity)
        if (again !== capacityBytes) throw new Error(`${target} had ${capacityBytes} bytes, and ${again} when resumed`)
        this.report.resumed++
      }
      return { capacityBytes, extents, resumed }
    } catch (error) {
      if (error instanceof DeltamapperError) return error
      throw error
    }
  }

  #recordServed(handle: string, { identity, device, sizeBytes, originIdentity }: Thin, certain: boolean): void {
    const record = {
      handle,
      identity,
      serial: device.serial,
      version: device.version,
      sizeBytes,
      originIdentity,
      certain
    }
    const same = (each: ServedRecord) =>
      Object.entries(record).every(([field, value]) => each[field as keyof ServedRecord] === value)
    if (!this.#records.some(same)) this.#records.push(record)
  }

  #checkRefusal(what: string, refusal: DeltamapperError, expected: readonly Refusal[]): void {
    const { code } = refusal
    if (!expected.some((each) => each.code === code)) {
      const right = expected.map((each) => `${each.code} (${each.why})`).join(' or ') || 'an answer'
      throw new Error(`${what} was refused (${refusal.line}), and should have been ${right}`)
    }
    this.report.refused[code] = (this.report.refused[code] ?? 0) + 1
  }

  /** Restores, compares, and keeps the backup. */
  async #compare(what: string, base: Backup | undefined, handle: string, target: Thin, answer: Answer): Promise<void> {
    const content = await this.#pool.withDevice(target.name, (path) => {
      const device = new DeviceReader(path)
      try {
        const before =
          base === undefined ? VolumeContent.zeros(target.sizeBytes) : base.content.resized(target.sizeBytes)
        const restored = before.patched(answer.extents, device)
        const difference = restored.firstDifference(device)
        if (difference !== undefined) {
          const extents = answer.extents.map(([offset, size]) => `${offset}+${size}`).join(' ')
          throw new Error(
            `${what}: the restore differs from ${this.#describe(target)} at byte ${difference}` +
              (base ? ` (the base had ${base.content.sizeBytes} bytes)` : '') +
              `; the answer was ${extents}`
          )
        }
        return restored
      } finally {
        device.close()
      }
    })
    this.report[base === undefined ? 'full' : 'incremental']++
    if (base !== undefined && base.content.sizeBytes !== content.sizeBytes) this.report.resized++
    const { device } = target
    this.#backups.push({ handle, device, version: device.version, content })
    if (this.#backups.length > MOST_BACKUPS) this.#backups.shift()
  }

  /** thin_delta wants a metadata snapshot; with that one held, the agent answers as before. */
  async #compareWithThinDelta(what: string, base: Thin, target: Thin, extents: readonly Extent[]): Promise<void> {
    const { poolDevice, metadataDevice } = this.#pool
    const ids = ['--thin1', String(base.thinId), '--thin2', String(target.thinId)]
    let again: Answer | DeltamapperError
    let xml: string
    sendMessage(poolDevice, 'reserve_metadata_snap')
    try {
      again = await this.#ask(this.#handle(base), this.#handle(target))
      xml = run('thin_delta', ['-m', ...ids, metadataDevice])
    } finally {
      sendMessage(poolDevice, 'release_metadata_snap')
    }
    const said = JSON.stringify(extents)
    if (again instanceof DeltamapperError) {
      // The first answer has put the target on record, and so what it was a snapshot of.
      const question = { base, baseHandle: this.#handle(base), target }
      const still = `${what}, with a metadata snapshot held`
      this.#checkRefusal(still, again, expectedRefusals(question, this.#records))
    } else if (JSON.stringify(again.extents) !== said) {
      throw new Error(`${what}: another answer while a metadata snapshot is held`)
    }

    // It does not know sizes: what no backup of a smaller base holds is changed as well.
    const baseEnd = base.sizeBytes < target.sizeBytes ? Math.floor(base.sizeBytes / blockBytes) : Infinity
    const changed: number[] = []
    for (const { kind, begin, length } of parseThinDelta(xml, base.thinId, target.thinId)) {
      for (let block = begin; block < begin + length; block++)
        if (kind !== 'same' || block >= baseEnd) changed.push(block)
    }
    const expected = JSON.stringify(asExtents(changed, target.sizeBytes))
    if (said !== expected) throw new Error(`${what}: the agent says ${said}, thin_delta ${expected}`)
    this.report.agreedWithThinDelta++
  }

  // Small things

  async #add(name: string, device: PoolDevice, isVolume: boolean): Promise<Thin> {
    const thin: Thin = {
      ...{ name, device, isVolume, identity: '', originIdentity: undefined, merging: false, mountedAt: undefined },
      ...{ thinId: -1, sizeBytes: -1 }
    }
    this.#thins.push(thin)
    await this.#refresh()
    return thin
  }

  /** What whoever runs the pool says of its thins; where nobody does, a device is itself, and its origin unknown. */
  async #refresh(): Promise<void> {
    const facts = await this.#pool.facts()
    if (facts.size !== this.#thins.length) throw new Error(`${facts.size} thins are there, not ${this.#thins.length}`)
    for (const thin of this.#thins) {
      const known = facts.get(thin.name)
      if (known === undefined) throw new Error(`${thin.name} is not there`)
      thin.thinId = known.thinId
      thin.sizeBytes = known.sizeBytes
      thin.identity = known.uuid ?? `device ${thin.device.serial}`
      thin.originIdentity = known.originUuid
    }
  }

  #handle({ name }: Thin): string {
    return `${this.#pool.source}/${name}`
  }

  #describe({ name, thinId, sizeBytes, device }: Thin): string {
    return `${name} (thin ${thinId}, ${sizeBytes} bytes, device ${device.serial})`
  }

  #randomSize(): number {
    const { sizeUnit } = this.#pool
    return sizeUnit * this.#random.integer((2 * mebibyte) / sizeUnit, (16 * mebibyte) / sizeUnit)
  }

  #randomOffset(sizeBytes: number): number {
    const unit = this.#random.pick([sectorBytes, 4096, blockBytes])
    return unit * this.#random.integer(0, Math.ceil(sizeBytes / unit) - 1)
  }

  #fillBuffer(bytes: number): void {
    const words = new Uint32Array(this.#buffer.buffer, 0, Math.ceil(bytes / 4))
    let word = this.#random.uint32()
    // Different in every sector, and from one write to the next.
    for (let i = 0; i < words.length; i++) words[i] = word = (word + 0x9e3779b9) >>> 0
  }

  #say(what: string): void {
    this.history.push(`${this.report.steps}: ${what}`)
    if (this.history.length > 200) this.history.splice(0, 100)
  }
}

function touched(device: PoolDevice): void {
  device.written = true
  device.version++
}

function asExtents(blocks: readonly number[], sizeBytes: number): Extent[] {
  const extents: [number, number][] = []
  for (const block of blocks) {
    const offset = block * blockBytes
    if (offset >= sizeBytes) break
    const size = Math.min(blockBytes, sizeBytes - offset)
    const last = extents.at(-1)
    if (last !== undefined && last[0] + last[1] === offset) last[1] += size
    else extents.push([offset, size])
  }
  return extents
}

/** At the end of the disk. */
function createOtherPool(): void {
  const metadataDevice = createLinear('other-metadata', disk, 1024 * mebibyte, 2 * mebibyte)
  const dataDevice = createLinear('other-data', disk, 1026 * mebibyte, 4 * mebibyte)
  zeroStart(metadataDevice)
  createDevice(elsewhere.pool, thinPoolTable({ metadataDevice, dataDevice, dataBytes: 4 * mebibyte, blockBytes }))
  sendMessage(elsewhere.pool, 'create_thin 0')
  createDevice(elsewhere.name, thinTable(elsewhere.pool, 0, mebibyte))
}

function removeOtherPool(): void {
  run('dmsetup', ['remove', elsewhere.name, elsewhere.pool, 'other-metadata', 'other-data'])
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { pool: { type: 'string' }, seed: { type: 'string' }, steps: { type: 'string' } }
  })
  const { pool } = values
  if ((pool !== 'dmsetup' && pool !== 'lvm') || values.seed === undefined || values.steps === undefined) {
    throw new Error('usage: live-workload.ts --pool dmsetup|lvm --seed S --steps N (inside the kernel lab)')
  }
  try {
    const onProgress = (line: string) => console.log(line)
    const report = await liveWorkload({ pool, seed: Number(values.seed), steps: Number(values.steps), onProgress })
    console.log(JSON.stringify(report))
    process.exit(0)
  } catch (error) {
    console.error((error as Error).message)
    process.exit(1)
  }
}
