/**
 * Writes that reach the data device of a tracked volume by another way than through it: no era has them, so they end the line of snapshots
 * that can be compared. What belongs to the volume's own life does not.
 */
import test, { type ExecutionContext } from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { run } from './dmsetup.ts'
import { blockBytes, boundariesOnly, labCatalog, loopDisk, startDriver } from './era-lab.ts'
import { createGroup, createThick, lvm, prepareLvm } from './lvm-setup.ts'
import { failure } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())

const lower = '/dev/vgb/data'
const upper = '/dev/mapper/beside'

/** 64 KiB of something else at each call. */
function write(device: string, mebibyte: number, ...how: string[]): void {
  run('dd', ['if=/dev/urandom', `of=${device}`, 'bs=64k', 'count=1', `seek=${mebibyte * 16}`, 'status=none', ...how])
}

/** A volume over one of LVM's, whose line is looked at after each step. */
async function startVolume(t: ExecutionContext) {
  const [disk, metadata] = [loopDisk(600), loopDisk(4)]
  createGroup('vgb', disk.path)
  createThick('vgb', 'data', 64)
  const catalog = await labCatalog(t)
  const driver = await startDriver(catalog, deviceMapper, { recorder: boundariesOnly(catalog) })
  const { volumes } = driver
  let { line } = await volumes.attachEra({
    ...{ name: 'beside', dataDevice: lower, metadataDevice: metadata.path, blockBytes },
    ...{ snapshotSize: '16m', allowLossyKernel: false }
  })
  const shown = async () => {
    const [volume] = (await volumes.listEra({ volume: 'beside' })).volumes
    if (!volume) throw new Error('it is gone')
    return volume
  }
  let count = 0
  const snapshot = async () => {
    const name = `s${++count}`
    await volumes.createEraSnapshot({ volume: 'beside', name, deadlineMs: 0 })
    return name
  }
  return {
    volumes,
    snapshot,
    sameLine: async (after: string) => t.is((await shown()).line, line, after),
    anotherLine: async (because: RegExp) => {
      const now = await shown()
      t.not(now.line, line, String(because))
      t.regex(now.lineBecause, because)
      line = now.line
    },
    async [Symbol.asyncDispose]() {
      await driver[Symbol.asyncDispose]()
    }
  }
}

test.serial('beside an active volume', async (t) => {
  t.timeout(900_000)
  await using volume = await startVolume(t)
  const { volumes, snapshot, sameLine, anotherLine } = volume
  const first = await snapshot()
  const own: Record<string, () => unknown> = {
    'writes of all kinds, and what is done to the data device': async () => {
      write(upper, 3, 'oflag=direct')
      write(upper, 4, 'oflag=direct,dsync')
      run('blkdiscard', ['--zeroout', '--length', '1048576', upper])
      run('mkfs.ext4', ['-q', upper])
      lvm('lvcreate', '--snapshot', '--size', '8m', '--name', 'other', 'vgb/data')
      write(upper, 6, 'oflag=direct')
      lvm('lvremove', 'vgb/other')
      lvm('lvchange', '--refresh', 'vgb/data')
      run('dd', [`if=${lower}`, 'of=/dev/null', 'bs=1M', 'status=none'])
      await volumes.deleteSnapshot('beside', first)
      // Flushed with the suspension.
      write(upper, 5)
    },
    'another size, and a rest': async () => {
      lvm('lvextend', '--size', '72m', 'vgb/data')
      await volumes.growEra({ volume: 'beside' })
      write(upper, 70, 'oflag=direct')
      await volumes.deactivateEra({ volume: 'beside', atShutdown: false })
      await volumes.activateEra({ volume: 'beside', startOver: false })
      write(upper, 7, 'oflag=direct')
    }
  }
  for (const [what, happens] of Object.entries(own)) {
    await happens()
    await snapshot().then(
      (name) => volumes.deleteSnapshot('beside', name),
      (error: unknown) => t.fail(`${what}: ${(error as Error).message}`)
    )
    await sameLine(what)
  }

  const beside: [() => unknown, RegExp][] = [
    [() => write(lower, 20, 'oflag=direct'), /^128 sectors were written to \/dev\/vgb\/data beside beside$/],
    [() => write('/dev/mapper/beside-guard', 21, 'oflag=direct'), /^128 sectors were written to beside-guard beside/],
    // In the page cache until LVM suspends the data device, and in the snapshot then.
    [() => write(lower, 22), /^128 sectors were written to \/dev\/vgb\/data/],
    [
      () => run('blkdiscard', ['--force', '--offset', '1048576', '--length', '65536', lower]),
      /discards went to \/dev\/vgb\/data/
    ]
  ]
  for (const [happens, because] of beside) {
    // As much through the volume as beside it.
    write(upper, 30, 'oflag=direct')
    happens()
    const refusal = await failure(snapshot())
    t.is(refusal.code, 'DM_ERA_HISTORY_LOST', String(because))
    await anotherLine(because)
    t.deepEqual((await volumes.listEra({ volume: 'beside' })).volumes[0]?.problem, '')
  }
  await snapshot()
  await sameLine('the next snapshot is the first of the new line')

  // Between the last snapshot and the end.
  write(lower, 23, 'oflag=direct')
  await volumes.deactivateEra({ volume: 'beside', atShutdown: false })
  await anotherLine(/written to \/dev\/vgb\/data beside/)
  await volumes.activateEra({ volume: 'beside', startOver: false })
  await sameLine('it is known already')
  await volumes.detachEra({ volume: 'beside' })
  lvm('vgremove', '--force', 'vgb')
})

test.serial('beside an inactive volume', async (t) => {
  t.timeout(900_000)
  await using volume = await startVolume(t)
  const { volumes, snapshot, sameLine, anotherLine } = volume
  const whileInactive = async (happens: () => unknown) => {
    await volumes.deactivateEra({ volume: 'beside', atShutdown: false })
    await happens()
    await volumes.activateEra({ volume: 'beside', startOver: false })
  }
  await whileInactive(() => lvm('lvchange', '--refresh', 'vgb/data'))
  await sameLine('nothing was written')
  const [first, second] = [await snapshot(), await snapshot()]
  await whileInactive(() => volumes.deleteSnapshot('beside', second))
  await sameLine('a snapshot was removed by us')
  // Written from below, which the data device does not count.
  write(upper, 10, 'oflag=direct')
  await whileInactive(() => lvm('lvconvert', '--merge', '--interval', '1', `vgb/${first}`))
  await anotherLine(
    /^snapshot \w{32} is gone, and may have been merged into \/dev\/vgb\/data while beside was not active/
  )
  // The counters of another device would begin anew.
  await whileInactive(() => {
    write(lower, 20, 'oflag=direct')
    lvm('lvchange', '--activate', 'n', 'vgb/data')
    lvm('lvchange', '--activate', 'y', 'vgb/data')
  })
  await anotherLine(/\/dev\/vgb\/data was itself taken down and put up again while beside was not active/)
  await volumes.detachEra({ volume: 'beside' })
  lvm('vgremove', '--force', 'vgb')
})
