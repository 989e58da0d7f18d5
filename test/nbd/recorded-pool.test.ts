/**
 * Snapshots of the recorded pool, out of its images alone, as stock tools see them: every map is what `delta` says, every copy what the kernel
 * read.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { open, readFile, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { command, complaint, runCommand } from '../cli/run-command.ts'
import { readPoolDescription, type RecordedSnapshot, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Extent } from '../support/expected.ts'
import { clientTest, type RunTool, serveNbd, toolFolder } from '../support/nbd-clients.ts'
import { testFolder } from '../support/test-folder.ts'

const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const metadataPath = join(recorded, 'metadata.img')
const dataPath = join(recorded, 'data.img')
const folder = testFolder(test)
let files = 0
const newFile = (name: string) => join(folder, `${files++}-${name}`)

/** Oldest first: the snapshots of each volume, which can be compared with one another. */
const volumes = Map.groupBy(pool.snapshots, ({ volume }) => volume)
const handle = ({ name }: RecordedSnapshot) => `x/${name}`

/** The snapshots of its volume that were taken before. */
function older(snapshot: RecordedSnapshot): RecordedSnapshot[] {
  const all = volumes.get(snapshot.volume) ?? []
  return all.slice(0, all.indexOf(snapshot))
}

const serveRecorded = (target: RecordedSnapshot, bases: readonly RecordedSnapshot[] = []) =>
  serveNbd(handle(target), { base: bases.map(handle), recorded: { x: recorded } })

async function sha256(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex')
}

interface MapEntry {
  offset: number
  length: number
  type: number
}

/** A context's map as nbdinfo prints it, and what it says of each state. */
async function mapOf(tool: RunTool, context: string, uri: string): Promise<MapEntry[]> {
  const { status, stdout, stderr } = await tool('nbdinfo', [`--map=${context}`, '--json', uri])
  if (status !== 0) throw new Error(`nbdinfo: ${stderr}`)
  return JSON.parse(stdout) as MapEntry[]
}

/** Of a state, merged. */
function extentsOf(map: readonly MapEntry[], type: number): Extent[] {
  const extents: [number, number][] = []
  for (const entry of map.filter((each) => each.type === type)) {
    const last = extents.at(-1)
    if (last && last[0] + last[1] === entry.offset) last[1] += entry.length
    else extents.push([entry.offset, entry.length])
  }
  return extents
}

/** What our library says of a pair, with the sizes on record. */
async function changed(base: RecordedSnapshot, target: RecordedSnapshot): Promise<Extent[]> {
  const metadata = await openPoolMetadata(metadataPath)
  try {
    const pair = { baseId: base.thin_id, targetId: target.thin_id }
    const sizes = { baseSizeBytes: base.size_bytes, sizeBytes: target.size_bytes }
    return await collectExtents(await metadata.delta({ ...pair, ...sizes }))
  } finally {
    await metadata.close()
  }
}

clientTest('the dirty bitmap of every pair is its delta', async (t, tool) => {
  let pairs = 0
  for (const target of pool.snapshots) {
    const bases = older(target)
    if (bases.length === 0) continue
    const server = await serveRecorded(target, bases)
    for (const base of bases) {
      const map = await mapOf(tool, `qemu:dirty-bitmap:${handle(base)}`, server.uri())
      t.deepEqual(extentsOf(map, 1), await changed(base, target), `${base.name} to ${target.name}`)
      t.is(
        map.reduce((sum, { length }) => sum + length, 0),
        target.size_bytes
      )
      pairs++
    }
    t.deepEqual(server.failures, [])
    await server.close()
  }
  t.is(pairs, 28 + 10)
})

test('the delta that the command prints is the same', async (t) => {
  for (const [baseName, targetName] of [
    ['monday', 'second-tuesday'],
    ['tides-shrunk', 'tides-final'],
    ['tides-shrunk', 'tides-grown']
  ]) {
    const [base, target] = [baseName, targetName].map((name) => pool.snapshots.find((each) => each.name === name)!)
    const sizes = ['--size', String(target.size_bytes), '--base-size', String(base.size_bytes)]
    const words = ['delta', String(base.thin_id), String(target.thin_id), '--metadata', metadataPath]
    const { stdout } = await runCommand([...words, ...sizes, '-o', 'json'])
    const printed = JSON.parse(stdout) as { block_metadata: { byte_offset: number; size_bytes: number }[] }
    t.deepEqual(
      printed.block_metadata.map(({ byte_offset, size_bytes }): Extent => [byte_offset, size_bytes]),
      await changed(base, target)
    )
  }
})

