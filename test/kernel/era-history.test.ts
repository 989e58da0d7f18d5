/**
 * The history of tracked volumes in a real kernel: for any two snapshots exactly what was written between them, whatever has become of
 * them since, asked as the agent's service asks.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, mkdtempSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { type Catalog, openCatalog } from '../../src/agent/catalog/catalog.ts'
import { eraUuid } from '../../src/agent/node/era-devices.ts'
import type { EraVolumes } from '../../src/agent/era/era-volumes.ts'
import { readEraSlot } from '../../src/agent/leases/era-slot-content.ts'
import { superblockOf } from '../../src/agent/era/device/tracked-device.ts'
import { openEraMetadata } from '../../src/devicemapper/era/era-metadata.ts'
import type { DeltamapperError } from '../../src/errors.ts'
import { extentsOfBlocks } from '../support/era-model.ts'
import type { Extent } from '../support/expected.ts'
import type { Random } from '../support/random.ts'
import { alignedBuffer, run, sendMessage } from './dmsetup.ts'
import { EraAnswers, recorderOf } from './era-answers.ts'
import { blockBytes, knowEra, labCatalog, loopDisk, mebibyte, startDriver } from './era-lab.ts'
import { labRun } from './lab-run.ts'

run('/run/modprobe', ['dm-era'])
const deviceMapper = new DeviceMapper()
const answers = new EraAnswers(deviceMapper)
const delta = answers.delta.bind(answers)
test.after.always(async () => {
  await answers.close()
  await deviceMapper.close()
})
const buffer = alignedBuffer(4 * mebibyte)
/** The lower snapshot is not what this is about. */
const command = { take: ['/bin/true'], remove: ['/bin/true'] }

interface Boundary {
  readonly name: string
  readonly sizeBytes: number
  /** How many writes there were before. */
  readonly writes: number
}

/** A tracked volume, and everything that was written to it. */
class Written {
  readonly name: string
  readonly boundaries: Boundary[] = []
  readonly #writes: number[] = []
  sizeBytes: number
  #file: number

  constructor(name: string, sizeBytes: number) {
    this.name = name
    this.sizeBytes = sizeBytes
    this.#file = openSync(`/dev/mapper/${name}`, constants.O_WRONLY | constants.O_DIRECT)
  }

