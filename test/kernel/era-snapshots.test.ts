/**
 * Snapshots of tracked volumes in a real kernel: what is in one is of one moment, the device always comes back, and a boundary is where it is
 * said to be.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { decodeDeviceNumber } from '../../native/device.ts'
import { refuseSelfHosting } from '../../src/agent/era/device/self-hosting.ts'
import { Watchdog } from '../../src/agent/era/boundary/watchdog.ts'
import { createDevice, removeDevice, run } from './dmsetup.ts'
import { blockBytes, boundariesOnly, labCatalog, loopDisk, startDriver, writtenSince } from './era-lab.ts'
import { labRun } from './lab-run.ts'
import { createGroup, createThick, lvm, prepareLvm } from './lvm-setup.ts'
import { failure, readWritten, startOrderedWriter, until } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())

function request(name: string, data: string, metadata: string) {
  return {
    ...{ name, dataDevice: data, metadataDevice: metadata, blockBytes, snapshotSize: '', allowLossyKernel: false }
  }
}

const suspended = async (name: string) => (await deviceMapper.info(name))?.suspended

test.serial('LVM takes the snapshot, with the era device in its sight and somebody writing', async (t) => {
  const [disk, metadata] = [loopDisk(256), loopDisk(4)]
  createGroup('vg-a', disk.path)
  createThick('vg-a', 'data-1', 64)
  const catalog = await labCatalog(t)
  const recorder = boundariesOnly(catalog)
  await using driver = await startDriver(catalog, deviceMapper, { recorder })
  const { volumes } = driver
  await volumes.attachEra({ ...request('lv', '/dev/vg-a/data-1', metadata.path), snapshotSize: '50%ORIGIN' })
  // In LVM's sight: what stands on it, and another name, of which LVM needs but one.
  createDevice('upon', '0 8192 linear /dev/mapper/lv 0')
  createDevice('upon-that', '0 8192 linear /dev/mapper/upon 0')
  symlinkSync('lv', '/dev/mapper/another-name')
  // Its file system is in LVM's sight twice, and LVM must not touch the upper one.
  const writer = await startOrderedWriter(t, '/dev/mapper/lv', 40 * 2 ** 20)
  const boundaries: number[] = []
  for (let i = 1; i <= 3; i++) {
    const snapshot = await volumes.createEraSnapshot({ volume: 'lv', name: `s${i}`, deadlineMs: 0 })
    t.like(snapshot, { volume: 'lv', name: `s${i}`, lower: `LVM's vg-a/s${i}` })
    t.true(snapshot.suspendedMs > 0)
    boundaries.push(snapshot.boundaryEra)
    const first = readWritten(`/dev/vg-a/s${i}`, 0)
    const second = readWritten(`/dev/vg-a/s${i}`, 40 * 2 ** 20)
    t.true(first === second || first === second + 1, `${first}, ${second}: of one moment`)
  }
  t.deepEqual(boundaries, [2, 3, 4])
  writer.kill('SIGKILL')
  await once(writer, 'exit')
  t.false(await suspended('lv'))
  for (const name of ['upon-that', 'upon']) removeDevice(name)
  rmSync('/dev/mapper/another-name')

  const twice = await failure(volumes.createEraSnapshot({ volume: 'lv', name: 's1', deadlineMs: 0 }))
  t.is(twice.code, 'DM_NAME_TAKEN')
  // A name that LVM has already, for something else.
  createThick('vg-a', 'taken', 4)
  const taken = await failure(volumes.createEraSnapshot({ volume: 'lv', name: 'taken', deadlineMs: 0 }))
  t.is(taken.code, 'DM_LVM_FAILED')
  t.true(existsSync('/dev/vg-a/taken'), 'nobody else’s is removed')
  t.false(await suspended('lv'))
  t.is((await volumes.listEra({ volume: 'lv' })).volumes[0]?.underWay, '')

  // Names that LVM keeps for itself: nothing is suspended for them.
  const { usage } = (await volumes.listEra({ volume: 'lv' })).volumes[0] ?? {}
  for (const name of ['snapshot-1', 'pvmove', 'x_tmeta', 'x_cvol', 'x_imeta']) {
    t.throws(() => lvm('lvcreate', '--size', '4m', '--name', name, 'vg-a'), { message: /reserved/ }, name)
    const reserved = await failure(volumes.createEraSnapshot({ volume: 'lv', name, deadlineMs: 0 }))
    t.is(reserved.code, 'DM_ARGUMENT_INVALID', name)
  }
  t.is((await volumes.listEra({ volume: 'lv' })).volumes[0]?.usage?.currentEra, usage?.currentEra)

  await volumes.deleteSnapshot('lv', 's2')
  t.false(existsSync('/dev/vg-a/s2'))
  t.deepEqual(
    (await volumes.listEraSnapshots({ volume: 'lv' })).snapshots.map(({ name }) => name),
    ['s1', 's3']
  )
  t.is((await failure(volumes.deleteSnapshot('lv', 's2'))).code, 'DM_NO_SUCH_DEVICE')
  await volumes.deleteSnapshot('lv', 's1')
  // After a restart of the machine no volume is active, and LVM has none of ours to leave alone.
  await volumes.deactivateEra({ volume: 'lv', atShutdown: false })
  await catalog.eraVolumes.begin({ kind: 'snapshot', volume: 'lv', snapshot: 'cut', token: 'short' })
  lvm('lvcreate', '--snapshot', '--size', '8m', '--addtag', 'deltamapper_short', '--name', 'cut', 'vg-a/data-1')
  await volumes.deleteSnapshot('lv', 's3')
  for (const name of ['s3', 'cut']) t.false(existsSync(`/dev/vg-a/${name}`), name)
  t.is((await volumes.listEra({ volume: 'lv' })).volumes[0]?.underWay, '')
  await volumes.detachEra({ volume: 'lv' })
  lvm('vgremove', '--force', 'vg-a')
})

test.serial('a command takes the snapshot; one that fails or hangs leaves nothing suspended', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const folder = mkdtempSync(join(tmpdir(), 'command-'))
  const script = join(folder, 'snap')
  const says = (text: string) => {
    writeFileSync(script, `#!/bin/bash\n${text}\n`)
    chmodSync(script, 0o755)
  }
  const catalog = await labCatalog(t)
  const recorder = boundariesOnly(catalog)
  const commands = { cmd: { take: [script, 'take'], remove: [script, 'remove'] } }
  await using driver = await startDriver(catalog, deviceMapper, { recorder, commands })
  const { volumes } = driver
  await volumes.attachEra(request('cmd', data.path, metadata.path))
  says(
    `echo "$@" >>${folder}/log; [ "$1" = remove ] || [ "$(cat /sys/dev/block/$(dmsetup info -c --noheadings -o major,minor --separator : cmd)/dm/suspended)" = 1 ]`
  )
  const snapshot = await volumes.createEraSnapshot({ volume: 'cmd', name: 'a', deadlineMs: 0 })
  t.is(snapshot.boundaryEra, 2)
  t.is(readFileSync(`${folder}/log`, 'utf8'), `take cmd a ${data.path}\n`)
  says(`echo "$@" >>${folder}/log; [ "$1" = remove ] || { echo no room >&2; exit 3; }`)
  const failed = await failure(volumes.createEraSnapshot({ volume: 'cmd', name: 'b', deadlineMs: 0 }))
  t.is(failed.code, 'DM_TOOL_FAILED')
  t.regex(failed.message, /no room/)
  t.false(await suspended('cmd'))
  t.regex(readFileSync(`${folder}/log`, 'utf8'), new RegExp(`remove cmd b ${data.path}\n$`))
  says(`[ "$1" = remove ] || sleep 60`)
  const slow = await failure(volumes.createEraSnapshot({ volume: 'cmd', name: 'c', deadlineMs: 1500 }))
  t.is(slow.code, 'DM_TOOL_FAILED')
  t.false(await suspended('cmd'))
  t.deepEqual(
    recorder.taken.map(({ name }) => name),
    ['a']
  )
  await volumes.deleteSnapshot('cmd', 'a')

  const none = loopDisk(64)
  await volumes.attachEra(request('none', none.path, loopDisk(4).path))
  const unknown = await failure(volumes.createEraSnapshot({ volume: 'none', name: 'a', deadlineMs: 0 }))
  t.is(unknown.code, 'DM_CONFIG_INVALID')
  t.regex(unknown.remedy, /era\.snapshotCommands\.none/)
  for (const volume of ['cmd', 'none']) await volumes.detachEra({ volume })
})

test.serial('an agent that stops waits for no command: the volume is resumed, and the snapshot given up', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  const recorder = boundariesOnly(catalog)
  const commands = { stopped: { take: ['sh', '-c', 'sleep 600'], remove: ['true'] } }
  const driver = await startDriver(catalog, deviceMapper, { recorder, commands })
  await driver.volumes.attachEra(request('stopped', data.path, metadata.path))
  const taking = failure(driver.volumes.createEraSnapshot({ volume: 'stopped', name: 'a', deadlineMs: 600_000 }))
  await until(
    () => suspended('stopped'),
    (is) => is === true
  )
  const closing = driver.volumes.close()
  t.is((await taking).code, 'DM_SHUTTING_DOWN')
  await closing
  t.false(await suspended('stopped'))
  t.deepEqual((await catalog.eraVolumes.view()).intents, [])
  await using next = await startDriver(catalog, deviceMapper, { recorder })
  await next.volumes.detachEra({ volume: 'stopped' })
})

test.serial('a driver takes the snapshot itself, and has until its deadline', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  const recorder = boundariesOnly(catalog)
  await using driver = await startDriver(catalog, deviceMapper, { recorder })
  const { volumes } = driver
  await volumes.attachEra(request('csi', data.path, metadata.path))
  const begun = await volumes.beginSnapshot({ volume: 'csi', name: 'a', deadlineMs: 0 })
  t.is(begun.boundaryEra, 2)
  t.true(await suspended('csi'))
  const [shown] = (await volumes.listEra({ volume: 'csi' })).volumes
  t.like(shown, { suspended: true, underWay: 'snapshot', problem: '' })
  for (const reference of ['x'.repeat(1001), '\u0001']) {
    const refused = await failure(volumes.endSnapshot({ token: begun.token, reference, abandon: false }))
    t.is(refused.code, 'DM_ARGUMENT_INVALID')
    t.true(await suspended('csi'), 'it can be said better')
  }
  const { snapshot } = await volumes.endSnapshot({ token: begun.token, reference: 'snap-17', abandon: false })
  t.like(snapshot, { volume: 'csi', name: 'a', lower: 'snap-17', boundaryEra: 2 })
  t.false(await suspended('csi'))
  t.is(
    (await failure(volumes.endSnapshot({ token: begun.token, reference: '', abandon: false }))).code,
    'DM_SNAPSHOT_TOO_SLOW'
  )

  const long = `${'"'.repeat(500)}${'\u7d30'.repeat(500)}`
  const verbose = await volumes.beginSnapshot({ volume: 'csi', name: 'long', deadlineMs: 0 })
  const kept = await volumes.endSnapshot({ token: verbose.token, reference: long, abandon: false })
  t.is(kept.snapshot?.lower, long)
  const given = await volumes.beginSnapshot({ volume: 'csi', name: 'b', deadlineMs: 0 })
  t.deepEqual(await volumes.endSnapshot({ token: given.token, reference: '', abandon: true }), {})
  t.false(await suspended('csi'))

  const late = await volumes.beginSnapshot({ volume: 'csi', name: 'c', deadlineMs: 1000 })
  await until(
    () => suspended('csi'),
    (is) => is === false
  )
  t.is(
    (await failure(volumes.endSnapshot({ token: late.token, reference: 'x', abandon: false }))).code,
    'DM_SNAPSHOT_TOO_SLOW'
  )

  // Resumed by somebody else, and suspended again.
  const meddled = await volumes.beginSnapshot({ volume: 'csi', name: 'd', deadlineMs: 0 })
  run('dmsetup', ['resume', 'csi'])
  run('dmsetup', ['suspend', 'csi'])
  const error = await failure(volumes.endSnapshot({ token: meddled.token, reference: 'x', abandon: false }))
  t.is(error.code, 'DM_SNAPSHOT_TOO_SLOW')
  t.false(await suspended('csi'))
  t.deepEqual(
    recorder.taken.map(({ name }) => name),
    ['a', 'long']
  )
  t.is(
    (await failure(volumes.beginSnapshot({ volume: 'csi', name: 'e', deadlineMs: 600_001 }))).code,
    'DM_ARGUMENT_INVALID'
  )
  await volumes.detachEra({ volume: 'csi' })
})

test.serial('what the agent itself needs is not suspended', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: boundariesOnly(catalog) })
  const { volumes } = driver
  await volumes.attachEra(request('own', data.path, metadata.path))
  const refused = async (words: RegExp) => {
    const error = await failure(volumes.beginSnapshot({ volume: 'own', name: 'a', deadlineMs: 0 }))
    t.is(error.code, 'DM_DEVICE_BUSY')
    t.regex(error.message, words)
  }
  run('mkswap', ['/dev/mapper/own'])
  run('swapon', ['/dev/mapper/own'])
  await refused(/^swap \(\/dev\/(mapper\/own|dm-\d+)\) is on own/)
  run('swapoff', ['/dev/mapper/own'])
  // Through another device.
  const above = createDevice('above', '0 65536 linear /dev/mapper/own 0')
  run('mkfs.ext4', ['-q', above])
  mkdirSync('/run/catalog-there')
  run('mount', [above, '/run/catalog-there'])
  const other = await labCatalog(t, '/run/catalog-there')
  await other.eraVolumes.begin({ kind: 'attach', volume: (await catalog.eraVolumes.view()).volumes[0] })
  await other.eraVolumes.complete('own')
  await using second = await startDriver(other, deviceMapper, { recorder: boundariesOnly(other) })
  const error = await failure(second.volumes.beginSnapshot({ volume: 'own', name: 'a', deadlineMs: 0 }))
  t.is(error.code, 'DM_DEVICE_BUSY')
  t.regex(error.message, /^the catalog \(\/run\/catalog-there\) is on own/)
  // In a file system that is in a file there, and in one that is laid over a folder there.
  run('truncate', ['--size', '8M', '/run/catalog-there/file'])
  run('mkfs.ext4', ['-q', '/run/catalog-there/file'])
  for (const folder of ['/run/in-a-file', '/run/laid-over', '/run/catalog-there/up', '/run/catalog-there/work'])
    mkdirSync(folder)
  run('mount', ['-o', 'loop', '/run/catalog-there/file', '/run/in-a-file'])
  const layers = 'lowerdir=/etc,upperdir=/run/catalog-there/up,workdir=/run/catalog-there/work'
  run('mount', ['-t', 'overlay', 'overlay', '-o', layers, '/run/laid-over'])
  for (const path of ['/run/in-a-file', '/run/laid-over']) {
    const tracked = decodeDeviceNumber(statSync('/dev/mapper/own').rdev)
    const refusal = await failure(refuseSelfHosting(tracked, 'own', [{ path, what: 'the catalog' }]))
    t.is(refusal.code, 'DM_DEVICE_BUSY', path)
    run('umount', [path])
  }
  await other.close()
  run('umount', ['/run/catalog-there'])
  removeDevice('above')
  await volumes.detachEra({ volume: 'own' })
})

test.serial('whoever asked for a suspension dies: the watchdog resumes at once', async (t) => {
  const [data, metadata] = [loopDisk(64), loopDisk(4)]
  const catalog = await labCatalog(t)
  await using driver = await startDriver(catalog, deviceMapper, { recorder: boundariesOnly(catalog) })
  const { volumes } = driver
  await volumes.attachEra(request('dog', data.path, metadata.path))
  const volume = await catalog.eraVolumes.find('dog')
  const id = volume?.id.replace('era:', '') ?? ''
  const start = { device: { uuid: `DELTAMAPPER-era-${id}` }, guard: { uuid: `DELTAMAPPER-eraguard-${id}` } }
  const script = join(mkdtempSync(join(tmpdir(), 'parent-')), 'parent.ts')
  writeFileSync(
    script,
    `import { Watchdog } from '${join(import.meta.dirname, '../../src/agent/era/boundary/watchdog.ts')}'
     const watchdog = await Watchdog.start(${JSON.stringify({ ...start, deadlineMs: 60_000 })})
     await watchdog.suspend()
     process.stdout.write('suspended')
     setInterval(() => undefined, 1000)`
  )
  const parent: ChildProcess = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => parent.kill('SIGKILL'))
  await once(parent.stdout!, 'data')
  t.true(await suspended('dog'))
  // What is written meanwhile waits, and is written.
  const file = openSync('/dev/mapper/dog', constants.O_WRONLY)
  closeSync(file)
  parent.kill('SIGKILL')
  await until(
    () => suspended('dog'),
    (is) => is === false
  )

  const watchdog = await Watchdog.start({ ...start, deadlineMs: 700 })
  await watchdog.suspend()
  await until(
    () => suspended('dog'),
    (is) => is === false
  )
  t.false((await watchdog.resume()).held, 'the deadline has passed')
  await watchdog.end()
  await sleep(0)
  await volumes.detachEra({ volume: 'dog' })
})

/**
 * Keeps four writes under way to a few blocks, others every now and then, so that blocks that are already marked are written to while a
 * snapshot is taken and then no more.
 */
