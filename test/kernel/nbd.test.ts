/**
 * Live thin snapshots over NBD, as stock tools back them up: LVM under ext4, agent and block device, exact increments with no read too many; and
 * everything that can become of a snapshot while it is copied. Runs inside the kernel lab: node test/lab/run.ts test/kernel/nbd.test.ts
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import type { NbdOptions } from '../../src/cli/answers/nbd-options.ts'
import { openSource } from '../../src/cli/answers/nbd-sources.ts'
import { openDevice, placeOf } from '../../src/cli/answers/snapshot-device.ts'
import { type ErrorCode, DeltamapperError } from '../../src/errors.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { parseHandle } from '../../src/handle.ts'
import { everything } from '../../src/nbd/watched-device.ts'
import { clientTest, type RunTool, serveNbd, serveSource, type TestServer } from '../support/nbd-clients.ts'
import { unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { run } from './dmsetup.ts'
import { loopDisk } from './era-lab.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createPool, createThick, createThin, lvm, prepareLvm, shrink, writeBlocks } from './lvm-setup.ts'
import { goBytes, RawClient, requestBytes } from '../nbd/raw-client.ts'

const group = 'vg'
/** A recorded pool of the agent's. */
const elsewhere = 'elsewhere'
const { random, count: increments } = labRun(2)
const folder = mkdtempSync(join(tmpdir(), 'nbd-'))
const deviceMapper = new DeviceMapper()
let files = 0
const newFile = (name: string) => join(folder, `${files++}-${name}`)

let agent: LiveAgent
/** A volume with 40 blocks, of which tests that change nothing in it take snapshots. */
let small: string

test.before(async () => {
  prepareLvm()
  createGroup(group, '/dev/ubda')
  for (const [pool, chunk] of [
    ['pool64', '64k'],
    ['pool192', '192k']
  ]) {
    const words = ['--type', 'thin-pool', '--size', '384m', '--chunksize', chunk, '--name', pool]
    lvm('lvcreate', ...words, group)
  }
  small = createThin(group, 'pool64', 'small', 64)
  writeBlocks(small, 0, 40, 's')
  agent = await LiveAgent.start({ config: { recorded: { [elsewhere]: await unpackRecordedPool() } } })
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
  await deviceMapper.close()
  rmSync(folder, { recursive: true })
})

/** An active snapshot; read-only unless `writable`. */
function snapshot(origin: string, name: string, { writable = false, active = true } = {}): string {
  const words = ['--setactivationskip', active ? 'n' : 'y', '--permission', writable ? 'rw' : 'r']
  lvm('lvcreate', '--snapshot', ...words, '--name', name, `${group}/${origin}`)
  return `/dev/${group}/${name}`
}

/** The handle of a snapshot of the group, or of the source that is named with it. */
const handleOf = (name: string) => (name.includes('/') ? name : `${group}/${name}`)

const serve = (name: string, bases: readonly string[] = [], more: NbdOptions = {}): Promise<TestServer> =>
  serveNbd(handleOf(name), { endpoint: agent.address, base: bases.map(handleOf), ...more })

/** Serves a snapshot for what becomes of its device: nobody asks the agent, which takes seconds here. */
async function watch(name: string, bytesPerSecond?: number): Promise<TestServer> {
  const target = handleOf(name)
  const place = await placeOf(parseHandle(target), undefined)
  const device = await openDevice(place, deviceMapper, { bytesPerSecond, untouched: false })
  const { data, sizeBytes, blockBytes } = device
  return serveSource({
    ...{ target, data, sizeBytes, blockBytes, bases: [] },
    allocated: async () => everything(sizeBytes),
    look: () => device.look(),
    close: () => device.close()
  })
}

const increment = (base: string, name: string) => `${handleOf(base)}..${handleOf(name)}`

const kernelTest = (title: string, body: Parameters<typeof clientTest>[1]) => clientTest(title, body, ['bookworm'])

