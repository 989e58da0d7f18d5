/**
 * A machine with a volume group of thin pools: what its users and LVM do to it, step by step, so that anybody may look in between, and
 * what a power cut leaves of it.
 *
 * LVM's own order (lib/metadata/thin_manip.c, lib/activate/dev_manager.c): what is to become of a pool is written to the group's metadata
 * first, then the pool gets its messages, each of which it commits, then its transaction id is put forward.
 */
import type { Random } from '../../support/random.ts'
import { DataDevice, ThinPool } from '../kernel/thin-pool.ts'
import { MetadataDisk } from '../metadata/disk.ts'
import { DeviceContent } from './content.ts'
import { type Device, Devices } from './devices.ts'
import { lvmUuid, type Pending, reportOf, type Volume } from './group.ts'
import type { Scheduler } from './scheduler.ts'

export const BLOCK_BYTES = 65536

/** What is done in steps: after each, others may have their turn. */
export type Steps<T = void> = Generator<void, T>

/** A pool of the group's: where its data and metadata are, and the pool itself while it is active. */
export class SpaceOf {
  readonly uuid: string
  name: string
  /** What the group's metadata says that the pool's transaction id is to be. */
  lvmTransactionId = 0
  pending: Pending[] = []
  readonly disk: MetadataDisk
  readonly data: DataDevice
  pool: ThinPool | undefined
  devices: Device[] = []
  /** By thin id: what the pool's devices hold. */
  readonly contents = new Map<number, DeviceContent>()
  /** When the state was fixed that the newest superblock on disk shows. */
  visibleSince = 0
  /** The same of the commit under way. */
  #fixedAt = 0

  constructor(name: string, uuid: string, metadataBlocks: number, dataBlocks: number) {
    this.name = name
    this.uuid = uuid
    this.disk = new MetadataDisk(metadataBlocks)
    this.data = new DataDevice(dataBlocks)
  }

  /** One write of the pool's commit. */
  stepCommit({ turn, random }: Scheduler): void {
    if (!this.pool) return
    if (!this.pool.isCommitting) this.#fixedAt = turn
    if (this.pool.stepCommit(random) === 'superblock') this.visibleSince = this.#fixedAt
  }
}

/** A copy of everything that is on the machine's disks, but for the agent's. */
interface DiskImage {
  readonly volumes: readonly Volume[]
  readonly pools: readonly {
    readonly metadata: ReadonlyMap<number, Buffer>
    readonly data: Int32Array
    readonly name: string
    readonly lvmTransactionId: number
    readonly contents: ReadonlyMap<number, DeviceContent>
    readonly time: number
    readonly transactionId: number
  }[]
}

export interface MachineSize {
  readonly life: number
  readonly pools: number
  readonly metadataBlocks: number
  readonly dataBlocks: number
}

export class Machine {
  readonly scheduler: Scheduler
  readonly devices: Devices
  readonly group: { name: string; uuid: string }
  readonly pools: SpaceOf[]
  volumes: Volume[] = []
  /** Told of what happens, for the story of a life. */
  readonly say: (what: () => string) => void
  image: DiskImage | undefined
  /** Blocks held something before the power cut that they do not hold now, of devices that were written to. */
  onLost: (content: DeviceContent) => void = () => undefined
  readonly #life: number
  #serial = 1
  #version = 1

  constructor(scheduler: Scheduler, size: MachineSize, say: (what: () => string) => void) {
    this.scheduler = scheduler
    this.say = say
    this.devices = new Devices(scheduler)
    this.#life = size.life
    this.group = { name: `vg${size.life}`, uuid: lvmUuid(size.life, 0) }
    this.pools = Array.from(
      { length: size.pools },
      (_, i) => new SpaceOf(`p${i}`, this.#uuid(), size.metadataBlocks, size.dataBlocks)
    )
    for (const space of this.pools) ThinPool.format(space.disk, space.data)
    for (const space of this.pools) finish(this.activatePool(space))
  }

  get #random(): Random {
    return this.scheduler.random
  }

