/**
 * Tracked volumes in a real kernel: attached, activated, grown, and whatever is refused, because a write or a discard would go unseen.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { LvmReporter } from '../../src/agent/lvm/report.ts'
import type { ErrorCode } from '../../src/errors.ts'
import { extentsOfBlocks } from '../support/era-model.ts'
import { discard } from './discard.ts'
import { alignedBuffer, createDevice, openToDiscards, reloadDevice, removeDevice, run, zeroStart } from './dmsetup.ts'
import { blockBytes, labCatalog, loopDisk, mebibyte, startDriver, writtenSince } from './era-lab.ts'
import { createGroup, createThick, lvm, prepareLvm } from './lvm-setup.ts'
import { failure, until } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())

const noRecorder = {
  ready: () => Promise.resolve(),
  record: () => Promise.reject(new Error('nothing is to be recorded'))
}

function request(name: string, data: string, metadata: string) {
  return {
    ...{ name, dataDevice: data, metadataDevice: metadata, blockBytes, snapshotSize: '', allowLossyKernel: false }
  }
}

/** Writes a block of whatever. */
function writeBlock(device: string, block: number): void {
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
  try {
    writeSync(file, alignedBuffer(blockBytes).fill(block + 1), 0, blockBytes, block * blockBytes)
  } finally {
    closeSync(file)
  }
}

function readBlock(device: string, block: number): Buffer {
  const file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
  try {
    const buffer = Buffer.from(alignedBuffer(blockBytes).buffer)
    readSync(file, buffer, 0, blockBytes, block * blockBytes)
    return buffer
  } finally {
    closeSync(file)
  }
}

test.serial('attached, used, deactivated, activated, detached', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  const attached = await volumes.attachEra(request('plain', data.path, metadata.path))
  t.like(attached, { name: 'plain', deviceName: 'plain', blockBytes, sizeBytes: 64 * mebibyte, active: true })
  t.like(attached, { suspended: false, problem: '', underWay: '', lineBecause: 'attached', snapshots: 0 })
  t.is(attached.usage?.currentEra, 1)

  writeBlock('/dev/mapper/plain', 5)
  const blocks = (...numbers: number[]) => extentsOfBlocks(numbers, { blockBytes, sizeBytes: 64 * mebibyte })
  t.deepEqual(await writtenSince(catalog, 'plain', metadata.path, 1), blocks(5))

  t.is((await failure(volumes.attachEra(request('plain', data.path, metadata.path)))).code, 'DM_NAME_TAKEN')
  t.is((await failure(volumes.attachEra(request('other', data.path, loopDisk(4).path)))).code, 'DM_DEVICE_BUSY')

  const file = openSync('/dev/mapper/plain', 'r')
  t.is((await failure(volumes.deactivateEra({ volume: 'plain', atShutdown: false }))).code, 'DM_DEVICE_BUSY')
  t.is((await failure(volumes.detachEra({ volume: 'plain' }))).code, 'DM_DEVICE_BUSY')
  closeSync(file)
  t.false((await volumes.deactivateEra({ volume: 'plain', atShutdown: false })).active)
  const again = await volumes.activateEra({ volume: 'plain', startOver: false })
  t.is(again.line, attached.line, 'nothing was written beside')
  writeBlock('/dev/mapper/plain', 7)
  t.deepEqual(await writtenSince(catalog, 'plain', metadata.path, again.usage?.currentEra ?? 0), blocks(7))
  t.deepEqual(await writtenSince(catalog, 'plain', metadata.path, 1), blocks(5, 7))

  await volumes.detachEra({ volume: 'plain' })
  t.deepEqual((await volumes.listEra({ volume: '' })).volumes, [])
  t.deepEqual(await deviceMapper.list(), [])
  t.deepEqual(readBlock(data.path, 7), readBlock(data.path, 7).fill(8), 'the data are where they were')
})

