/**
 * Scenes of what lies below classic snapshots: tables that are none of LVM's, and devices that somebody else has open.
 * They are lived by classic-snapshots.test.ts.
 */
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { answerTo, beginSlowly, failure } from './ask.ts'
import { serve as serveClassic } from './classic-agent.ts'
import {
  agent,
  client,
  delta,
  everyOther,
  fresh,
  group,
  handle,
  loopDevice,
  refusal,
  type Scenes,
  serve,
  snapshot,
  tableOf,
  volume,
  write,
  writeEach
} from './classic-lab.ts'
import { createDevice, reloadDevice, removeDevice, run } from './dmsetup.ts'
import { createGroup, lvm } from './lvm-setup.ts'

/** Whether LVM made it. Throws what is not the fault of one of its versions. */
function succeeds(make: () => void): boolean {
  try {
    make()
    return true
  } catch (error) {
    if (/Missing cache's data uuid/.test((error as Error).message)) return false
    throw error
  }
}

export const scenesBelow: Scenes = {
  async 'what lies below the origin gets another table, before an answer and in the middle of one'(t, inStep) {
    const device = volume('real')
    snapshot('real', 'q1')
    writeEach(device, everyOther(500))
    await inStep(() => serve('q1'))
    snapshot('real', 'q2')
    const rest = await inStep(() => beginSlowly(agent.address, handle('q1'), handle('q2')))
    const real = `${group}-real-real`
    const table = tableOf(real)
    reloadDevice(
      real,
      table.replace(/\d+$/, (sector) => String(Number(sector) + 8))
    )
    const ended = await inStep(() => Promise.all([failure(rest()), failure(delta('q1', 'q2'))]))
    for (const { code, message } of ended) t.is(code, 'DM_COW_DETACHED', message)
    reloadDevice(real, table)
    t.is((await inStep(() => delta('q1', 'q2'))).length, 500)
    // Seen once, and gone at the next look: what was written meanwhile was copied from elsewhere.
    reloadDevice(real, '0 8192 zero')
    const lines = agent.log.length
    const asked = await inStep(async () => {
      let isOver = false
      const answer = refusal('q1', 'q2').finally(() => (isOver = true))
      while (!isOver && !agent.log.slice(lines).some(({ why }) => why !== undefined)) await sleep(20)
      reloadDevice(real, table)
      return answer
    })
    t.is(asked, 'DM_COW_DETACHED')
  },

  async 'what lies below is moved by LVM in the middle of an answer, or is mirrored or cached'(t, inStep) {
    for (const module of ['dm-mirror', 'dm-raid', 'dm-cache-smq']) run('/run/modprobe', [module])
    createGroup('below', ...[2, 3].map((number) => loopDevice(number, '80M')))
    const make = (...words: string[]) => lvm('lvcreate', ...words, 'below')
    const take = (origin: string, name: string) => {
      const options = ['--size', '5m', '--chunksize', '4k', '--permission', 'r', '--name', name]
      lvm('lvcreate', '--snapshot', ...options, `below/${origin}`)
    }
    make('--size', '4m', '--name', 'moved')
    make('--type', 'raid1', '--mirrors', '1', '--nosync', '--size', '4m', '--name', 'mirror')
    make('--size', '4m', '--name', 'cached')
    make('--type', 'cache-pool', '--size', '8m', '--name', 'fast')
    const unchecked = 'global { cache_check_executable = "" }'
    lvm('lvconvert', '--config', unchecked, '--type', 'cache', '--cachepool', 'below/fast', 'below/cached')
    make('--size', '4m', '--name', 'voled')
    make('--size', '8m', '--name', 'vol')
    // Debian forky's LVM 2.03.31 forgets the end of a UUID, and cannot make this one: the soak does, on other kernels.
    const isVoled = succeeds(() =>
      lvm('lvconvert', '--config', unchecked, '--type', 'cache', '--cachevol', 'below/vol', 'below/voled')
    )
    if (!isVoled) t.log('not tried: a volume that is cached on a volume, which this LVM cannot make')
    const all = ['moved', 'mirror', 'cached', ...(isVoled ? ['voled'] : [])]
    for (const origin of all) {
      take(origin, `${origin}-1`)
      writeEach(`/dev/below/${origin}`, everyOther(origin === 'moved' ? 500 : 2))
      take(origin, `${origin}-2`)
    }
    const pairOf = (origin: string) => answerTo(client, { base: `below/${origin}-1`, target: `below/${origin}-2` })
    await inStep(() => Promise.all(all.map((origin) => serveClassic(client, 'below', `${origin}-1`))))
    const rest = await inStep(() => beginSlowly(agent.address, 'below/moved-1', 'below/moved-2'))
    const before = tableOf('below-moved-real')
    lvm('pvmove', '--interval', '1', '--name', 'moved', '/dev/loop2', '/dev/loop3')
    t.not(tableOf('below-moved-real'), before)
    await inStep(() => rest())
    const answers = await inStep(() => Promise.all(all.map(pairOf)))
    t.deepEqual(
      answers.map(({ length }) => length),
      all.map((origin) => (origin === 'moved' ? 500 : 2))
    )
    // By hand, they become what LVM makes of other types.
    for (const [origin, table] of [
      ['mirror', '0 8192 zero'],
      ['cached', '0 8192 error']
    ]) {
      reloadDevice(`below-${origin}-real`, table)
    }
    const refused = await inStep(() => Promise.all(['mirror', 'cached'].map(async (each) => failure(pairOf(each)))))
    t.deepEqual(
      refused.map(({ code }) => code),
      ['DM_COW_DETACHED', 'DM_COW_DETACHED']
    )
  },

  async 'somebody else has the untouched origin or a store open'(t, inStep) {
    const device = volume('open')
    snapshot('open', 'o1')
    const changed = write(device, 10)
    snapshot('open', 'o2')
    write(device, 11)
    await inStep(() => serve('o1'))
    const [real, store] = [`/dev/mapper/${group}-open-real`, `/dev/mapper/${group}-o1-cow`]
    const refused = async () => {
      const { code, message } = await failure(delta('o1', 'o2'))
      return `${code} ${message}`
    }
    run('losetup', ['/dev/loop5', real])
    // What stands on the loop device by then goes on writing.
    run('blockdev', ['--setro', '/dev/loop5'])
    t.regex(await inStep(refused), /^DM_COW_DETACHED .* its untouched origin may be written to by \/dev\/loop5;/)
    run('losetup', ['--detach', '/dev/loop5'])
    const writer = openSync(store, 'r+')
    t.regex(await inStep(refused), /^DM_COW_DETACHED .* its store may be written to by process \d+ \(.+\);/)
    closeSync(writer)
    // Who reads does no harm, wherever it is: contents are compared.
    const both = ['o1', 'o2'].map((name) => `/dev/${group}/${name}`)
    const readers = [real, store, ...both].map((path) => openSync(path, 'r'))
    // (As Kubernetes does with block volumes; it could write if the snapshot were not read-only.)
    run('losetup', ['/dev/loop5', both[0]])
    t.throws(() => write('/dev/loop5', 10))
    t.deepEqual(await inStep(() => delta('o1', 'o2')), [changed])
    run('losetup', ['--detach', '/dev/loop5'])
    for (const reader of readers) closeSync(reader)
  },

  async "a second snapshot's device has a base's store, or stands on the origin beside LVM's"(t, inStep) {
    const device = volume('second')
    snapshot('second', 's1')
    write(device, 10)
    snapshot('second', 's2')
    await inStep(() => serve('s1'))
    const table = (store: string) => `0 8192 snapshot /dev/mapper/${group}-second-real ${store} P 8`
    createDevice('second-cow', `0 10240 linear /dev/mapper/${group}-s1-cow 0`)
    createDevice('second', table('/dev/mapper/second-cow'))
    t.is(await inStep(() => refusal('s1', 's2')), 'DM_COW_DETACHED')
    for (const name of ['second', 'second-cow']) removeDevice(name)
    // With a store of its own, as far as can be seen.
    createDevice('second', table(loopDevice(4, '8M')))
    t.is(await inStep(() => refusal('s1', 's2')), 'DM_COW_DETACHED')
    removeDevice('second')
  },

  async 'what stands on a read-only base writes while nothing is counted'(t, inStep) {
    const device = volume('uncounted')
    snapshot('uncounted', 'c1', { permission: 'rw' })
    createDevice('on-c1', `0 8192 linear /dev/${group}/c1 0`)
    lvm('lvchange', '--permission', 'r', handle('c1'))
    await inStep(() => serve('c1'))
    const fill = fresh()
    const changed = write(device, 10, 1, fill)
    snapshot('uncounted', 'c2')
    write(device, 10)
    const name = run('dmsetup', ['info', '--columns', '--noheadings', '-o', 'blkdevname', `${group}-c1`]).trim()
    const counted = `/sys/block/${name}/queue/iostats`
    const before = readFileSync(counted, 'utf8')
    writeFileSync(counted, '0')
    write('/dev/mapper/on-c1', 10, 1, fill)
    writeFileSync(counted, before)
    t.deepEqual(await inStep(() => delta('c1', 'c2')), [changed])
    // It was seen.
    removeDevice('on-c1')
    t.deepEqual(await inStep(() => delta('c1', 'c2')), [changed])
  },

  async "a snapshot's own table is made shorter"(t, inStep) {
    const device = volume('short')
    snapshot('short', 'j1')
    write(device, 10)
    write(device, 700)
    snapshot('short', 'j2')
    await inStep(() => serve('j1'))
    for (const name of ['j2', 'j1']) {
      const own = `${group}-${name}`
      const table = tableOf(own)
      reloadDevice(own, table.replace(/^0 8192 /, '0 4096 '))
      t.is(await inStep(() => refusal('j1', 'j2')), 'DM_COW_DETACHED', name)
      reloadDevice(own, table)
    }
  }
}
