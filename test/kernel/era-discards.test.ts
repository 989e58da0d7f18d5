/**
 * Discards at a tracked volume over a disk that would take them: whatever is tried, before and after whichever table, no block that reads as
 * zeros since is missing from an answer. Where somebody lets discards through, the history is void, and said to be.
 */
import { closeSync, constants, mkdtempSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { openCatalog } from '../../src/agent/catalog/catalog.ts'
import { blockFingerprints } from './block-fingerprints.ts'
import { discard } from './discard.ts'
import { alignedBuffer, openToDiscards, reloadDevice, run } from './dmsetup.ts'
import { EraAnswers, recorderOf } from './era-answers.ts'
import { blockBytes, knowEra, loopDisk, mebibyte, startDriver } from './era-lab.ts'
import { labRun } from './lab-run.ts'
import { failure } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
const deviceMapper = new DeviceMapper()
const answers = new EraAnswers(deviceMapper)
test.after.always(async () => {
  await answers.close()
  await deviceMapper.close()
})

const volume = 'cut'
const upper = `/dev/mapper/${volume}`
const MEBIBYTES = 32
const MOST_MEBIBYTES = 48
const trial = labRun(3)
const buffer = alignedBuffer(mebibyte)

function withDevice<T>(path: string, flags: number, use: (file: number) => T): T {
  const file = openSync(path, flags)
  try {
    return use(file)
  } finally {
    closeSync(file)
  }
}

test.serial(`whatever is discarded, no block that reads as zeros is missing (${trial.again})`, async (t) => {
  const { random, count, again } = trial
  t.timeout(600_000 + count * 120_000)
  const [data, metadata] = [loopDisk(MEBIBYTES), loopDisk(4)]
  const catalog = await openCatalog(join(mkdtempSync(join(tmpdir(), 'discards-')), 'catalog.sqlite'))
  const commands = { [volume]: { take: ['true'], remove: ['true'] } }
  await using driver = await startDriver(catalog, deviceMapper, {
    recorder: recorderOf(catalog, deviceMapper),
    commands
  })
  const { volumes } = driver
  let { line } = await volumes.attachEra({
    ...{ name: volume, dataDevice: data.path, metadataDevice: metadata.path, blockBytes },
    ...{ allowLossyKernel: false, snapshotSize: '' }
  })
  let mebibytes = MEBIBYTES
  let written = 0
  /** Something that is not zeros, and nowhere else. */
  const fill = (from: number, length: number) => {
    withDevice(upper, constants.O_WRONLY | constants.O_DIRECT, (file) => {
      for (let at = from; at < from + length; at += mebibyte) {
        const bytes = Math.min(mebibyte, from + length - at)
        for (let place = 0; place < bytes; place += 4096) Buffer.from(buffer.buffer).writeUInt32LE(++written, place)
        writeSync(file, buffer, 0, bytes, at)
      }
    })
  }
  fill(0, MEBIBYTES * mebibyte)
  const seen = { refused: 0, zeroed: 0, through: 0, compared: 0, differing: 0, void: 0, tables: 0 }

  /** Of 1 MiB mostly, anywhere. */
  const range = (): [offset: number, length: number] => {
    const length = 512 * random.pick([2048, 2048, 2048, random.integer(1, 8192)])
    const offset = random.integer(0, (mebibytes * mebibyte - length) / 512) * 512
    return [random.chance(0.3) ? Math.floor(offset / blockBytes) * blockBytes : offset, length]
  }
  const tryDiscard = ([offset, length]: [number, number]) =>
    withDevice(upper, constants.O_WRONLY, (file) => discard(file, offset, length))
  const attempts = {
    discard: () => {
      t.throws(() => tryDiscard(range()), { message: /errno 95/ }, again)
      seen.refused++
    },
    /** What a virtual machine above does where zeros may be made without writing them. */
    punch: () => {
      const [offset, length] = range()
      try {
        run('fallocate', ['--punch-hole', '--offset', `${offset}`, '--length', `${length}`, upper])
        seen.zeroed++
      } catch (error) {
        t.regex((error as Error).message, /unsupported|not supported/, again)
        seen.refused++
      }
    },
    zeroes: () => {
      const [offset, length] = range()
      run('blkdiscard', ['--zeroout', '--offset', `${offset}`, '--length', `${length}`, upper])
      seen.zeroed++
    },
    write: () => fill(random.integer(0, mebibytes - 1) * mebibyte, 4096 * random.integer(1, 200))
  }
  const tables = {
    // (Somebody else's suspension voids the history. These are to be ours.)
    resume: async () => {
      run('dmsetup', ['suspend', volume])
      run('dmsetup', ['resume', volume])
      await knowEra(catalog, volume)
    },
    reload: async () => {
      reloadDevice(volume, run('dmsetup', ['table', volume]).trim())
      await knowEra(catalog, volume)
    },
    reactivate: async () => {
      await volumes.deactivateEra({ volume, atShutdown: false })
      await volumes.activateEra({ volume, startOver: false })
    },
    grow: async () => {
      if (mebibytes >= MOST_MEBIBYTES) return
      data.grow((mebibytes += random.integer(1, 3)))
      await volumes.growEra({ volume })
    }
  }
  const guard = async () => {
    const info = await deviceMapper.info(`${volume}-guard`)
    return `/sys/dev/block/${info?.major}:${info?.minor}/queue/discard_max_bytes`
  }
  /** Somebody lets discards through, and may close it again before anybody looks. */
  const letThrough = async () => {
    const limit = await guard()
    openToDiscards(`${volume}-guard`, limit)
    reloadDevice(volume, run('dmsetup', ['table', volume]).trim())
    for (let discards = random.integer(1, 3); discards > 0; discards--) {
      tryDiscard(range())
      seen.through++
    }
    if (!random.chance(0.7)) return
    writeFileSync(limit, '0')
    reloadDevice(volume, run('dmsetup', ['table', volume]).trim())
  }

  const taken: { name: string; line: string; content: string[] }[] = []
  const compare = async (base: (typeof taken)[number], target: (typeof taken)[number]) => {
    const context = `${base.name} to ${target.name}, ${again}`
    const asked = answers.delta(catalog, `${volume}/${base.name}`, `${volume}/${target.name}`)
    if (base.line !== target.line) {
      const refusal = await failure(asked)
      t.is(refusal.code, 'DM_HISTORY_BROKEN', context)
      t.is(refusal.status, 'FAILED_PRECONDITION', context)
      seen.void++
      return
    }
    const extents = await asked
    const changed = new Set(
      extents.flatMap(([offset, size]) =>
        Array.from({ length: Math.ceil(size / blockBytes) }, (_, i) => offset / blockBytes + i)
      )
    )
    const differing = target.content.flatMap((each, block) => (each === base.content[block] ? [] : [block]))
    t.deepEqual(
      differing.filter((block) => !changed.has(block)),
      [],
      context
    )
    seen.differing += differing.length
    seen.compared++
  }
  const snapshot = async (name: string) => {
    await volumes.createEraSnapshot({ volume, name, deadlineMs: 0 })
    taken.push({ name, line, content: blockFingerprints(upper, blockBytes) })
  }
  await snapshot('s0')
  for (let i = 1; i <= count; i++) {
    for (let steps = random.integer(2, 6); steps > 0; steps--) {
      attempts[random.pick(['discard', 'discard', 'discard', 'punch', 'zeroes', 'write'] as const)]()
      if (random.chance(0.5)) continue
      await tables[random.pick(['resume', 'reload', 'reactivate', 'grow'] as const)]()
      seen.tables++
    }
    if (i === Math.ceil(count / 2) || random.chance(0.1)) {
      await letThrough()
      const refusal = await failure(volumes.createEraSnapshot({ volume, name: `s${i}`, deadlineMs: 0 }))
      t.is(refusal.code, 'DM_ERA_HISTORY_LOST', again)
      t.is(refusal.status, 'FAILED_PRECONDITION', again)
      const [now] = (await volumes.listEra({ volume })).volumes
      t.not(now?.line, line, again)
      line = now?.line ?? ''
    }
    t.is((await volumes.listEra({ volume })).volumes[0]?.line, line, again)
    await snapshot(`s${i}`)
    await compare(taken[i - 1], taken[i])
    const base = random.integer(0, i)
    await compare(taken[base], taken[random.integer(base, i)])
  }
  t.true(seen.refused > 0 && seen.void > 0 && seen.differing > 0, again)
  t.log(JSON.stringify(seen))
  await volumes.detachEra({ volume })
  await catalog.close()
})