test.serial(
  'somebody has the metadata device for a moment, of which the kernel says EINVAL only: it is waited for',
  async (t) => {
    const [data, metadata] = [loopDisk(64), loopDisk(4)]
    const catalog = await labCatalog(t)
    let had = 0
    /** While the era device is made, as a process that is being started has what its parent had claimed. */
    const meddled = new Proxy(deviceMapper, {
      get(target, name) {
        const method: unknown = Reflect.get(target, name, target)
        if (typeof method !== 'function') return method
        return (...args: unknown[]) => {
          if (name !== 'create' || args[0] !== 'moment') return Reflect.apply(method, target, args) as unknown
          had++
          const claim = had === 1 ? openSync(metadata.path, constants.O_RDONLY | constants.O_EXCL) : undefined
          const made = Reflect.apply(method, target, args) as Promise<unknown>
          return claim === undefined ? made : made.finally(() => closeSync(claim))
        }
      }
    })
    await using driver = await startDriver(catalog, meddled, { recorder: noRecorder })
    const { volumes } = driver
    t.like(await volumes.attachEra(request('moment', data.path, metadata.path)), { active: true, problem: '' })
    t.is(had, 2)
    await volumes.detachEra({ volume: 'moment' })
  }
)

test.serial('what holds something, is in use, or is too small is refused, and nothing is left', async (t) => {
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  const data = loopDisk(64).path
  const refused = async (code: ErrorCode, words: RegExp, asked: Parameters<typeof volumes.attachEra>[0]) => {
    const error = await failure(volumes.attachEra(asked))
    t.is(error.code, code, error.message)
    t.regex(`${error.message}; ${error.remedy}`, words)
    t.deepEqual((await volumes.listEra({ volume: '' })).volumes, [])
    t.deepEqual(await deviceMapper.list(), [])
  }
  const formatted = loopDisk(4).path
  run('mkfs.ext4', ['-q', formatted])
  await refused('DM_DEVICE_NOT_BLANK', /ext4 file system/, request('v', data, formatted))
  const unknown = loopDisk(4).path
  writeFileSync(unknown, 'x', { flag: 'r+' })
  await refused('DM_DEVICE_NOT_BLANK', /something that is not known/, request('v', data, unknown))
  await refused(
    'DM_ARGUMENT_INVALID',
    /1048576 bytes, and 1024 blocks take 1058816/,
    request('v', data, loopDisk(1).path)
  )
  await refused('DM_ARGUMENT_INVALID', /multiple of 4096/, { ...request('v', data, loopDisk(4).path), blockBytes: 512 })
  await refused('DM_DEVICE_BUSY', /cannot be the data device as well/, request('v', data, data))
  await refused('DM_ARGUMENT_INVALID', /no size for a snapshot/, {
    ...request('v', data, loopDisk(4).path),
    snapshotSize: '-1'
  })
  const mounted = loopDisk(64).path
  run('mkfs.ext4', ['-q', mounted])
  const folder = mkdtempSync(join(tmpdir(), 'mount-'))
  run('mount', [mounted, folder])
  await refused('DM_DEVICE_BUSY', /in use/, request('v', mounted, loopDisk(4).path))
  run('umount', [folder])
  const held = createDevice('held', `0 1024 linear ${data} 0`)
  const error = await failure(volumes.attachEra(request('v', data, loopDisk(4).path)))
  t.is(error.code, 'DM_DEVICE_BUSY')
  removeDevice('held')
  t.is(held, '/dev/mapper/held')
  createDevice('taken', '0 1024 zero')
  t.regex((await failure(volumes.attachEra(request('taken', data, loopDisk(4).path)))).message, /already is/)
  removeDevice('taken')
})