clientTest('a full copy of every snapshot is what the kernel read', async (t, tool) => {
  for (const snapshot of pool.snapshots) {
    const server = await serveRecorded(snapshot)
    const copy = newFile('copy')
    const { status, stderr } = await tool('nbdcopy', ['--connections=4', server.uri(handle(snapshot)), copy])
    t.is(status, 0, stderr)
    t.is(await sha256(copy), snapshot.sha256, snapshot.name)
    await server.close()
  }
})

clientTest('qemu-img makes a chain of increments that is every snapshot in turn', async (t, tool) => {
  for (const snapshots of volumes.values()) {
    let backing: string | undefined
    for (const [i, snapshot] of snapshots.entries()) {
      const base = snapshots[i - 1]
      const server = await serveRecorded(snapshot, base ? [base] : [])
      const layer = newFile('layer.qcow2')
      const view = base ? `${handle(base)}..${handle(snapshot)}` : handle(snapshot)
      const onto = backing === undefined ? [] : ['-B', backing, '-F', 'qcow2']
      const words = ['convert', '-f', 'raw', '-O', 'qcow2', '-m', '8', '-W', ...onto, server.uri(view), layer]
      const { status, stderr } = await tool('qemu-img', words)
      t.is(status, 0, stderr)
      const compared = await tool('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', server.uri(), layer])
      t.is(compared.status, 0, `${snapshot.name}: ${compared.stdout}`)
      const restored = newFile('restored')
      await tool('qemu-img', ['convert', '-O', 'raw', layer, restored])
      t.is(await sha256(restored), snapshot.sha256, snapshot.name)
      t.deepEqual(server.failures, [])
      await server.close()
      backing = layer
    }
  }
})

clientTest('an increment holds what has changed and nothing else', async (t, tool) => {
  const [monday, tuesday] = volumes.get('harbour') ?? []
  const server = await serveRecorded(tuesday, [monday])
  const view = server.uri(`${handle(monday)}..${handle(tuesday)}`)
  const wanted = await changed(monday, tuesday)
  const states = await mapOf(tool, 'base:allocation', view)
  t.deepEqual([...new Set(states.map(({ type }) => type))].toSorted(), [0, 1])
  t.deepEqual(extentsOf(states, 0), wanted)
  const full = newFile('full.qcow2')
  const layer = newFile('increment.qcow2')
  await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', server.uri(handle(tuesday)), full])
  await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-B', full, '-F', 'qcow2', view, layer])
  const { stdout } = await tool('qemu-img', ['map', '--output=json', layer])
  const clusters = JSON.parse(stdout) as { start: number; length: number; depth: number }[]
  const inLayer = clusters
    .filter(({ depth }) => depth === 0)
    .map(({ start, length }) => ({ offset: start, length, type: 0 }))
  t.deepEqual(extentsOf(inLayer, 0), wanted)
  await server.close()
})

clientTest('what was trimmed is dirty, and a hole of zeros', async (t, tool) => {
  let found = 0
  for (const target of pool.snapshots) {
    const base = older(target).at(-1)
    if (!base) continue
    const server = await serveRecorded(target, [base])
    const dirty = extentsOf(await mapOf(tool, `qemu:dirty-bitmap:${handle(base)}`, server.uri()), 1)
    const view = server.uri(`${handle(base)}..${handle(target)}`)
    for (const [offset, size] of extentsOf(await mapOf(tool, 'base:allocation', view), 3)) {
      // Beyond the base's end, what nobody has written to is no change.
      if (offset >= base.size_bytes) continue
      t.true(dirty.some(([start, length]) => start <= offset && offset + size <= start + length))
      found++
    }
    await server.close()
  }
  t.true(found > 0)
})