  get report(): string {
    return reportOf(this.group, this.volumes, this.pools)
  }

  newVersion(): number {
    return this.#version++
  }

  fullName({ name }: Volume): string {
    return `${this.group.name}/${name}`
  }

  // Activation

  *activatePool(space: SpaceOf): Steps {
    if (space.pool) return
    const { name: vg } = this.group
    const base = `LVM-${this.group.uuid}${space.uuid}`.replaceAll('-', '').replace('LVM', 'LVM-')
    space.pool = ThinPool.load(space.disk, space.data)
    space.visibleSince = this.scheduler.turn
    const row = (targetType: string, params: string) => ({
      startSector: 0,
      lengthSectors: 524288,
      targetType,
      params
    })
    const part = (what: string) => ({
      ...{ name: `${vg}-${space.name}_${what}`, uuid: `${base}-${what}`, readOnly: false },
      table: row('linear', '8:16 2048')
    })
    const metadata = this.devices.add({ ...part('tmeta'), disk: space.disk })
    const data = this.devices.add(part('tdata'))
    const node = ({ number }: Device) => `${number.major}:${number.minor}`
    const target = this.devices.add({
      ...{ name: `${vg}-${space.name}-tpool`, uuid: `${base}-tpool`, readOnly: false },
      ...{ table: row('thin-pool', `${node(metadata)} ${node(data)} 128 0 0`), pool: () => space.pool! }
    })
    space.devices = [metadata, data, target]
    yield
    yield* this.#sendPending(space)
  }

  /** In order: what is written is committed. @returns whether nobody has it open */
  *deactivatePool(space: SpaceOf): Steps<boolean> {
    if (!space.pool) return true
    for (const volume of this.volumes) if (volume.pool === space) this.deactivate(volume)
    yield* this.commit(space)
    if (!space.pool || space.devices.some(({ openCount }) => openCount > 0)) return false
    for (const device of space.devices) this.devices.remove(device)
    space.devices = []
    space.pool = undefined
    yield
    return true
  }

  activate(volume: Volume): void {
    const { pool: space, name, content } = volume
    const target = space.devices.at(-1)
    if (volume.active || !target || !content) return
    volume.active = true
    this.devices.add({
      name: `${this.group.name}-${name}`,
      uuid: this.#deviceUuid(volume),
      readOnly: volume.readOnly,
      table: this.#thinTable(volume, target)
    })
  }

  deactivate(volume: Volume): void {
    const device = this.#device(volume)
    if (device) this.devices.remove(device)
    volume.active = false
  }

  // What LVM does, step by step

  *createVolume(name: string, blocks: number, sizeBytes: number, space: SpaceOf): Steps {
    const volume = this.#planned(name, space, undefined, sizeBytes, blocks)
    yield* this.#sendPending(space)
    if (space.pool) this.activate(volume)
  }

  *snapshot(origin: Volume, name: string, readOnly: boolean): Steps {
    const { pool: space, content, sizeBytes } = origin
    if (!space.pool || !content || this.volumes.some((each) => each.name === name)) return
    const volume = this.#planned(name, space, origin, sizeBytes, content.blocks)
    volume.readOnly = readOnly
    yield
    // (LVM suspends an active origin: what is being written is in the pool before, or comes after.)
    yield* this.#sendPending(space)
  }

  *remove(volume: Volume): Steps {
    const { pool: space, thinId } = volume
    if (!space.pool) return
    this.deactivate(volume)
    this.volumes = this.volumes.filter((each) => each !== volume)
    if (volume.content) {
      space.pending.push({ kind: 'delete', thinId, originId: undefined, sizeBlocks: 0 })
      space.lvmTransactionId++
    }
    yield
    yield* this.#sendPending(space)
  }