/** A device's folder in sysfs. */
function sysfs(device: string): string {
  const { rdev } = statSync(device)
  return `/sys/dev/block/${rdev >> 8}:${rdev & 0xff}`
}

/** Bytes that were read of a device since it was made. */
function bytesRead(device: string): number {
  return (
    Number(
      readFileSync(`${sysfs(device)}/stat`, 'utf8')
        .trim()
        .split(/\s+/)[2]
    ) * 512
  )
}

async function bitmapBytes(tool: RunTool, uri: string, base: string): Promise<number> {
  const { status, stdout, stderr } = await tool('nbdinfo', [`--map=qemu:dirty-bitmap:${handleOf(base)}`, '--json', uri])
  if (status !== 0) throw new Error(`nbdinfo: ${stderr}`)
  const map = JSON.parse(stdout) as { length: number; type: number }[]
  return map.reduce((sum, { length, type }) => sum + type * length, 0)
}

/** Backs a snapshot up, onto a backup of the base where there is one, and holds it against the device. */
async function backUp(
  tool: RunTool,
  name: string,
  base: { name: string; layer: string } | undefined,
  { counted = false, activate = false } = {}
): Promise<{ layer: string; read: number; changed: number; identical: boolean; stderr: string }> {
  const device = `/dev/${group}/${name.split('/').at(-1)}`
  const server = await serve(name, base ? [base.name] : [], { activate })
  try {
    const changed = base && counted ? await bitmapBytes(tool, server.uri(), base.name) : 0
    const layer = newFile('layer.qcow2')
    const onto = base ? ['-B', base.layer, '-F', 'qcow2'] : []
    const before = bytesRead(device)
    const view = server.uri(base ? increment(base.name, name) : '')
    const { status, stderr } = await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...onto, view, layer])
    const read = bytesRead(device) - before
    const compared = await tool('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', device, layer])
    return { layer, read, changed, identical: status === 0 && compared.status === 0, stderr: stderr + compared.stdout }
  } finally {
    await server.close()
  }
}

kernelTest('a file system in use: a full backup and increments, each read once', async (t, tool) => {
  t.timeout(30 * 60_000)
  const volume = createThin(group, 'pool64', 'data', 64)
  run('mkfs.ext4', ['-q', volume])
  const mountPoint = mkdtempSync(join(tmpdir(), 'mounted-'))
  run('mount', ['-o', 'discard', volume, mountPoint])
  const file = () => join(mountPoint, `file-${random.integer(0, 15)}`)
  const change = () => {
    for (let i = 0; i < 6; i++) {
      const [path, bytes] = [file(), random.integer(1, 2_000_000)]
      if (random.chance(0.25)) rmSync(path, { force: true })
      else if (random.chance(0.3) && existsSync(path)) {
        const at = random.integer(0, statSync(path).size)
        run('dd', [
          'if=/dev/urandom',
          `of=${path}`,
          'bs=4096',
          'count=2',
          `seek=${at >> 12}`,
          'conv=notrunc',
          'status=none'
        ])
      } else run('bash', ['-c', `head -c ${bytes} /dev/urandom > ${path}`])
    }
    if (random.chance(0.4)) run('fstrim', [mountPoint])
  }
  let base: { name: string; layer: string } | undefined
  let gone = 0
  for (let i = 0; i <= increments; i++) {
    change()
    const name = `data-${i}`
    snapshot('data', name, { writable: i % 2 === 1 })
    // The agent has kept a record of the base, as of everything read-only that it has answered about.
    const isGone = base !== undefined && i % 2 === 1
    if (isGone) lvm('lvremove', `${group}/${base!.name}`)
    const { layer, read, changed, identical, stderr } = await backUp(tool, name, base, { counted: true })
    t.true(identical, `${name}: ${stderr}`)
    if (base) {
      t.true(changed > 0)
      t.true(read <= changed * 1.01, `${name}: ${read} bytes were read, ${changed} changed`)
    }
    base = { name, layer }
    gone += Number(isGone)
  }
  t.true(gone > 0)
  run('umount', [mountPoint])
})