clientTest('nbdinfo and qemu-img find the exports and their contexts', async (t, tool) => {
  const [monday, tuesday] = volumes.get('harbour') ?? []
  const server = await serveRecorded(tuesday, [monday])
  const list = await tool('nbdinfo', ['--list', '--json', server.uri()])
  const { exports } = JSON.parse(list.stdout) as {
    exports: { 'export-name': string; 'export-size': number; contexts: string[] }[]
  }
  t.deepEqual(
    exports.map((each) => [each['export-name'], each['export-size'], each.contexts]),
    [
      [handle(tuesday), tuesday.size_bytes, ['base:allocation', `qemu:dirty-bitmap:${handle(monday)}`]],
      [
        `${handle(monday)}..${handle(tuesday)}`,
        tuesday.size_bytes,
        ['base:allocation', `qemu:dirty-bitmap:${handle(monday)}`]
      ]
    ]
  )
  t.not((await tool('nbdinfo', ['--map=qemu:dirty-bitmap:x/friday', server.uri()])).status, 0)
  t.not((await tool('nbdinfo', [server.uri('x/friday')])).status, 0)
  // qemu shows what is dirty as if it were not there.
  const options = `driver=nbd,server.type=unix,server.path=${server.path},export=${handle(tuesday)}`
  const context = `x-dirty-bitmap=qemu:dirty-bitmap:${handle(monday)}`
  const { stdout } = await tool('qemu-img', ['map', '--output=json', '--image-opts', `${options},${context}`])
  const map = JSON.parse(stdout) as { start: number; length: number; data: boolean }[]
  const dirty = map.filter(({ data }) => !data).map(({ start, length }) => ({ offset: start, length, type: 1 }))
  t.deepEqual(extentsOf(dirty, 1), await changed(monday, tuesday))
  await server.close()
})

clientTest('a client in Python copies what is dirty, as virtnbdbackup does', async (t, tool) => {
  const [monday, tuesday] = volumes.get('harbour') ?? []
  const [mondays, server] = [await serveRecorded(monday), await serveRecorded(tuesday, [monday])]
  const copy = newFile('copy')
  await tool('nbdcopy', [mondays.uri(), copy])
  const script = newFile('backup.py')
  await writeFile(
    script,
    `
import nbd, sys
uri, context, path = sys.argv[1:]
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context(context)
h.connect_uri(uri)
assert h.is_read_only() and h.can_meta_context(context)
size, at, runs = h.get_size(), 0, []
def seen(metacontext, offset, entries, error):
    global at
    if metacontext == context:
        for length, flags in zip(entries[::2], entries[1::2]):
            runs.append((offset, length, flags))
            offset += length
        at = offset
while at < size:
    h.block_status(min(size - at, 2**31), at, seen)
with open(path, "r+b") as file:
    for offset, length, flags in runs:
        while flags and length:
            part = min(length, h.get_block_size(nbd.SIZE_MAXIMUM) or 2**25)
            file.seek(offset)
            file.write(h.pread(part, offset))
            offset, length = offset + part, length - part
`
  )
  const { status, stderr } = await tool('python3', [script, server.uri(), `qemu:dirty-bitmap:${handle(monday)}`, copy])
  t.is(status, 0, stderr)
  t.is(await sha256(copy), tuesday.sha256)
  await server.close()
  await mondays.close()
})

// Debian 13 has the plugin in a package of its own.
clientTest(
  'through filters of nbdkit: one sector at a time, and the bytes are the same',
  async (t, tool) => {
    const tides = pool.snapshots.find(({ name }) => name === 'tides-shrunk')!
    const server = await serveRecorded(tides)
    const copy = newFile('copy')
    const parts = join(toolFolder('bookworm'), '../usr/lib/x86_64-linux-gnu/nbdkit')
    const filter = `--filter=${parts}/filters/nbdkit-blocksize-filter.so`
    const plugin = [`${parts}/plugins/nbdkit-nbd-plugin.so`, `socket=${server.path}`]
    const sizes = ['minblock=512', 'maxdata=4096', 'maxlen=4096']
    const run = `'${join(toolFolder('bookworm'), 'nbdcopy')}' "$uri" '${copy}'`
    const { status, stderr } = await tool('nbdkit', ['-U', '-', filter, ...plugin, ...sizes, '--run', run])
    t.is(status, 0, stderr)
    t.is(await sha256(copy), tides.sha256)
    await server.close()
  },
  ['bookworm']
)