test.serial(
  'a discard is refused before and after every table, and where one gets through the history is void',
  async (t) => {
    const [data, metadata] = [loopDisk(64), loopDisk(4)]
    const catalog = await labCatalog(t)
    await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
    const { volumes } = driver
    const attached = await volumes.attachEra(request('trimmed', data.path, metadata.path))
    const path = '/dev/mapper/trimmed'
    const trim = (offset: number, length: number) => {
      const file = openSync(path, constants.O_WRONLY)
      try {
        discard(file, offset, length)
      } finally {
        closeSync(file)
      }
    }
    const closed = (when: string) => {
      for (const [offset, length] of [
        [0, mebibyte],
        [4096, mebibyte],
        [blockBytes - 512, mebibyte + 1024]
      ] as const) {
        t.throws(() => trim(offset, length), { message: /errno 95/ }, when)
      }
    }
    closed('attached')
    run('dmsetup', ['suspend', 'trimmed'])
    run('dmsetup', ['resume', 'trimmed'])
    closed('resumed')
    reloadDevice('trimmed', run('dmsetup', ['table', 'trimmed']).trim())
    closed('reloaded')
    await volumes.deactivateEra({ volume: 'trimmed', atShutdown: false })
    const { line, lineBecause } = await volumes.activateEra({ volume: 'trimmed', startOver: false })
    t.not(line, attached.line)
    t.regex(lineBecause, /another program has suspended the volume/)
    closed('activated')
    data.grow(80)
    t.is((await volumes.growEra({ volume: 'trimmed' })).sizeBytes, 80 * mebibyte)
    closed('grown')
    t.is((await volumes.activateEra({ volume: 'trimmed', startOver: false })).line, line, 'no discard was seen')

    // Somebody opens it, on purpose.
    const guard = await deviceMapper.info('trimmed-guard')
    const limit = `/sys/dev/block/${guard?.major}:${guard?.minor}/queue/discard_max_bytes`
    openToDiscards('trimmed-guard', limit)
    t.regex((await volumes.listEra({ volume: 'trimmed' })).volumes[0]?.problem ?? '', /let discards through/)
    t.is((await failure(volumes.activateEra({ volume: 'trimmed', startOver: false }))).code, 'DM_ERA_HISTORY_LOST')
    t.is(readFileSync(limit, 'utf8').trim(), '0', 'it is closed again')
    const second = await volumes.activateEra({ volume: 'trimmed', startOver: false })
    t.not(second.line, line)
    t.regex(second.lineBecause, /let discards through/)

    // For a moment only, while nobody looks.
    openToDiscards('trimmed-guard', limit)
    reloadDevice('trimmed', run('dmsetup', ['table', 'trimmed']).trim())
    trim(4096, mebibyte)
    writeFileSync(limit, '0')
    reloadDevice('trimmed', run('dmsetup', ['table', 'trimmed']).trim())
    closed('closed again')
    t.is((await failure(volumes.activateEra({ volume: 'trimmed', startOver: false }))).code, 'DM_ERA_HISTORY_LOST')
    const third = await volumes.activateEra({ volume: 'trimmed', startOver: false })
    t.not(third.line, second.line)
    t.regex(third.lineBecause, /1 discards went through trimmed-guard/)

    // Open, with a table that took that over, and left so: it is closed as well, and void once only.
    openToDiscards('trimmed-guard', limit)
    reloadDevice('trimmed', run('dmsetup', ['table', 'trimmed']).trim())
    trim(4096, mebibyte)
    t.is((await failure(volumes.activateEra({ volume: 'trimmed', startOver: false }))).code, 'DM_ERA_HISTORY_LOST')
    closed('found open')
    const fourth = await volumes.activateEra({ volume: 'trimmed', startOver: false })
    t.not(fourth.line, third.line)
    t.is((await volumes.activateEra({ volume: 'trimmed', startOver: false })).line, fourth.line)
    await volumes.detachEra({ volume: 'trimmed' })
  }
)