kernelTest(
  'chunks of 192 KiB, an odd size, shrunk and grown again, trimmed, and a qcow2 header to begin with',
  async (t, tool) => {
    const volume = createThin(group, 'pool192', 'odd', 61)
    writeBlocks(volume, 0, 160, 'a')
    // On both sides of where it is cut.
    writeBlocks(volume, 470, 60, 'a')
    // A header of qcow2 with a file of the host as its backing file: whoever probes for formats would follow it.
    const secret = newFile('secret')
    run('bash', ['-c', `head -c 65536 /dev/zero | tr '\\0' s > ${secret}`])
    const trap = newFile('trap.qcow2')
    t.is((await tool('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', secret, '-F', 'raw', trap])).status, 0)
    run('dd', [`if=${trap}`, `of=${volume}`, 'oflag=direct', 'bs=64k', 'count=1', 'conv=sync', 'status=none'])
    const names = ['odd-0']
    snapshot('odd', 'odd-0')
    const next = (change: () => void) => {
      change()
      const name = `odd-${names.length}`
      snapshot('odd', name, { writable: true })
      names.push(name)
    }
    next(() => {
      writeBlocks(volume, 100, 7, 'b')
      run('blkdiscard', ['--offset', String(12 * 192 * 1024), '--length', String(30 * 192 * 1024), volume])
    })
    next(() => shrink(`${group}/odd`, '31m'))
    next(() => {
      lvm('lvextend', '--size', '67m', `${group}/odd`)
      writeBlocks(volume, 600, 3, 'c')
    })
    let base: { name: string; layer: string } | undefined
    for (const name of names) {
      const { layer, identical, stderr } = await backUp(tool, name, base)
      t.true(identical, `${name}: ${stderr}`)
      base = { name, layer }
    }
    const header = newFile('header')
    await tool('qemu-img', ['convert', '-O', 'raw', base!.layer, header])
    t.is(readFileSync(header).subarray(0, 4).toString('latin1'), 'QFI\xfb')
  }
)

kernelTest('an external origin shows where a snapshot maps nothing: all of that is read', async (t, tool) => {
  lvm('lvcreate', '--size', '12m', '--name', 'origin', group)
  run('bash', ['-c', `head -c 12M /dev/urandom > /dev/${group}/origin`])
  lvm('lvchange', '-an', `${group}/origin`)
  lvm('lvchange', '--permission', 'r', `${group}/origin`)
  lvm('lvcreate', '--snapshot', '--thinpool', `${group}/pool64`, '--name', 'over', `${group}/origin`)
  lvm('lvchange', '-ay', '-K', `${group}/over`)
  snapshot('over', 'over-0')
  writeBlocks(`/dev/${group}/over`, 3, 2, 'x')
  snapshot('over', 'over-1')
  const full = await backUp(tool, 'over-0', undefined)
  t.true(full.identical, full.stderr)
  const more = await backUp(tool, 'over-1', { name: 'over-0', layer: full.layer }, { counted: true })
  t.true(more.identical, more.stderr)
  t.is(more.changed, 2 * 65536)
})