test('thin ids and copies of a pool do as well', async (t) => {
  const [monday, tuesday] = volumes.get('harbour') ?? []
  const sizes = ['--size', String(tuesday.size_bytes), '--base-size', String(monday.size_bytes)]
  const images = ['--metadata', metadataPath, '--data', dataPath]
  const { status, stdout } = await runCommand([
    ...['nbd', String(tuesday.thin_id), '--base', String(monday.thin_id), ...images, ...sizes, '--list']
  ])
  t.is(status, 0)
  t.regex(stdout, /^2 +50360320 +qemu:dirty-bitmap:1 .* dirty$/m)
  t.regex(stdout, /^1\.\.2 +50360320 +base:allocation .* data$/m)
})

clientTest('a socket that was opened by who started it is served, as systemd and libnbd do', async (t, tool) => {
  const words = [process.execPath, command, 'nbd', 'x/monday', '--recorded', `x=${recorded}`]
  const { status, stdout, stderr } = await tool('nbdinfo', ['--size', '--', '[', ...words, ']'])
  t.is(status, 0, stderr)
  t.is(Number(stdout), pool.snapshots[0].size_bytes)
})

test('what is no unix socket that listens is not served', async (t) => {
  const words = [command, 'nbd', 'x/monday', '--recorded', `x=${recorded}`]
  const handedOver = async (descriptor: number, count = 1) => {
    const script = 'LISTEN_PID=$$ exec "$0" "$@"'
    const child = spawn('/bin/sh', ['-c', script, process.execPath, ...words], {
      stdio: ['ignore', 'ignore', 'pipe', descriptor],
      env: { ...process.env, LISTEN_FDS: String(count) }
    })
    const [said, closed] = await Promise.all([text(child.stderr!), once(child, 'close')])
    t.is(closed[0], 2)
    return said
  }
  const file = await open(dataPath)
  t.regex(await handedOver(file.fd), /is no socket that listens; have a socket unit .*DM_ARGUMENT_INVALID/)
  t.regex(await handedOver(file.fd, 2), /more than one socket/)
  await file.close()
  const network = createServer().listen(0, '127.0.0.1')
  await once(network, 'listening')
  const { fd } = (network as unknown as { _handle: { fd: number } })._handle
  t.regex(await handedOver(fd), /no unix socket: a network could read it/)
  network.close()
})

test('--run ends with the command, and with its status', async (t) => {
  const words = ['nbd', 'x/monday', '--recorded', `x=${recorded}`, '--run']
  const out = newFile('seen')
  const fine = await runCommand([...words, `test -S "$socket" && printf %s "$uri" > ${out}`])
  t.deepEqual([fine.status, fine.stderr], [0, ''])
  const uri = await readFile(out, 'utf8')
  t.regex(uri, /^nbd\+unix:\/\/\/x\/monday\?socket=%2F/)
  const socket = decodeURIComponent(uri.split('=')[1])
  await t.throwsAsync(stat(socket), { code: 'ENOENT' })
  t.is((await runCommand([...words, 'exit 7'])).status, 7)
  t.is((await runCommand([...words, 'kill -9 $$'])).status, 137)
})

test('what does not go together is said in a line', async (t) => {
  const recordedPool = ['--recorded', `x=${recorded}`]
  for (const [words, wanted] of [
    [['x/monday', ...recordedPool], /said where to serve/],
    [['x/never', ...recordedPool, '--list'], /no snapshot never/],
    [['x/monday', '--base', 'x/tuesday', ...recordedPool, '--list'], /DM_ORDER_REVERSED/],
    [['x/tides-cut', '--base', 'x/monday', ...recordedPool, '--list'], /DM_VOLUMES_DIFFER/],
    [['1', '--metadata', metadataPath, '--list'], /--data FILE/],
    [['1', '--metadata', metadataPath, '--data', dataPath, '--list'], /--size/],
    [['2', '--base', '1', '--metadata', metadataPath, '--data', dataPath, '--size', '1MiB', '--list'], /--base-size/],
    [['1', '--metadata', dataPath, '--data', metadataPath, '--size', '1MiB', '--list'], /DM_METADATA_FOREIGN/],
    [['x/monday', '--base-record', 'x', ...recordedPool, '--list'], /goes with --metadata only/],
    [['x/monday', '--activate', ...recordedPool, '--list'], /goes with the agent only/]
  ] as const) {
    const result = await runCommand(['nbd', ...words])
    t.not(result.status, 0)
    t.is(result.stdout, '')
    t.regex(complaint(result), wanted)
  }
})