const writeInFlight = `
const { open } = require('node:fs/promises')
const { constants } = require('node:fs')
const blocks = Number(process.argv[2])
let state = Number(process.argv[3])
const random = (below) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 2 ** 32) * below)
}
let hot = []
const move = () => (hot = Array.from({ length: 6 }, () => random(blocks)))
const lane = async (file, lane) => {
  const buffer = Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer, 0, 4096)
  for (let i = 1; ; i++) {
    buffer.writeUInt32LE(i, 0)
    buffer.writeUInt32LE(lane, 4)
    await file.write(buffer, 0, 4096, hot[random(hot.length)] * 65536 + lane * 4096)
  }
}
;(async () => {
  const file = await open(process.argv[1], constants.O_WRONLY | constants.O_DIRECT)
  move()
  setInterval(move, 400)
  process.stdout.write('begun')
  await Promise.all([0, 1, 2, 3].map((each) => lane(file, each)))
})()`

const inFlight = labRun(3)

test.serial(`no write in flight is missed (${inFlight.again})`, async (t) => {
  t.timeout(900_000)
  run('/run/modprobe', ['dm-delay'])
  const { random, count, again } = inFlight
  const sizeBytes = 16 * 2 ** 20
  const [data, metadata] = [loopDisk(16), loopDisk(4)]
  // Writes take a while below, and only there.
  const slow = createDevice('slow', `0 ${sizeBytes / 512} delay ${data.path} 0 0 ${data.path} 0 60`)
  const folder = mkdtempSync(join(tmpdir(), 'flight-'))
  const script = join(folder, 'copy')
  writeFileSync(script, `#!/bin/bash\n[ "$1" = remove ] || dd if=$4 of=${folder}/$3 bs=1M iflag=direct status=none\n`)
  chmodSync(script, 0o755)
  const catalog = await labCatalog(t)
  const recorder = boundariesOnly(catalog)
  const commands = { flight: { take: [script, 'take'], remove: [script, 'remove'] } }
  await using driver = await startDriver(catalog, deviceMapper, { recorder, commands })
  const { volumes } = driver
  await volumes.attachEra(request('flight', slow, metadata.path))
  const seed = String(random.integer(1, 2 ** 30))
  const words = ['-e', writeInFlight, '/dev/mapper/flight', String(sizeBytes / blockBytes), seed]
  const writer = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => writer.kill('SIGKILL'))
  await once(writer.stdout, 'data')
  const copy = (name: string) => readFileSync(join(folder, name))
  let before = await volumes.createEraSnapshot({ volume: 'flight', name: 's0', deadlineMs: 0 })
  let changed = 0
  for (let i = 1; i <= count; i++) {
    await sleep(random.integer(0, 900))
    const snapshot = await volumes.createEraSnapshot({ volume: 'flight', name: `s${i}`, deadlineMs: 0 })
    const written = await writtenSince(catalog, 'flight', metadata.path, before.boundaryEra)
    const [was, is] = [copy(before.name), copy(snapshot.name)]
    for (let block = 0; block < sizeBytes / blockBytes; block++) {
      const [from, to] = [block * blockBytes, (block + 1) * blockBytes]
      if (was.subarray(from, to).equals(is.subarray(from, to))) continue
      changed++
      t.true(
        written.some(([offset, size]) => offset <= from && offset + size >= to),
        `block ${block} between ${before.name} and ${snapshot.name}; ${again}`
      )
    }
    t.true(written.reduce((sum, [, size]) => sum + size, 0) < sizeBytes, 'not everything, or this shows nothing')
    // The lab's memory has room for a few.
    rmSync(join(folder, before.name))
    before = snapshot
  }
  t.true(changed > count)
  writer.kill('SIGKILL')
  await once(writer, 'exit')
  await volumes.detachEra({ volume: 'flight' })
  removeDevice('slow')
  t.log({ snapshots: count, changed })
})