test.serial('grown, and what is beyond is tracked; it does not shrink', async (t) => {
  const [data, metadata] = [loopDisk(16), loopDisk(4)]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  const { line } = await volumes.attachEra(request('growing', data.path, metadata.path))
  t.regex((await failure(volumes.growEra({ volume: 'growing' }))).remedy, /enlarge that device first/)
  writeBlock('/dev/mapper/growing', 3)
  data.grow(48)
  const held = openSync('/dev/mapper/growing', 'r')
  const grown = await volumes.growEra({ volume: 'growing' })
  closeSync(held)
  t.like(grown, { sizeBytes: 48 * mebibyte, dataBytes: 48 * mebibyte, underWay: '', suspended: false, line })
  t.is(grown.usage?.currentEra, 2)
  writeBlock('/dev/mapper/growing', 700)
  t.deepEqual(
    await writtenSince(catalog, 'growing', metadata.path, 1),
    extentsOfBlocks([3, 700], { blockBytes, sizeBytes: 48 * mebibyte })
  )
  await volumes.deactivateEra({ volume: 'growing', atShutdown: false })
  t.like(await volumes.activateEra({ volume: 'growing', startOver: false }), { sizeBytes: 48 * mebibyte, line })
  await volumes.deactivateEra({ volume: 'growing', atShutdown: false })
  data.grow(32)
  t.is((await failure(volumes.activateEra({ volume: 'growing', startOver: false }))).code, 'DM_CATALOG_DISAGREES')
  data.grow(48)
  await volumes.activateEra({ volume: 'growing', startOver: false })
  await volumes.detachEra({ volume: 'growing' })
})

test.serial('reports of LVM neither wait for a suspended volume nor keep one from growing', async (t) => {
  t.timeout(900_000)
  const [group, data, metadata] = [loopDisk(200), loopDisk(16), loopDisk(8)]
  createGroup('vg-r', group.path)
  createThick('vg-r', 'other', 16)
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  await volumes.attachEra(request('reported', data.path, metadata.path))
  // Suspended for as long as nobody ends it, as far as this test is concerned.
  const { token } = await volumes.beginSnapshot({ volume: 'reported', name: 'a', deadlineMs: 600_000 })
  t.is((await new LvmReporter().logicalVolumes('vg-r'))?.length, 1)
  t.true((await deviceMapper.info('reported'))?.suspended)
  await volumes.endSnapshot({ token, reference: '', abandon: true })

  let [grown, asked] = [false, 0]
  const asking = [1, 2].map(async () => {
    const reporter = new LvmReporter()
    for (; !grown; asked++) await reporter.logicalVolumes('vg-r')
  })
  try {
    for (let mebibytes = 17; mebibytes <= 19; mebibytes++) {
      data.grow(mebibytes)
      const before = asked
      t.is((await volumes.growEra({ volume: 'reported' })).sizeBytes, mebibytes * mebibyte)
      await until(
        () => Promise.resolve(asked),
        (now) => now > before
      )
    }
  } finally {
    grown = true
  }
  await Promise.all(asking)
  await volumes.detachEra({ volume: 'reported' })
  lvm('vgremove', '--force', 'vg-r')
})

test.serial('LVM extends no thick volume in use that has classic snapshots: grow says so', async (t) => {
  const [group, metadata] = [loopDisk(100), loopDisk(4)]
  createGroup('vg-k', group.path)
  createThick('vg-k', 'srv', 16)
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  await volumes.attachEra(request('srv', '/dev/vg-k/srv', metadata.path))
  lvm('lvcreate', '--snapshot', '--size', '8m', '--name', 'monday', 'vg-k/srv')
  t.throws(() => lvm('lvextend', '--size', '20m', 'vg-k/srv'), { message: /only while inactive/ })
  const same = await failure(volumes.growEra({ volume: 'srv' }))
  t.regex(same.remedy, /LVM extends a thick volume in use only once it has no classic snapshot/)
  lvm('lvremove', 'vg-k/monday')
  lvm('lvextend', '--size', '20m', 'vg-k/srv')
  t.is((await volumes.growEra({ volume: 'srv' })).sizeBytes, 20 * mebibyte)
  await volumes.detachEra({ volume: 'srv' })
  lvm('vgremove', '--force', 'vg-k')
})