kernelTest(
  'classic snapshots: a full backup and an increment, and a store that overflows fails the copy',
  async (t, tool) => {
    lvm('lvcreate', '--size', '6m', '--name', 'thick', group)
    const volume = `/dev/${group}/thick`
    run('bash', ['-c', `head -c 6M /dev/urandom > ${volume}`])
    const take = (name: string, size: string, permission = 'r') =>
      lvm('lvcreate', '--snapshot', '--permission', permission, '--size', size, '--name', name, `${group}/thick`)
    take('thick-0', '8m')
    const full = await backUp(tool, 'thick-0', undefined)
    t.true(full.identical, full.stderr)
    writeBlocks(volume, 7, 3, 'k')
    take('thick-1', '1m')
    const more = await backUp(tool, 'thick-1', { name: 'thick-0', layer: full.layer }, { counted: true })
    t.true(more.identical, more.stderr)
    t.is(more.changed, 3 * 65536)
    t.true(more.read <= more.changed * 1.01, `${more.read} bytes were read, ${more.changed} changed`)

    // A write that is under way: what it has written can be read, and the kernel has not counted it.
    take('thick-2', '4m', 'rw')
    const own = await serve('thick-2')
    const client = await entered(own)
    t.true(await reads(client!))
    const store = `${mapped('thick-2')}-cow`
    run('dmsetup', ['suspend', store])
    const words = ['if=/dev/zero', `of=/dev/${group}/thick-2`, 'bs=1M', 'count=1', 'oflag=direct', 'status=none']
    const writing = once(spawn('dd', words), 'exit')
    while (/ 0$/.test(readFileSync(`${sysfs(`/dev/${group}/thick-2`)}/inflight`, 'utf8').trim())) await sleep(10)
    const answer = reads(client!, 60)
    await sleep(300)
    run('dmsetup', ['resume', store])
    t.deepEqual(await writing, [0, null])
    t.false(await answer)
    t.is(own.failures[0]?.code, 'DM_SNAPSHOT_CHANGED')
    await client?.close()
    await own.close()
    // Newer kernels do not count then, and nothing would tell of writes; older ones count all the same.
    writeFileSync(`${sysfs(`/dev/${group}/thick-2`)}/queue/iostats`, '0')
    const uncounted = await serve('thick-2').catch((error: unknown) => error as DeltamapperError)
    if (uncounted instanceof DeltamapperError) t.is(uncounted.code, 'DM_NOT_TRACKED')
    else {
      writeBlocks(`/dev/${group}/thick-2`, 30, 1, 'u')
      t.false(await isServed(uncounted))
      await uncounted.close()
    }

    const server = await serve('thick-1', ['thick-0'])
    t.true(await isServed(server))
    // More than thick-1 has room for.
    writeBlocks(volume, 20, 40, 'o')
    t.false(await isServed(server))
    const codes = server.failures.map(({ code }) => code)
    t.true(['DM_COW_INVALID', 'DM_COW_OVERFLOWED', 'DM_READ_FAILED'].includes(codes[0]), codes.join(' '))
    await server.close()
  }
)