  *rename(volume: Volume | SpaceOf, name: string): Steps {
    if ([...this.volumes, ...this.pools].some((each) => each.name === name)) return
    const before = volume.name
    volume.name = name
    yield
    const [old, now] = [`${this.group.name}-${before}`, `${this.group.name}-${name}`]
    const devices = volume instanceof SpaceOf ? volume.devices : [this.#device(volume)]
    for (const device of devices) {
      if (device) device.name = now + device.name.slice(old.length)
      yield
    }
  }

  /** Two volumes, or two pools, trade their names. */
  *trade(one: Volume | SpaceOf, other: Volume | SpaceOf): Steps {
    const [first, second] = [one.name, other.name]
    yield* this.rename(one, 'in-between')
    yield* this.rename(other, first)
    yield* this.rename(one, second)
  }

  *resize(volume: Volume, sizeBytes: number): Steps {
    volume.sizeBytes = sizeBytes
    yield
    const device = this.#device(volume)
    if (device) device.table = { ...device.table, lengthSectors: sizeBytes / 512 }
  }

  setReadOnly(volume: Volume, readOnly: boolean): void {
    volume.readOnly = readOnly
    const device = this.#device(volume)
    if (device) device.readOnly = readOnly
  }

  /**
   * lvconvert --merge: the volume gets the snapshot's device, and keeps its own UUID.
   *
   * @param inUse the volume is active all along, and its device keeps its size until the next activation (seen with 2.03.16)
   */
  *merge(snapshot: Volume, inUse = false): Steps {
    const origin = this.volumes.find(({ uuid }) => uuid === snapshot.originUuid)
    const { pool: space } = snapshot
    if (!origin?.content || !snapshot.content || !space.pool || origin.pool !== space) return
    const device = inUse ? this.#device(origin) : undefined
    if (!device) this.deactivate(origin)
    this.deactivate(snapshot)
    yield
    space.pending.push({ kind: 'delete', thinId: origin.thinId, originId: undefined, sizeBlocks: 0 })
    space.lvmTransactionId++
    const { thinId, transactionId, content, sizeBytes } = snapshot
    Object.assign(origin, { thinId, transactionId, content, sizeBytes, originUuid: snapshot.originUuid })
    origin.originUuid = undefined
    this.volumes = this.volumes.filter((each) => each !== snapshot)
    const target = space.devices.at(-1)
    if (device && target) {
      device.table = { ...this.#thinTable(origin, target), lengthSectors: device.table.lengthSectors }
    }
    yield
    yield* this.#sendPending(space)
  }

  /** How large a volume's active device is; 0 where it has none. */
  deviceBytes(volume: Volume): number {
    return (this.#device(volume)?.table.lengthSectors ?? 0) * 512
  }

  /** A block that the volume's device has, and LVM knows nothing of. */
  *writeBehind(volume: Volume, block: number): Steps {
    const { pool: space, content, thinId } = volume
    while (space.pool?.isCommitting) yield
    if (!space.pool || !content || (block + 1) * BLOCK_BYTES > this.deviceBytes(volume)) return
    content.everWritten = true
    const version = this.newVersion()
    if (space.pool.write(thinId, block, version) === 'written') content.set(block, version, this.scheduler.turn)
  }

  /** What LVM's metadata says of volumes, to be put back into it. */
  archive(): readonly Volume[] {
    return this.volumes.map((volume) => ({ ...volume }))
  }

  /** Somebody puts the old description of a volume back, which then stands for whatever device has its thin id. */
  putBack(archived: Volume): void {
    this.volumes = this.volumes.filter(({ pool, thinId }) => pool !== archived.pool || thinId !== archived.thinId)
    this.volumes.push({ ...archived, active: false, content: archived.pool.contents.get(archived.thinId) })
  }

  /** All of a commit, write by write. */
  *commit(space: SpaceOf): Steps {
    const { pool } = space
    if (!pool?.isDirty && !pool?.isCommitting) return
    do {
      space.stepCommit(this.scheduler)
      yield
    } while (space.pool?.isCommitting)
  }

  // What users do

  /** @returns whether it could be written */
  *write(volume: Volume, blocks: readonly number[], discard: boolean): Steps {
    const { pool: space, content, thinId } = volume
    for (const block of blocks) {
      while (space.pool?.isCommitting) yield
      if (!space.pool || !volume.active || volume.readOnly || !content || !this.volumes.includes(volume)) return
      if ((block + 1) * BLOCK_BYTES > Math.ceil(volume.sizeBytes / BLOCK_BYTES) * BLOCK_BYTES) continue
      content.everWritten = true
      if (discard) {
        space.pool.discard(thinId, block)
        content.set(block, 0, this.scheduler.turn)
      } else {
        const version = this.newVersion()
        if (space.pool.write(thinId, block, version) === 'written') content.set(block, version, this.scheduler.turn)
      }
      if (this.#random.chance(0.02)) yield
    }
  }

  // Disasters

  /** The power goes: what is in memory, and some of what disks have not flushed. */
  *powerCut(): Steps {
    this.devices.clear()
    for (const volume of this.volumes) volume.active = false
    for (const space of this.pools) {
      space.disk.crash(this.#random)
      space.data.crash(this.#random)
      space.pool = undefined
      space.devices = []
    }
    yield
    for (const space of this.pools) {
      const pool = ThinPool.load(space.disk, space.data)
      this.#compare(space, pool, (content) => {
        if (!content.everWritten) throw new Error('the simulated pool lost a committed snapshot: the model is wrong')
        this.onLost(content)
      })
      yield* this.activatePool(space)
    }
  }

  /** Everything is copied, or put back as it was then. */
  *copyDisks(): Steps {
    for (const space of this.pools) yield* this.commit(space)
    if (this.pools.some(({ pool, pending }) => !pool || pool.isDirty || pending.length > 0)) return
    this.image = {
      volumes: this.volumes.map((volume) => ({ ...volume })),
      pools: this.pools.map(({ disk, data, name, lvmTransactionId, contents, pool }) => {
        const { time, transactionId } = pool!
        const image = { metadata: disk.image(), data: data.image(), contents: new Map(contents) }
        return { ...image, name, lvmTransactionId, time, transactionId }
      })
    }
  }

  /** @param onBack told which devices do not hold any more what they held */
  *putBackDisks(onBack: (content: DeviceContent, image: { time: number; transactionId: number }) => void): Steps {
    const { image } = this
    if (!image) return
    for (const space of this.pools) if (!(yield* this.deactivatePool(space))) return
    this.volumes = image.volumes.map((volume) => ({ ...volume, active: false }))
    for (const [i, space] of this.pools.entries()) {
      const { metadata, data, name, lvmTransactionId, contents, time, transactionId } = image.pools[i]
      space.disk.restore(metadata)
      space.data.restore(data)
      Object.assign(space, { name, lvmTransactionId, pending: [] })
      space.contents.clear()
      for (const [id, content] of contents) space.contents.set(id, content)
      const pool = ThinPool.load(space.disk, space.data)
      this.#compare(space, pool, (content) => {
        onBack(content, { time, transactionId })
      })
    }
    yield
    for (const space of this.pools) yield* this.activatePool(space)
  }

  /** Holds what is believed of devices' contents against what the pools say. @returns what is wrong */
  checkContents(): string | undefined {
    for (const { pool, contents, name } of this.pools) {
      for (const [id, content] of pool ? contents : []) {
        for (let block = 0; block < content.blocks; block++) {
          if (pool!.read(id, block) !== content.now(block)) return `${name}: device ${id}, block ${block}`
        }
      }
    }
    return undefined
  }

  // How

  /** LVM writes down a new volume, and that its pool is to be told. */
  #planned(name: string, space: SpaceOf, origin: Volume | undefined, sizeBytes: number, sizeBlocks: number): Volume {
    const ids = this.volumes.filter(({ pool }) => pool === space).map(({ thinId }) => thinId)
    // The highest id is given out again once its volume is gone (get_free_thin_pool_device_id).
    const thinId = Math.max(0, ...ids, ...space.pending.map((each) => each.thinId)) + 1
    const volume: Volume = {
      ...{ uuid: this.#uuid(), name, pool: space, thinId, transactionId: space.lvmTransactionId },
      ...{ originUuid: origin?.uuid, sizeBytes, readOnly: false, active: false, content: undefined }
    }
    this.volumes.push(volume)
    space.pending.push({ kind: 'create', thinId, originId: origin?.thinId, sizeBlocks })
    space.lvmTransactionId++
    return volume
  }

  /** What LVM has promised to tell a pool; some of it the pool may know already. */
  *#sendPending(space: SpaceOf): Steps {
    while (space.pending.length > 0) {
      while (space.pool?.isCommitting) yield
      const { pool } = space
      if (!pool) return
      const [{ kind, thinId, originId, sizeBlocks }] = space.pending
      const wanted = space.lvmTransactionId - space.pending.length + 1
      if (pool.transactionId < wanted) {
        if (kind === 'delete') this.#delete(space, pool, thinId)
        else if (!pool.has(thinId)) this.#create(space, pool, thinId, originId, sizeBlocks)
        yield* this.commit(space)
        yield
        while (space.pool?.isCommitting) yield
        if (space.pool !== pool) return
        pool.setTransactionId(pool.transactionId, wanted)
        yield* this.commit(space)
        if (space.pool !== pool) return
      }
      space.pending.shift()
    }
    for (const volume of this.volumes) {
      if (volume.pool === space) volume.content = space.contents.get(volume.thinId)
    }
  }

  #create(space: SpaceOf, pool: ThinPool, id: number, originId: number | undefined, blocks: number): void {
    const origin = originId === undefined ? undefined : space.contents.get(originId)
    if (originId === undefined || !origin) pool.createThin(id)
    else pool.createSnap(id, originId)
    const content = new DeviceContent(origin ? origin.copy() : new Int32Array(blocks), !origin)
    space.contents.set(id, content)
    for (const volume of this.volumes) if (volume.pool === space && volume.thinId === id) volume.content = content
  }