test.serial('who asks a volume that is about to grow for its status is let go first', async (t) => {
  const [data, metadata] = [loopDisk(16), loopDisk(4)]
  const catalog = await labCatalog(t)
  const answers: Promise<unknown>[] = []
  let mostAsked = 1
  /** While it is suspended, as LVM does without a filter. */
  const meddled = new Proxy(deviceMapper, {
    get(target, name) {
      const method: unknown = Reflect.get(target, name, target)
      if (typeof method !== 'function') return method
      return async (...args: unknown[]) => {
        const result = (await Reflect.apply(method, target, args)) as unknown
        if (name === 'suspend' && answers.length < mostAsked) {
          const asking = spawn('dmsetup', ['status', 'asked'], { stdio: 'ignore' })
          answers.push(once(asking, 'exit'))
          await until(
            () => Promise.resolve(readFileSync(`/proc/${asking.pid}/stat`, 'utf8')),
            (stat) => stat.includes(' D ')
          )
        }
        return result
      }
    }
  })
  await using driver = await startDriver(catalog, meddled, { recorder: noRecorder })
  const { volumes } = driver
  await volumes.attachEra(request('asked', data.path, metadata.path))
  data.grow(17)
  t.is((await volumes.growEra({ volume: 'asked' })).sizeBytes, 17 * mebibyte)
  t.deepEqual(await Promise.all(answers), [[0, null]])

  // One that asks in a loop, as long as it pauses now and then.
  mostAsked = 9
  data.grow(18)
  t.is((await volumes.growEra({ volume: 'asked' })).sizeBytes, 18 * mebibyte)

  // Whoever never stops is no reason to wait for ever.
  mostAsked = Infinity
  data.grow(19)
  const busy = await failure(volumes.growEra({ volume: 'asked' }))
  t.is(busy.code, 'DM_DEVICE_BUSY')
  t.regex(busy.message, /process \d+ \(dmsetup\) waits/)
  t.like((await volumes.listEra({ volume: 'asked' })).volumes[0], {
    sizeBytes: 18 * mebibyte,
    suspended: false,
    underWay: ''
  })
  mostAsked = 0
  t.is((await volumes.growEra({ volume: 'asked' })).sizeBytes, 19 * mebibyte)
  for (const answer of await Promise.all(answers)) t.deepEqual(answer, [0, null])
  await volumes.detachEra({ volume: 'asked' })
})

test.serial('metadata that is not what it was is refused, and formatted anew on request only', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  const { line } = await volumes.attachEra(request('memory', data.path, metadata.path))
  const copy = join(tmpdir(), 'era-copy')
  await volumes.deactivateEra({ volume: 'memory', atShutdown: false })
  run('dd', [`if=${metadata.path}`, `of=${copy}`, 'bs=1M', 'status=none'])
  const cycle = async () => {
    const volume = await volumes.activateEra({ volume: 'memory', startOver: false })
    await volumes.deactivateEra({ volume: 'memory', atShutdown: false })
    return volume
  }
  t.is((await cycle()).line, line)
  t.is((await cycle()).usage?.currentEra, 3)
  run('dd', [`if=${copy}`, `of=${metadata.path}`, 'bs=1M', 'conv=fsync', 'status=none'])
  const backwards = await failure(volumes.activateEra({ volume: 'memory', startOver: false }))
  t.is(backwards.code, 'DM_ERA_HISTORY_LOST')
  t.regex(backwards.message, /is in era 1, and was in era 3 before/)
  t.deepEqual(await deviceMapper.list(), [])
  zeroStart(metadata.path)
  const blank = await failure(volumes.activateEra({ volume: 'memory', startOver: false }))
  t.is(blank.code, 'DM_ERA_HISTORY_LOST')
  t.regex(blank.remedy, /--start-over/)
  const anew = await volumes.activateEra({ volume: 'memory', startOver: true })
  t.not(anew.line, line)
  t.is(anew.usage?.currentEra, 1)
  await volumes.detachEra({ volume: 'memory' })
})