kernelTest(
  'snapshots of a tracked volume: what LVM took below is served, as long as nobody has written to it',
  async (t, tool) => {
    run('/run/modprobe', ['dm-era'])
    createThin(group, 'pool64', 'below', 12)
    createThick(group, 'beside', 12)
    for (const notes of ['notes', 'more-notes']) {
      createThick(group, notes, 2)
      run('dd', ['if=/dev/zero', `of=/dev/${group}/${notes}`, 'bs=4096', 'count=1', 'conv=fsync', 'status=none'])
    }
    const admin = connectAdmin(agent.address)
    const attach = async (name: string, data: string, notes: string, snapshotSize: string) => {
      const [dataDevice, metadataDevice] = [data, notes].map((each) => `/dev/${group}/${each}`)
      const devices = { name, dataDevice, metadataDevice, blockBytes: 65536 }
      await admin.attachEra({ ...devices, snapshotSize, allowLossyKernel: false })
      return `/dev/mapper/${name}`
    }
    const take = (volume: string, name: string) => admin.createEraSnapshot({ volume, name, deadlineMs: 0 })

    const device = await attach('srv', 'below', 'notes', '')
    writeBlocks(device, 0, 60, 'e')
    await take('srv', 'srv-0')
    writeBlocks(device, 10, 2, 'f')
    const taken = await take('srv', 'srv-1')
    writeBlocks(device, 10, 9, 'g')
    t.is((await refused(serve('srv/srv-1'))).code, 'DM_NO_SUCH_DEVICE', 'it is not active')
    const full = await backUp(tool, 'srv/srv-0', undefined, { activate: true })
    t.true(full.identical, full.stderr)
    const base = { name: 'srv/srv-0', layer: full.layer }
    const more = await backUp(tool, 'srv/srv-1', base, { activate: true, counted: true })
    t.true(more.identical, more.stderr)
    t.deepEqual([more.changed, more.read], [2 * 65536, 2 * 65536])
    t.false(existsSync(`/dev/${group}/srv-1`))

    // The record is of one snapshot, and another has its name below.
    lvm('lvrename', group, 'srv-1', 'srv-2')
    snapshot('small', 'srv-1')
    t.is((await refused(serve('srv/srv-1'))).remedy.includes(`lvchange -ay -K ${group}/srv-2`), true)
    const server = await serve('srv/srv-1', [], { activate: true })
    t.true(await isServed(server))
    writeBlocks(`/dev/${group}/srv-2`, 3, 1, 'w')
    t.false(await isServed(server))
    t.is(server.failures[0]?.code, 'DM_SNAPSHOT_CHANGED')
    await server.close()
    lvm('lvchange', '--permission', 'r', `${group}/srv-2`)
    t.is((await refused(serve('srv/srv-1', [], { activate: true }))).code, 'DM_VOLUME_IN_USE')
    t.true(taken.lowerTag.length > 0)
    lvm('lvchange', '--deltag', taken.lowerTag, `${group}/srv-2`)
    t.is((await refused(serve('srv/srv-1', [], { activate: true }))).code, 'DM_NO_SUCH_DEVICE')

    // Over a classic snapshot the kernel's count of writes is all that there is.
    const thick = await attach('thick-srv', 'beside', 'more-notes', '8m')
    writeBlocks(thick, 0, 5, 'h')
    await take('thick-srv', 'thick-srv-0')
    writeBlocks(thick, 3, 5, 'i')
    const classic = await backUp(tool, 'thick-srv/thick-srv-0', undefined)
    t.true(classic.identical, classic.stderr)
    writeBlocks(`/dev/${group}/thick-srv-0`, 1, 1, 'j')
    t.is((await refused(serve('thick-srv/thick-srv-0'))).code, 'DM_VOLUME_IN_USE')

    // Whoever else has taken one knows what it is, and nobody else.
    const { token } = await admin.beginSnapshot({ volume: 'thick-srv', name: 'driven', deadlineMs: 0 })
    await admin.endSnapshot({ token, reference: 'somewhere', abandon: false })
    t.is((await refused(serve('thick-srv/driven'))).code, 'DM_NOT_TRACKED')
    t.is((await refused(serve('thick-srv/never'))).code, 'DM_SNAPSHOT_NOT_FOUND')
    admin.close()
    for (const each of ['srv', 'thick-srv']) run('dmsetup', ['remove', each])
  }
)

kernelTest("a snapshot in a pool of the agent's own", async (t, tool) => {
  const admin = connectAdmin(agent.address)
  const [dataDevice, metadataDevice] = [loopDisk(16).path, loopDisk(4).path]
  await admin.createPool({ name: 'own-pool', dataDevice, metadataDevice, blockBytes: 65536, whenFull: 'error' })
  await admin.createVolume({ pool: 'own-pool', name: 'own-volume', inactive: false, sizeBytes: 8 * 2 ** 20 })
  writeBlocks('/dev/mapper/own--pool-own--volume', 5, 20, 'v')
  await admin.createSnapshot({ pool: 'own-pool', origin: 'own-volume', name: 'own-0' })
  const error = await refused(serve('own-pool/own-0'))
  t.is(error.code, 'DM_NO_SUCH_DEVICE')
  t.true(error.remedy.includes('deltamapper snapshot activate own-pool/own-0'))
  await admin.activateVolume({ pool: 'own-pool', name: 'own-0', writable: false })
  const server = await serve('own-pool/own-0')
  const copy = newFile('copy')
  t.is((await tool('nbdcopy', [server.uri(), copy])).status, 0)
  t.true(readFileSync(copy).equals(readFileSync('/dev/mapper/own--pool-own--0')))
  await server.close()
  admin.close()
})

