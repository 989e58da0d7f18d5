/**
 * What it is all for: a thick volume of LVM's with a file system in use on it is tracked, snapshots are taken and soon removed, and for any
 * two of them an incremental backup, made as backup software makes it, restores the later one byte for byte. Meanwhile the agent is killed,
 * the volume grows, is deactivated and activated, and once it is written to beside us: then, and only then, pairs are refused.
 */
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { type AdminClient, connectAdmin } from '../../src/grpc/admin-client.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { type Content, ContentStore } from './content-store.ts'
import { run } from './dmsetup.ts'
import { blockBytes, loopDisk, mebibyte } from './era-lab.ts'
import { FileWorkload, type FileWorkloadCounts } from './file-workload.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createThick, lvm, prepareLvm } from './lvm-setup.ts'
import { failure, until } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())

/** Size of the volume at first, and at most. */
const MEBIBYTES = 48
const MOST_MEBIBYTES = 80
/** Of it, what never changes, so that an answer is not everything. */
const STILL_MEBIBYTES = 16
/** How many lower snapshots there are at a time: there is no room for more. Each can take in all that is ever written. */
const MOST_LOWER = 3
/** How long a suspension may last here, in milliseconds. */
const DEADLINE_MS = 15_000

const volume = 'files'
const lower = '/dev/vgf/data'
const upper = `/dev/mapper/${volume}`
const mountPoint = '/run/mnt/files'
const trial = labRun(4)

interface Taken {
  readonly name: string
  readonly content: Content
  /** The line that it is of. */
  readonly line: string
}