  write(offset: number, length: number): void {
    if (writeSync(this.#file, buffer, 0, length, offset) !== length) throw new Error('not all was written')
    for (let block = Math.floor(offset / blockBytes); block * blockBytes < offset + length; block++) {
      this.#writes.push(block)
    }
  }

  /** Within a block, across the border of two, of many, or at the end. */
  writeSomewhere(random: Random): void {
    const sectors = this.sizeBytes / 512
    const length = random.pick([1, 8, random.integer(1, 128), random.integer(1, 2000)])
    const border = random.integer(0, Math.floor(sectors / 128)) * 128
    const begin = random.pick([random.integer(0, sectors - 1), border, border - 1, sectors - length])
    const from = Math.max(0, Math.min(begin, sectors - 1))
    this.write(from * 512, Math.min(length, sectors - from) * 512)
  }

  boundary(name: string): void {
    this.boundaries.push({ name, sizeBytes: this.sizeBytes, writes: this.#writes.length })
  }

  expected(base: Boundary, target: Boundary, startingOffset = 0): Extent[] {
    return extentsOfBlocks(this.#writes.slice(base.writes, target.writes), {
      ...{ blockBytes, sizeBytes: target.sizeBytes, startingOffset },
      baseSizeBytes: base.sizeBytes
    })
  }

  close(): void {
    closeSync(this.#file)
  }
}

interface Tracked {
  readonly written: Written
  readonly data: ReturnType<typeof loopDisk>
  readonly metadata: string
}

async function attach(volumes: EraVolumes, name: string, mebibytes: number): Promise<Tracked> {
  const [data, metadata] = [loopDisk(mebibytes), loopDisk(4)]
  const devices = { dataDevice: data.path, metadataDevice: metadata.path, blockBytes }
  await volumes.attachEra({ name, ...devices, allowLossyKernel: false, snapshotSize: '' })
  return { written: new Written(name, mebibytes * mebibyte), data, metadata: metadata.path }
}

test.serial('a random history: of any two snapshots exactly what was written between them', async (t) => {
  const { random, count, again } = labRun(5)
  t.timeout(600_000 + count * 120_000)
  const path = join(mkdtempSync(join(tmpdir(), 'catalog-')), 'catalog.sqlite')
  let catalog = await openCatalog(path)
  const driver = await startDriver(catalog, deviceMapper, {
    recorder: recorderOf(catalog, deviceMapper),
    commands: { vol: command }
  })
  const { volumes } = driver
  // The last block is a part of one.
  let mebibytes = 48 + 5 / 2048
  const { written, data } = await attach(volumes, 'vol', mebibytes)
  let compared = 0
  const compare = async (base: Boundary, target: Boundary) => {
    const startingOffset = random.chance(0.7) ? 0 : random.integer(0, target.sizeBytes)
    const what = `${base.name} to ${target.name} from ${startingOffset}; ${again}`
    const expected = written.expected(base, target, startingOffset)
    // An answer that goes on has begun.
    if (startingOffset > 0) await delta(catalog, `vol/${base.name}`, `vol/${target.name}`)
    t.deepEqual(await delta(catalog, `vol/${base.name}`, `vol/${target.name}`, startingOffset), expected, what)
    compared++
  }
  for (let i = 0; i < count; i++) {
    for (let writes = random.integer(0, 12); writes > 0; writes--) written.writeSomewhere(random)
    if (random.chance(0.3)) {
      sendMessage('vol', 'checkpoint')
      await knowEra(catalog, 'vol')
    }
    if (random.chance(0.2)) {
      mebibytes += random.integer(1, 9) + random.integer(0, 2047) / 2048
      data.grow(mebibytes)
      await volumes.growEra({ volume: 'vol' })
      written.sizeBytes = mebibytes * mebibyte
    }
    const { exact } = await volumes
      .createEraSnapshot({ volume: 'vol', name: `s${i}`, deadlineMs: 0 })
      .then(async () => {
        const record = await catalog.eraSnapshots.find('vol', `s${i}`)
        return record ?? { exact: undefined }
      })
    t.true(exact, again)
    written.boundary(`s${i}`)
    for (let pairs = 0; pairs < 3; pairs++) {
      const base = random.integer(0, i)
      await compare(written.boundaries[base], written.boundaries[random.integer(base, i)])
    }
  }
  // Some are removed, of which one is forgotten; the agent starts anew.
  const gone = written.boundaries[random.integer(1, count - 2)]
  for (const { name } of [gone, written.boundaries[0]]) await volumes.deleteSnapshot('vol', name)
  await driver[Symbol.asyncDispose]()
  t.is(await catalog.eraSnapshots.forget({ before: 0, keep: count - 1 }), 1)
  while ((await catalog.eraSnapshots.compact()) > 0);
  await catalog.close()
  catalog = await openCatalog(path)
  const left = new Set((await catalog.eraSnapshots.list('vol')).map(({ name }) => name))
  t.is(left.size, count - 1)
  const boundaries = written.boundaries.filter(({ name }) => left.has(name))
  for (const [i, base] of boundaries.entries()) for (const target of boundaries.slice(i)) await compare(base, target)
  written.close()
  await using last = await startDriver(catalog, deviceMapper, { recorder: recorderOf(catalog, deviceMapper) })
  await last.volumes.detachEra({ volume: 'vol' })
  t.deepEqual(await catalog.eraSnapshots.list(), [])
  await catalog.close()
  t.log({ compared, snapshots: count })
})

/** A boundary, as whoever drives the device takes it; to be recorded by the test. */
async function takeBoundary(catalog: Catalog, name: string, metadata: string, { written }: Tracked) {
  await catalog.eraVolumes.begin({ kind: 'snapshot', volume: written.name, snapshot: name, token: name })
  run('dmsetup', ['suspend', written.name])
  const { currentEra } = await superblockOf(metadata)
  run('dmsetup', ['resume', written.name])
  const volume = await catalog.eraVolumes.find(written.name)
  if (volume === undefined) throw new Error('no volume')
  const taken = { boundaryEra: currentEra + 1, sizeBytes: written.sizeBytes, takenAt: 1, suspendedMs: 1, lower: '' }
  return { volume, name, ...taken }
}

test.serial(
  'what is written after a boundary is left out; recorded late, there may be more, and that is known',
  async (t) => {
    t.timeout(900_000)
    const catalog = await labCatalog(t)
    const recorder = recorderOf(catalog, deviceMapper)
    await using driver = await startDriver(catalog, deviceMapper, { recorder })
    const tracked = await attach(driver.volumes, 'late', 64)
    const { written, metadata } = tracked
    const blocks = (...all: number[]) => {
      for (const each of all) written.write(each * blockBytes, 512)
    }
    const expected = (...all: number[]) => extentsOfBlocks(all, { blockBytes, sizeBytes: 64 * mebibyte })
    const boundary = (name: string) => takeBoundary(catalog, name, metadata, tracked)
    blocks(1, 2)
    t.true((await recorder.record(await boundary('s1'))).exact)
    blocks(3, 4)
    const second = await boundary('s2')
    // One that was written before as well, and one that was not.
    blocks(4, 5)
    t.true((await recorder.record(second)).exact)
    t.deepEqual(await delta(catalog, 'late/s1', 'late/s2'), expected(3, 4))

    // The same, recorded by an agent that comes back after the kernel has digested what came after the boundary.
    const third = await boundary('s3')
    blocks(6)
    for (let eras = 0; eras < 3; eras++) sendMessage('late', 'checkpoint')
    for (;;) {
      const now = await openEraMetadata(metadata, { liveRoot: true })
      const [oldest] = await now.writesets().finally(() => now.close())
      if (oldest === undefined || oldest.era > third.boundaryEra) break
      await sleep(100)
    }
    const superset = await recorder.record(third)
    t.false(superset.exact)
    t.deepEqual(await delta(catalog, 'late/s2', 'late/s3'), expected(4, 5, 6))
    t.true((await recorder.record(await boundary('s4'))).exact)
    t.deepEqual(await delta(catalog, 'late/s3', 'late/s4'), expected(6))
    t.deepEqual(await catalog.leases.list(), [])

    // Somebody else has the metadata snapshot: nothing is taken from them, and it can be done later.
    blocks(7)
    sendMessage('late', 'take_metadata_snap')
    const fifth = await boundary('s5')
    const busy = await t.throwsAsync<DeltamapperError>(recorder.record(fifth))
    t.is(busy?.code, 'DM_DEVICE_BUSY')
    t.regex(busy?.remedy ?? '', /drop_metadata_snap/)
    // It is looked for before a volume is suspended, too.
    await catalog.eraVolumes.rollBack('late')
    const { usage } = (await driver.volumes.listEra({ volume: 'late' })).volumes[0] ?? {}
    await knowEra(catalog, 'late')
    const early = await t.throwsAsync<DeltamapperError>(
      driver.volumes.beginSnapshot({ volume: 'late', name: 'early', deadlineMs: 0 })
    )
    t.is(early?.code, 'DM_DEVICE_BUSY')
    t.like((await driver.volumes.listEra({ volume: 'late' })).volumes[0], { usage, underWay: '' }, 'not suspended')
    await catalog.eraVolumes.begin({ kind: 'snapshot', volume: 'late', snapshot: 's5', token: 's5' })
    sendMessage('late', 'drop_metadata_snap')
    t.true((await recorder.record(fifth)).exact)
    t.deepEqual(await delta(catalog, 'late/s4', 'late/s5'), expected(7))

    // An intent that nobody will complete is what its driver rolls back.
    await boundary('s6')
    await catalog.eraVolumes.rollBack('late')
    blocks(8)
    t.true((await recorder.record(await boundary('s7'))).exact)
    t.deepEqual(await delta(catalog, 'late/s5', 'late/s7'), expected(8))

    // Whoever held it is gone, and everything with it: what is on record proves that it is ours.
    const volume = await catalog.eraVolumes.find('late')
    const device = `dm-uuid:${eraUuid({ id: volume?.id ?? '' })}`
    await catalog.leases.begin({ device, purpose: 'test', factsBefore: '' })
    sendMessage('late', 'take_metadata_snap')
    const left = await readEraSlot(metadata)
    await catalog.leases.confirm(device, { heldRoot: left.heldRoot, factsHeld: left.facts ?? '' })
    // Not while the volume is suspended: what is sent to it then waits for the resume, and for good if it is about to grow.
    await knowEra(catalog, 'late')
    const { token } = await driver.volumes.beginSnapshot({ volume: 'late', name: 'other', deadlineMs: 0 })
    let recovered = false
    const recovery = recorder.recover((name, work) => driver.volumes.inTurn(name, work)).then(() => (recovered = true))
    await sleep(500)
    t.false(recovered, 'it waits for the turn of its volume')
    t.not((await readEraSlot(metadata)).heldRoot, 0)
    await driver.volumes.endSnapshot({ token, reference: '', abandon: true })
    await recovery
    t.is((await readEraSlot(metadata)).heldRoot, 0)
    t.deepEqual(await catalog.leases.list(), [])

    // An agent that holds it is killed: it is given back, and the next one goes on.
    const folder = mkdtempSync(join(tmpdir(), 'holder-'))
    const script = join(folder, 'holder.ts')
    const source = (file: string) => join(import.meta.dirname, '../..', file)
    writeFileSync(
      script,
      `import { pino } from '${import.meta.resolve('pino')}'
       import { DeviceMapper } from '${source('native/device-mapper.ts')}'
       import { openCatalog } from '${source('src/agent/catalog/catalog.ts')}'
       import { EraSlots } from '${source('src/agent/era/history/era-slot.ts')}'
       const volume = ${JSON.stringify(volume)}
       const own = await openCatalog('${join(folder, 'catalog.sqlite')}')
       // An agent that was before ours had the same catalog.
       const catalog = new Proxy(own, {
         get: (target, name) =>
           name === 'path' ? ${JSON.stringify(catalog.path)} : Reflect.get(target, name)
       })
       const slots = new EraSlots({ catalog, deviceMapper: new DeviceMapper(), logger: pino({ level: 'silent' }) })
       setInterval(() => undefined, 1000)
       await slots.hold(volume, 'test', async () => {
         process.stdout.write('held')
         await new Promise(() => undefined)
       })`
    )
    const held = async () => {
      const holder = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] })
      t.teardown(() => holder.kill('SIGKILL'))
      await once(holder.stdout, 'data')
      t.true((await readEraSlot(metadata)).heldRoot > 0)
      return holder
    }
    const holder = await held()
    holder.kill('SIGKILL')
    blocks(9)
    t.true((await recorder.record(await boundary('s8'))).exact)
    t.deepEqual(await delta(catalog, 'late/s7', 'late/s8'), expected(9))

    // While another one holds it, the volume gets no other table: its last message must not meet a suspended device.
    const last = await held()
    tracked.data.grow(65)
    await knowEra(catalog, 'late')
    const growing = driver.volumes.growEra({ volume: 'late' })
    t.is(await Promise.race([growing.then(() => 'grown'), sleep(3000).then(() => 'waiting')]), 'waiting')
    t.like(await deviceMapper.info('late'), { suspended: false, hasInactiveTable: false })
    last.kill('SIGKILL')
    t.is((await growing).sizeBytes, 65 * mebibyte)
    t.is((await readEraSlot(metadata)).heldRoot, 0)
    written.close()
    await driver.volumes.detachEra({ volume: 'late' })
  }
)