kernelTest('a base that is gone without a record is refused', async (t, tool) => {
  const name = 'unserved-0'
  snapshot('small', name)
  snapshot('small', 'unserved-1')
  lvm('lvremove', `${group}/${name}`)
  const server = await serve('unserved-1', [name])
  t.not((await tool('nbdinfo', [`--map=qemu:dirty-bitmap:${group}/${name}`, server.uri()])).status, 0)
  const view = server.uri(increment(name, 'unserved-1'))
  t.not((await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', view, newFile('layer.qcow2')])).status, 0)
  t.is(server.failures[0]?.code, 'DM_SNAPSHOT_NOT_FOUND')
  await server.close()
})

async function refused(work: Promise<TestServer>): Promise<DeltamapperError> {
  const served = await work.then(
    async (server) => {
      await server.close()
      return new Error('it is served')
    },
    (error: unknown) => error
  )
  if (served instanceof DeltamapperError) return served
  throw served
}

kernelTest(
  'an inactive snapshot is refused with the command that activates it, which --activate runs and undoes',
  async (t, tool) => {
    const device = snapshot('small', 'asleep-0', { active: false, writable: true })
    const error = await refused(serve('asleep-0'))
    t.is(error.code, 'DM_NO_SUCH_DEVICE')
    t.true(error.remedy.includes(`lvchange -ay -K ${group}/asleep-0`))
    t.false(existsSync(device))
    const server = await serve('asleep-0', [], { activate: true })
    t.true(existsSync(device))
    const copy = newFile('copy')
    t.is((await tool('nbdcopy', [server.uri(), copy])).status, 0)
    await server.close()
    t.false(existsSync(device))
    t.true(
      readFileSync(copy)
        .subarray(0, 40 * 65536)
        .equals(Buffer.alloc(40 * 65536, 's'))
    )
    rmSync(copy)
  }
)

kernelTest("devices that are not the snapshot's, and volumes in use, are refused", async (t) => {
  snapshot('small', 'used-0')
  const written = snapshot('small', 'used-1', { writable: true })
  writeBlocks(written, 5, 1, 'w')
  const wrong = { device: `/dev/${group}/used-0` }
  const cases: [string, NbdOptions, ErrorCode][] = [
    ['small', {}, 'DM_VOLUME_IN_USE'],
    ['used-1', {}, 'DM_VOLUME_IN_USE'],
    ['used-1', wrong, 'DM_NO_SUCH_DEVICE'],
    ['used-0', { device: '/dev/ubda' }, 'DM_NO_SUCH_DEVICE']
  ]
  for (const [name, options, code] of cases) t.is((await refused(serve(name, [], options))).code, code)
})

kernelTest("a name that is another's to the agent is refused", async (t) => {
  snapshot('small', 'twin')
  const table = run('dmsetup', ['table', mapped('twin')]).trim()
  run('dmsetup', ['create', `${elsewhere}-monday`, '--uuid', `LVM-${'x'.repeat(64)}`, '--readonly', '--table', table])
  const source = await openSource(`${elsewhere}/monday`, { endpoint: agent.address }, () => undefined)
  const asked = source.allocated(0, new AbortController().signal)
  const error = await t.throwsAsync<DeltamapperError>(asked, { instanceOf: DeltamapperError })
  await source.close()
  t.is(error.code, 'DM_NO_SUCH_DEVICE')
  t.regex(error.message, /what the agent calls elsewhere\/monday is not what its device has/)
})

kernelTest('writes of which the tree shows nothing in the end fail the next request', async (t, tool) => {
  const device = snapshot('small', 'back-0', { writable: true })
  const server = await watch('back-0')
  t.true(await isServed(server))
  // A block that was never mapped: mapped, and trimmed again.
  writeBlocks(device, 100, 1, 'x')
  run('blkdiscard', ['--offset', String(100 * 65536), '--length', '65536', device])
  t.not((await tool('nbdinfo', ['--map', server.uri()])).status, 0)
  t.false(await isServed(server))
  await server.close()
})

/** What device-mapper calls a volume. */
const mapped = (name: string) => `${group}-${name.replaceAll('-', '--')}`

/** A client that was let in; undefined where it was not. */
async function entered({ path }: TestServer): Promise<RawClient | undefined> {
  const client = new RawClient(path)
  await client.greet()
  await client.option(8)
  const replies = await client.option(7, goBytes(''))
  if (replies.at(-1)?.type === 1) return client
  await client.close()
  return undefined
}

/** Whether a client may read a block. */
async function reads(client: RawClient, block = 0): Promise<boolean> {
  client.send(requestBytes({ type: 0, offset: BigInt(block * 65536), length: 1 }))
  const [chunk] = await client.chunks()
  return chunk?.type === 1
}

/** Whether a client is let in, and may read the first byte. */
async function isServed(server: TestServer): Promise<boolean> {
  const client = await entered(server)
  const isRead = client !== undefined && (await reads(client))
  await client?.close()
  return isRead
}

/** What becomes of a snapshot while it is copied, and what the server says then. */
const fates: Record<string, { writable: boolean; happens: (name: string, device: string) => Promise<void> | void }> = {
  'written to': { writable: true, happens: (_, device) => writeBlocks(device, 100, 1, 'n') },
  trimmed: {
    writable: true,
    happens: (_, device) => void run('blkdiscard', ['--offset', String(20 * 65536), '--length', '65536', device])
  },
  'written to through another device of the same thin id': {
    writable: true,
    happens: (name) => {
      const table = run('dmsetup', ['table', mapped(name)])
      run('dmsetup', ['create', `other-${name}`, '--table', table.trim()])
      writeBlocks(`/dev/mapper/other-${name}`, 100, 1, 'n')
      run('dmsetup', ['remove', `other-${name}`])
    }
  },
  'made writable': {
    writable: false,
    happens: (name) => void lvm('lvchange', '--permission', 'rw', `${group}/${name}`)
  },
  'renamed, with another under its name': {
    writable: false,
    happens: (name) => {
      lvm('lvrename', group, name, `${name}-new`)
      snapshot('small', name)
    }
  },
  'removed by force': {
    writable: false,
    happens: (name) => void run('bash', ['-c', `dmsetup remove --force ${mapped(name)} || true`])
  },
  resized: { writable: true, happens: (name) => void lvm('lvextend', '--size', '70m', `${group}/${name}`) }
}

for (const [fate, { writable, happens }] of Object.entries(fates)) {
  kernelTest(`a snapshot that is ${fate} in the middle of a copy fails the copy`, async (t, tool) => {
    const name = `fate-${Object.keys(fates).indexOf(fate)}`
    const device = snapshot('small', name, { writable })
    // With the agent once: what looks at a device is the same without.
    const server = name === 'fate-0' ? await serve(name, [], { rate: 512 * 1024 }) : await watch(name, 512 * 1024)
    const copying = tool('nbdcopy', ['--requests=1', '--connections=1', server.uri(), newFile('copy')])
    const before = bytesRead(device)
    while (bytesRead(device) - before < 200_000) await sleep(20)
    await happens(name, device)
    const { status } = await copying
    t.not(status, 0)
    t.true(
      ['DM_SNAPSHOT_CHANGED', 'DM_NOT_TRACKED', 'DM_READ_FAILED', 'DM_NO_SUCH_DEVICE'].includes(
        server.failures[0]?.code
      )
    )
    t.false(await isServed(server))
    await server.close()
  })
}

kernelTest(
  'a pool that is rolled back under a snapshot, which then looks the same, fails the copy',
  async (t, tool) => {
    createPool(group, 'rolled', 16)
    const volume = createThin(group, 'rolled', 'rb', 8)
    writeBlocks(volume, 0, 20, 'r')
    const [pool, metadata] = [`${group}-rolled-tpool`, `/dev/mapper/${group}-rolled_tmeta`]
    const tableOf = (name: string) => run('dmsetup', ['table', name]).trim()
    // An older state of the pool, in which the snapshot's id was another's.
    const id = Number(/\d+$/.exec(tableOf(mapped('rb')))?.[0])
    run('dmsetup', ['suspend', mapped('rb')])
    run('dmsetup', ['message', pool, '0', `create_snap ${id + 1} ${id}`])
    run('dmsetup', ['resume', mapped('rb')])
    run('dmsetup', ['status', pool])
    const saved = newFile('tmeta')
    run('dd', [`if=${metadata}`, `of=${saved}`, 'iflag=direct', 'bs=1M', 'status=none'])
    run('dmsetup', ['message', pool, '0', `delete ${id + 1}`])
    writeBlocks(volume, 3, 5, 'R')
    const device = snapshot('rb', 'rb-0')
    const server = await watch('rb-0')
    const copying = await entered(server)
    t.true(await reads(copying!))
    const [snapshotTable, poolTable] = [tableOf(mapped('rb-0')), tableOf(pool)]
    const uuid = run('dmsetup', ['info', '-c', '--noheadings', '-o', 'uuid', pool]).trim()
    // Nobody can remove what is being served: by force, it gets a table of errors.
    run('bash', ['-c', `dmsetup remove --force ${mapped('rb-0')} || true`])
    run('bash', ['-c', `dmsetup remove ${mapped('rb')} && dmsetup remove ${mapped('rolled')} ; dmsetup remove ${pool}`])
    run('dd', [`if=${saved}`, `of=${metadata}`, 'oflag=direct', 'bs=1M', 'status=none'])
    run('dmsetup', ['create', pool, '--uuid', uuid, '--table', poolTable])
    run('dmsetup', ['reload', mapped('rb-0'), '--table', snapshotTable])
    run('dmsetup', ['resume', mapped('rb-0')])
    t.is(tableOf(mapped('rb-0')), snapshotTable)
    t.is(
      readFileSync(device)
        .subarray(3 * 65536, 3 * 65536 + 1)
        .toString(),
      'r'
    )
    t.false(await reads(copying!, 3))
    t.is(server.failures[0]?.code, 'DM_SNAPSHOT_CHANGED')
    t.false(await isServed(server))
    await copying?.close()
    t.not((await tool('nbdcopy', [server.uri(), newFile('copy')])).status, 0)
    await server.close()
  }
)

kernelTest(
  "what changed is not said once the name of a base is another's, nor when the agent is killed",
  async (t, tool) => {
    const volume = createThin(group, 'pool64', 'orphan', 64)
    snapshot('orphan', 'orphan-0')
    snapshot('orphan', 'orphan-1')
    writeBlocks(volume, 3, 2, 'p')
    snapshot('orphan', 'later')
    snapshot('orphan', 'orphan-2')
    const server = await serve('orphan-2', ['orphan-0', 'orphan-1'])
    const map = (base: string) => tool('nbdinfo', [`--map=qemu:dirty-bitmap:${group}/${base}`, server.uri()])
    t.is((await map('orphan-0')).status, 0)
    lvm('lvrename', group, 'orphan-0', 'earlier')
    // Nothing has changed since this one.
    lvm('lvrename', group, 'later', 'orphan-0')
    t.not((await map('orphan-0')).status, 0)
    t.is(server.failures[0]?.code, 'DM_BASE_CHANGED')
    // No test comes after this one.
    await agent.kill()
    const layer = newFile('layer.qcow2')
    const view = server.uri(increment('orphan-1', 'orphan-2'))
    t.not((await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', view, layer])).status, 0)
    t.not((await map('orphan-1')).status, 0)
    await server.close()
  }
)