test.serial('written to beside us: the history is void, and the volume works', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  let { line } = await volumes.attachEra(request('beside', data.path, metadata.path))
  const activated = async (because: RegExp | undefined) => {
    const volume = await volumes.activateEra({ volume: 'beside', startOver: false })
    if (because === undefined) t.is(volume.line, line)
    else {
      t.not(volume.line, line)
      t.regex(volume.lineBecause, because)
    }
    line = volume.line
  }
  await volumes.deactivateEra({ volume: 'beside', atShutdown: false })
  await activated(undefined)
  await volumes.deactivateEra({ volume: 'beside', atShutdown: false })
  writeBlock(data.path, 500)
  await activated(/was written to while beside was not active/)
  await volumes.deactivateEra({ volume: 'beside', atShutdown: false })
  writeBlock(data.path, 0)
  await activated(/first 128 KiB/)
  // Taken down behind our back.
  run('dmsetup', ['remove', 'beside'])
  run('dmsetup', ['remove', 'beside-guard'])
  t.is((await volumes.listEra({ volume: '' })).volumes[0]?.active, false)
  await activated(/deactivated by another program/)
  await volumes.detachEra({ volume: 'beside' })
})

test.serial('other devices under the same names are found out', async (t) => {
  const [data, metadata, other] = [loopDisk(64), loopDisk(4), loopDisk(64)]
  for (const [name, target, mebibytes] of [
    ['front', data.path, 64],
    ['back', metadata.path, 4]
  ] as const) {
    createDevice(name, `0 ${(mebibytes * mebibyte) / 512} linear ${target} 0`, '--uuid', `TEST-${name}`)
  }
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  await volumes.attachEra(request('swapped', '/dev/mapper/front', '/dev/mapper/back'))
  await volumes.deactivateEra({ volume: 'swapped', atShutdown: false })
  removeDevice('front')
  createDevice('front', `0 131072 linear ${other.path} 0`, '--uuid', 'TEST-another')
  const swapped = await failure(volumes.activateEra({ volume: 'swapped', startOver: false }))
  t.is(swapped.code, 'DM_CATALOG_DISAGREES')
  t.regex(swapped.message, /it is dm-uuid:TEST-another, and that was dm-uuid:TEST-front/)
  await volumes.detachEra({ volume: 'swapped' })
  removeDevice('front')
  removeDevice('back')
})

test.serial('after an orderly shutdown the history goes on, unless something was written first', async (t) => {
  const [disk, metadata] = [loopDisk(64), loopDisk(4)]
  const disks = () => [
    createDevice('disk', `0 131072 linear ${disk.path} 0`, '--uuid', 'TEST-disk'),
    createDevice('notes', `0 8192 linear ${metadata.path} 0`, '--uuid', 'TEST-notes')
  ]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: noRecorder })
  const { volumes } = driver
  const [data = '', notes = ''] = disks()
  const { line } = await volumes.attachEra(request('reborn', data, notes))
  /** What a shutdown and another boot leave: no devices, all counters at 0, and another boot than the one that is remembered. */
  const restart = async () => {
    await volumes.deactivateEra({ volume: 'reborn', atShutdown: true })
    for (const each of ['disk', 'notes']) removeDevice(each)
    const { lowerSeen = '' } = (await catalog.eraVolumes.find('reborn')) ?? {}
    await catalog.eraVolumes.saw('reborn', { lowerSeen: lowerSeen.replace(/"boot":"[^"]+"/, '"boot":"another"') })
    disks()
  }
  writeBlock('/dev/mapper/reborn', 9)
  await restart()
  const again = await volumes.activateEra({ volume: 'reborn', startOver: false })
  t.is(again.line, line)
  t.deepEqual(
    await writtenSince(catalog, 'reborn', notes, 1),
    extentsOfBlocks([9], { blockBytes, sizeBytes: 64 * mebibyte }),
    'what was written before is known'
  )
  await restart()
  writeBlock('/dev/mapper/disk', 700)
  const beside = await volumes.activateEra({ volume: 'reborn', startOver: false })
  t.not(beside.line, line)
  t.regex(beside.lineBecause, /was written to, before reborn was activated/)
  await volumes.detachEra({ volume: 'reborn' })
  for (const each of ['disk', 'notes']) removeDevice(each)
})