test.serial(`any two snapshots make a backup that restores the later one byte for byte (${trial.again})`, async (t) => {
  const { random, count, again } = trial
  t.timeout(600_000 + count * 120_000)
  const [disk, metadata] = [loopDisk(512), loopDisk(4)]
  createGroup('vgf', disk.path)
  createThick('vgf', 'data', MEBIBYTES)
  const catalog = join(mkdtempSync(join(tmpdir(), 'backups-')), 'catalog.sqlite')
  const config = { catalog, walkers: 1, drainSeconds: 1, era: { deadlineSeconds: DEADLINE_MS / 1000 } }
  let agent = await LiveAgent.start({ config })
  let admin = connectAdmin(agent.address)
  t.teardown(() => agent.kill())
  const { line: firstLine } = await admin.attachEra({
    ...{ name: volume, dataDevice: lower, metadataDevice: metadata.path, blockBytes },
    ...{ snapshotSize: `${MOST_MEBIBYTES + 8}m`, allowLossyKernel: false }
  })
  let line = firstLine
  let mebibytes = MEBIBYTES
  run('mkfs.ext4', ['-q', upper])
  mkdirSync(mountPoint, { recursive: true })
  // Discards are attempted, by the file system itself as well.
  const mount = () => run('mount', ['-t', 'ext4', '-o', 'discard', upper, mountPoint])
  mount()
  run('dd', ['if=/dev/urandom', `of=${mountPoint}/still`, 'bs=1M', `count=${STILL_MEBIBYTES}`, 'status=none'])
  const beginWork = () => FileWorkload.start(join(mountPoint, 'work'), mountPoint, random.uint32())
  let workload = await beginWork()
  t.teardown(() => workload.kill())
  const worked: Partial<FileWorkloadCounts> = {}
  const endWork = async () => {
    for (const [what, times] of Object.entries(await workload.end()) as [keyof FileWorkloadCounts, number][]) {
      worked[what] = (worked[what] ?? 0) + times
    }
  }

  const store = new ContentStore('/dev/ubda')
  const taken: Taken[] = []
  const [was, is] = [new Uint8Array(MOST_MEBIBYTES * mebibyte), new Uint8Array(MOST_MEBIBYTES * mebibyte)]
  const seen = {
    kills: 0,
    whileSuspended: 0,
    lost: 0,
    backups: 0,
    afterRemoval: 0,
    refused: 0,
    mebibytes: 0,
    checked: 0
  }

  /** What is below now, by the snapshot's name. */
  const below = async () => {
    const { snapshots } = await admin.listEraSnapshots({ volume })
    return snapshots.map(({ name }) => name)
  }

  /** An incremental backup, restored. */
  const backup = async (base: Taken, target: Taken) => {
    const context = `${base.name} to ${target.name}, ${again}`
    const answer = agent.client().delta({
      baseSnapshotId: `${volume}/${base.name}`,
      targetSnapshotId: `${volume}/${target.name}`
    })
    if (base.line !== target.line) {
      const refusal = await failure(answer.then(collectExtents))
      t.is(refusal.code, 'DM_HISTORY_BROKEN', context)
      t.is(refusal.status, 'FAILED_PRECONDITION', context)
      seen.refused++
      return
    }
    const extents = await collectExtents(await answer)
    const { sizeBytes } = target.content
    store.read(target.content, is)
    store.read(base.content, was.fill(0, 0, sizeBytes))
    let copied = 0
    for (const [offset, size] of extents) {
      was.set(is.subarray(offset, offset + size), offset)
      copied += size
    }
    t.is(Buffer.compare(was.subarray(0, sizeBytes), is.subarray(0, sizeBytes)), 0, context)
    t.true(copied < sizeBytes - (STILL_MEBIBYTES - 2) * mebibyte, `not everything, or this shows nothing: ${context}`)
    seen.backups++
    seen.mebibytes += Math.round(copied / mebibyte)
    const there = await below()
    if (!there.includes(base.name) && !there.includes(target.name)) seen.afterRemoval++
  }

  const backupSomewhere = () => {
    const base = random.integer(0, taken.length - 1)
    return backup(taken[base], taken[random.integer(base, taken.length - 1)])
  }

  /** Takes in a snapshot that is on record, compares it, and leaves LVM some room. */
  const takeIn = async (name: string) => {
    const path = `/dev/vgf/${name}`
    if (taken.length < 2 || random.chance(0.2)) {
      // The file system was frozen: it is clean as it is, with nothing in its journal.
      const said = run('e2fsck', ['-fn', path])
      t.notRegex(said, /journal|recover/i, `${name}, ${again}`)
      seen.checked++
    }
    const one = { name, content: store.add(path), line }
    t.is(one.content.sizeBytes, mebibytes * mebibyte, again)
    taken.push(one)
    const all = await collectExtents(await agent.client().allocated({ snapshotId: `${volume}/${name}` }))
    t.deepEqual(all, [[0, one.content.sizeBytes]], again)
    const previous = taken.at(-2)
    if (previous) await backup(previous, one)
    await backupSomewhere()
    const there = await below()
    while (there.length >= MOST_LOWER) {
      const [oldest] = there.splice(random.chance(0.7) ? 0 : random.integer(0, there.length - 1), 1)
      await admin.deleteSnapshot({ pool: volume, name: oldest })
    }
  }

  const create = (through: AdminClient, name: string) => through.createEraSnapshot({ volume, name, deadlineMs: 0 })
  const isSuspended = async () => (await deviceMapper.info(volume))?.suspended === true

  /** The agent is killed while it takes a snapshot, or soon before or after. */
  const kill = async (name: string) => {
    const context = `kill ${seen.kills}, ${again}`
    let ended = false
    const over = () => (ended = true)
    void create(admin, name).then(over, over)
    if (random.chance(0.6)) {
      while (!ended && !(await isSuspended())) await sleep(2)
      if (random.chance(0.5)) await sleep(random.integer(0, 400))
    } else await sleep(random.integer(0, 4000))
    if (await isSuspended()) seen.whileSuspended++
    admin.close()
    await agent.kill()
    seen.kills++
    // The watchdog resumes it: nobody else does.
    await until(isSuspended, (suspended) => !suspended)
    agent = await LiveAgent.start({ config })
    admin = connectAdmin(agent.address)
    const { volumes } = await until(
      () => admin.listEra({ volume }),
      ({ volumes: [now] }) => now?.underWay === ''
    )
    t.like(volumes[0], { problem: '', active: true, suspended: false, line }, context)
    if ((await below()).includes(name)) return takeIn(name)
    // What was lost is not there: nobody can take it for the base or the target of anything.
    seen.lost++
    const last = taken.at(-1)?.name ?? name
    const asked = agent
      .client()
      .delta({ baseSnapshotId: `${volume}/${last}`, targetSnapshotId: `${volume}/${name}` })
      .then(collectExtents)
    t.is((await failure(asked)).code, 'DM_SNAPSHOT_NOT_FOUND', context)
  }

  /** Everything down and up again; what happens in between. */
  const inactive = async (meanwhile: () => void) => {
    await endWork()
    run('umount', [mountPoint])
    t.false((await admin.deactivateEra({ volume, atShutdown: false })).active, again)
    meanwhile()
    const now = await admin.activateEra({ volume, startOver: false })
    mount()
    workload = await beginWork()
    return now
  }

  const events = {
    reactivate: async () => {
      t.is((await inactive(() => undefined)).line, line, again)
    },
    grow: async () => {
      if (mebibytes >= MOST_MEBIBYTES) return
      // LVM does not resize what has snapshots.
      for (const name of await below()) await admin.deleteSnapshot({ pool: volume, name })
      mebibytes += 8
      lvm('lvextend', '--size', `${mebibytes}m`, 'vgf/data')
      t.like(await admin.growEra({ volume }), { sizeBytes: mebibytes * mebibyte, line, suspended: false }, again)
      run('resize2fs', [upper])
    },
    /** Somebody mounts what is below, while it is not active. */
    beside: async () => {
      const now = await inactive(() => {
        run('mount', ['-t', 'ext4', lower, mountPoint])
        writeFileSync(join(mountPoint, 'beside'), `${random.uint32()}`)
        run('umount', [mountPoint])
      })
      t.not(now.line, line, again)
      line = now.line
    },
    'another agent': async () => {
      admin.close()
      t.is(await agent.stop(), 0, again)
      agent = await LiveAgent.start({ config })
      admin = connectAdmin(agent.address)
    }
  }
  const happened: Record<string, number> = {}
  const happens = async (what: keyof typeof events) => {
    happened[what] = (happened[what] ?? 0) + 1
    await events[what]()
  }

  const killsAt = new Set(random.shuffle(Array.from({ length: count }, (_, i) => i)).slice(0, Math.round(count / 3)))
  for (let i = 0; i < count; i++) {
    await sleep(random.integer(0, 1500))
    if (i === Math.floor(count / 3)) await happens('grow')
    else if (i === Math.floor((count * 2) / 3)) await happens('beside')
    else if (random.chance(0.15)) await happens(random.pick(['reactivate', 'grow', 'another agent']))
    if (killsAt.has(i)) await kill(`k${i}`)
    await create(admin, `s${i}`)
    await takeIn(`s${i}`)
  }
  await endWork()
  for (const name of await below()) await admin.deleteSnapshot({ pool: volume, name })
  // There is nothing below any more.
  t.deepEqual(lvm('lvs', '--noheadings', '-o', 'lv_name', 'vgf').trim().split(/\s+/), ['data'])
  for (let i = 0; i < Math.max(4, count); i++) await backupSomewhere()
  t.true(seen.afterRemoval > 0 && seen.refused > 0, again)
  t.log(JSON.stringify({ snapshots: taken.length, ...seen, happened, worked }))
  run('umount', [mountPoint])
  store.close()
  admin.close()
})