  #delete(space: SpaceOf, pool: ThinPool, id: number): void {
    if (pool.has(id)) pool.delete(id)
    space.contents.delete(id)
  }

  /** Finds out what devices hold now that did not go the usual way. */
  #compare(space: SpaceOf, pool: ThinPool, onDifference: (content: DeviceContent) => void): void {
    const { turn } = this.scheduler
    for (const [id, content] of [...space.contents]) {
      if (!pool.has(id)) {
        space.contents.delete(id)
        for (const volume of this.volumes) if (volume.content === content) volume.content = undefined
        continue
      }
      let isSame = true
      for (let block = 0; block < content.blocks; block++) {
        const version = pool.read(id, block)
        if (version === content.now(block)) continue
        isSame = false
        content.set(block, version, turn)
      }
      if (!isSame) onDifference(content)
    }
  }

  #thinTable({ thinId, sizeBytes }: Volume, { number }: Device) {
    return {
      ...{ startSector: 0, lengthSectors: sizeBytes / 512, targetType: 'thin' },
      params: `${number.major}:${number.minor} ${thinId}`
    }
  }

  #device(volume: Volume): Device | undefined {
    return this.devices.find({ uuid: this.#deviceUuid(volume) })
  }

  #deviceUuid({ uuid }: Volume): string {
    return `LVM-${this.group.uuid.replaceAll('-', '')}${uuid.replaceAll('-', '')}`
  }

  #uuid(): string {
    return lvmUuid(this.#life, this.#serial++)
  }
}

export function finish(steps: Steps<unknown>): void {
  while (!steps.next().done);
}