clientTest('bases that are gone, by their records', async (t, tool) => {
  const images = { metadata: metadataPath, data: dataPath }
  for (const [baseName, targetName] of [
    ['monday', 'second-tuesday'],
    ['tides-shrunk', 'tides-grown']
  ]) {
    const [base, target] = [baseName, targetName].map((name) => pool.snapshots.find((each) => each.name === name)!)
    const record = newFile('record.base')
    const saving = ['base', 'save', String(base.thin_id), '--metadata', metadataPath, '--to', record]
    t.is((await runCommand([...saving, '--size', String(base.size_bytes)])).status, 0)
    const options = { ...images, size: target.size_bytes, baseRecord: [record] }
    const server = await serveNbd(String(target.thin_id), options)
    const map = await mapOf(tool, `qemu:dirty-bitmap:${base.thin_id}`, server.uri())
    t.deepEqual(extentsOf(map, 1), await changed(base, target))
    const [full, layer] = [newFile('full.qcow2'), newFile('layer.qcow2')]
    const bases = await serveRecorded(base)
    await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', bases.uri(), full])
    const view = server.uri(`${base.thin_id}..${target.thin_id}`)
    await tool('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-B', full, '-F', 'qcow2', view, layer])
    const restored = newFile('restored')
    await tool('qemu-img', ['convert', '-O', 'raw', layer, restored])
    t.is(await sha256(restored), target.sha256)
    t.deepEqual(server.failures, [])
    // Another record under its name, while it is served.
    await writeFile(record, (await readFile(record)).subarray(0, -1))
    t.not((await tool('nbdinfo', [`--map=qemu:dirty-bitmap:${base.thin_id}`, server.uri()])).status, 0)
    for (const each of [server, bases]) await each.close()
    const error = await t.throwsAsync(serveNbd(String(target.thin_id), options), { instanceOf: DeltamapperError })
    t.is(error.code, 'DM_BASE_RECORD_DAMAGED')
  }
})

clientTest(
  'a command that says all is well where something could not be served is not believed',
  async (t) => {
    const [monday] = volumes.get('harbour') ?? []
    const cut = newFile('data.img')
    await writeFile(cut, (await readFile(dataPath)).subarray(0, 4 * 2 ** 20))
    const images = ['--metadata', metadataPath, '--data', cut, '--size', String(monday.size_bytes)]
    const hides = `'${join(toolFolder('bookworm'), 'nbdcopy')}' "$uri" null: || true`
    const { status, stderr } = await runCommand(['nbd', '1', ...images, '--run', hides])
    t.is(status, 1)
    t.regex(stderr, /DM_READ_FAILED/)
  },
  ['bookworm']
)

clientTest('images that change or end too early fail the client, and the command', async (t, tool) => {
  const [monday] = volumes.get('harbour') ?? []
  const cut = newFile('data.img')
  await writeFile(cut, (await readFile(dataPath)).subarray(0, 4 * 2 ** 20))
  const options = { metadata: metadataPath, data: cut, size: monday.size_bytes }
  const short = await serveNbd('1', options)
  t.not((await tool('nbdcopy', [short.uri(), newFile('copy')])).status, 0)
  t.is(short.failures[0].code, 'DM_READ_FAILED')
  await short.close()

  const changing = newFile('data.img')
  await writeFile(changing, await readFile(dataPath))
  const server = await serveNbd('1', { ...options, data: changing })
  t.is((await tool('nbdcopy', [server.uri(), newFile('copy')])).status, 0)
  await writeFile(changing, 'x', { flag: 'r+' })
  t.not((await tool('nbdcopy', [server.uri(), newFile('copy')])).status, 0)
  t.not((await tool('nbdinfo', ['--map', server.uri()])).status, 0)
  t.is(server.failures[0]?.code ?? 'DM_SNAPSHOT_CHANGED', 'DM_SNAPSHOT_CHANGED')
  await server.close()
})
