/**
 * `allocated` and `delta` from outside: every format, both sources, and all the ways in which an answer does not come about.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFile, mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { type AgentProcess, startAgentProcess } from '../../../demo/agent-process.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { readPoolDescription, unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import type { Extent } from '../../support/expected.ts'
import { BLOCK_BYTES, type MetadataImage, superblockField, writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import { command, complaint, outcome, runCommand, startCommand } from '../run-command.ts'

const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const metadata = join(recorded, 'metadata.img')

const BLOCK = 65536
/** Every other block of a volume is mapped, so that each is an extent, and its output is much more than a pipe holds. */
const manyExtents = 60_000

async function largePool(path: string): Promise<{ path: string; image: MetadataImage }> {
  const random = new Random(7)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(1)
  const mappings = Array.from({ length: manyExtents }, (_, i) => [2 * i, { block: i, time: 0 }] as const)
  model.load(1, mappings, () => 252)
  const image = writeMetadataImage(model, { random })
  await writeFile(path, image.bytes)
  return { path, image }
}

function snapshotNamed(name: string) {
  const found = pool.snapshots.find((each) => each.name === name)
  if (!found) throw new Error(`the recorded pool has no ${name}`)
  return found
}

/** What the library says, for comparison with what is printed of it. */
async function truth(base: number | undefined, target: number, sizeBytes: number): Promise<Extent[]> {
  const opened = await openPoolMetadata(metadata)
  try {
    const question = { sizeBytes, baseSizeBytes: sizeBytes }
    return await collectExtents(
      base === undefined
        ? await opened.allocated({ deviceId: target, ...question })
        : await opened.delta({ baseId: base, targetId: target, ...question })
    )
  } finally {
    await opened.close()
  }
}

interface JsonAnswer {
  block_metadata_type: string
  volume_capacity_bytes: number
  block_metadata: { byte_offset: number; size_bytes: number }[]
}

const extentsOf = ({ block_metadata }: JsonAnswer): Extent[] =>
  block_metadata.map(({ byte_offset, size_bytes }) => [byte_offset, size_bytes])

const monday = snapshotNamed('monday')
const friday = snapshotNamed('friday')
const size = String(friday.size_bytes)
const sizes = ['--size', size, '--base-size', size]
const deltaFromMetadata = ['delta', String(monday.thin_id), String(friday.thin_id), '--metadata', metadata, ...sizes]
const expected = await truth(monday.thin_id, friday.thin_id, friday.size_bytes)
// Socket paths are short by law.
const socketFolder = await mkdtemp(join(tmpdir(), 'dm-'))
const endpoint = `unix://${socketFolder}/agent.sock`
// From the first hook on, nothing may be waited for outside tests and hooks.
const folder = testFolder(test)
let agent: AgentProcess
let large: { path: string; image: MetadataImage }
test.before(async () => {
  large = await largePool(join(folder, 'large.img'))
  agent = await startAgentProcess(endpoint, { name: 'demo', folder: recorded })
})
test.after.always(async () => {
  await agent.stop()
  await rm(socketFolder, { recursive: true })
})

const expectedBytes = expected.reduce((sum, [, bytes]) => sum + bytes, 0)

test('json is one object with the field names of csi.v1', async (t) => {
  const { status, stdout } = await runCommand([...deltaFromMetadata, '-o', 'json'])
  t.is(status, 0)
  t.true(expected.length > 10)
  const content = expected.map(([byte_offset, size_bytes]) => ({ byte_offset, size_bytes }))
  const wanted = {
    block_metadata_type: 'VARIABLE_LENGTH',
    volume_capacity_bytes: friday.size_bytes,
    block_metadata: content
  }
  t.is(stdout, `${JSON.stringify(wanted)}\n`)
})

test('ndjson begins with the volume and ends by saying that it is complete', async (t) => {
  const { status, stdout } = await runCommand([...deltaFromMetadata, '-o', 'ndjson'])
  t.is(status, 0)
  const lines = stdout.trimEnd().split('\n')
  t.deepEqual(JSON.parse(lines[0]), {
    block_metadata_type: 'VARIABLE_LENGTH',
    volume_capacity_bytes: friday.size_bytes
  })
  t.deepEqual(
    lines.slice(1, -1).map((line) => JSON.parse(line) as unknown),
    expected.map(([byte_offset, size_bytes]) => ({ byte_offset, size_bytes }))
  )
  t.deepEqual(JSON.parse(lines.at(-1) ?? ''), { complete: true, extents: expected.length, bytes: expectedBytes })
})

test('a table is what comes unless something else is asked for', async (t) => {
  const { status, stdout } = await runCommand(deltaFromMetadata)
  t.is(status, 0)
  const [heading, ...lines] = stdout.trimEnd().split('\n')
  t.deepEqual(heading.trim().split(/ {2,}/), ['BYTE OFFSET', 'SIZE (BYTES)', 'SIZE'])
  const total = lines.pop() ?? ''
  t.deepEqual(
    lines.map((line) => line.trim().split(/ +/).slice(0, 2).map(Number)),
    expected.map(([offset, bytes]) => [offset, bytes])
  )
  t.true(lines.every((line) => line.length === heading.length))
  t.true(total.startsWith(`${expected.length} extents, ${expectedBytes} bytes (`))
  t.true(total.endsWith('; complete'))
})

test('a map off a terminal has 64 cells in a row and no colour', async (t) => {
  const { status, stdout } = await runCommand([...deltaFromMetadata, '-o', 'map'])
  t.is(status, 0)
  const lines = stdout.trimEnd().split('\n')
  const rows = lines.slice(1, -1).map((line) => / │([ ░▒▓█]+)│$/.exec(line)?.[1] ?? '')
  t.is(rows.join('').length, Math.ceil(friday.size_bytes / BLOCK))
  t.true(rows.slice(0, -1).every((row) => row.length === 64))
  // In this volume a cell is a data block: all of it has changed, or nothing.
  const changed = new Set(
    expected.flatMap(([offset, bytes]) =>
      Array.from({ length: Math.ceil(bytes / BLOCK) }, (_, i) => offset / BLOCK + i)
    )
  )
  t.is(rows.join(''), Array.from({ length: rows.join('').length }, (_, i) => (changed.has(i) ? '█' : ' ')).join(''))
  t.true(lines.at(-1)?.endsWith('; complete'))
  t.false(stdout.includes('\u001b'))
})

test('what is allocated is told the same way', async (t) => {
  const args = ['allocated', String(friday.thin_id), '--metadata', metadata, '--size', size, '-o', 'json']
  const { status, stdout } = await runCommand(args)
  t.is(status, 0)
  t.deepEqual(extentsOf(JSON.parse(stdout) as JsonAnswer), await truth(undefined, friday.thin_id, friday.size_bytes))
})

for (const [name, source] of [
  ['an endpoint given as option', { args: ['--endpoint', endpoint], env: {} }],
  ['an endpoint given in the environment', { args: [], env: { DELTAMAPPER_ENDPOINT: endpoint } }],
  [
    'an endpoint that is to send one extent at a time',
    { args: ['--endpoint', endpoint, '--max-results', '1'], env: {} }
  ]
] as const) {
  test(`${name} gives the same answers as the metadata`, async (t) => {
    const args = ['delta', 'demo/monday', 'demo/friday', '-o', 'json', ...source.args]
    const asked = await runCommand(args, { env: source.env })
    t.is(asked.stderr, '')
    t.is(asked.status, 0)
    t.is(asked.stdout, (await runCommand([...deltaFromMetadata, '-o', 'json'])).stdout)
  })
}

test('the endpoint and the metadata agree on every snapshot and every step of the recorded pool', async (t) => {
  for (const volume of pool.volumes) {
    const snapshots = pool.snapshots.filter((each) => each.volume === volume.name)
    await Promise.all(
      snapshots.map(async (target, i) => {
        const base = snapshots[i - 1]
        const fromEndpoint = await runCommand([
          ...(base ? ['delta', `demo/${base.name}`] : ['allocated']),
          ...[`demo/${target.name}`, '--endpoint', endpoint, '-o', 'ndjson']
        ])
        const fromMetadata = await runCommand([
          ...(base ? ['delta', String(base.thin_id), '--base-size', String(base.size_bytes)] : ['allocated']),
          ...[String(target.thin_id), '--metadata', metadata, '--size', String(target.size_bytes), '-o', 'ndjson']
        ])
        t.is(fromEndpoint.status, 0)
        t.is(fromEndpoint.stdout, fromMetadata.stdout, target.name)
      })
    )
  }
})

test('the agent has 12 threads for files, and reads of devices that would wait', async (t) => {
  await runCommand(['allocated', 'demo/monday', '--endpoint', endpoint])
  const tasks = `/proc/${agent.pid}/task`
  const names = await Promise.all(
    (await readdir(tasks)).map((task) => readFile(join(tasks, task, 'comm'), 'utf8').catch(() => ''))
  )
  t.is(names.filter((name) => name.trim() === 'libuv-worker').length, 12)
})

test('a starting offset leaves out what ends before it, from either source', async (t) => {
  const [offset, bytes] = expected[5]
  const from = ['--starting-offset', String(offset + bytes), '-o', 'json']
  const fromMetadata = await runCommand([...deltaFromMetadata, ...from])
  t.deepEqual(extentsOf(JSON.parse(fromMetadata.stdout) as JsonAnswer), expected.slice(6))
  const fromEndpoint = await runCommand(['delta', 'demo/monday', 'demo/friday', '--endpoint', endpoint, ...from])
  t.is(fromEndpoint.stdout, fromMetadata.stdout)
})

test('which view of the metadata answers, its age, and the sizes taken are said on stderr', async (t) => {
  const args = ['delta', String(monday.thin_id), String(friday.thin_id), '--metadata', metadata, '-o', 'json']
  const held = await runCommand(args)
  t.is(held.status, 0)
  t.regex(
    held.stderr,
    /^deltamapper: reading the metadata snapshot, pool time \d+, .* behind the live pool .*--live-root/m
  )
  const mappedEnd = Math.ceil(friday.size_bytes / BLOCK) * BLOCK
  t.true(held.stderr.includes(`size of ${friday.thin_id}: ${mappedEnd} bytes`))
  t.regex(held.stderr, /^deltamapper: size of base \d+: that of target \d+; --base-size says otherwise$/m)
  t.is((JSON.parse(held.stdout) as JsonAnswer).volume_capacity_bytes, mappedEnd)

  const live = await runCommand([...args, '--live-root', ...sizes])
  t.is(live.status, 0)
  t.regex(live.stderr, /^deltamapper: reading the live root, .*not the metadata snapshot that is held\n$/)
})

test('what --size leaves out beyond it is said, in bytes', async (t) => {
  const metadataArgs = ['--metadata', metadata, '-o', 'json', '--size']
  for (const question of [
    ['allocated', String(friday.thin_id)],
    ['delta', String(monday.thin_id), String(friday.thin_id)]
  ]) {
    const whole = await runCommand([...question, ...metadataArgs, '1TiB'])
    t.notRegex(whole.stderr, /leaves out/)
    for (const cut of [0, 10 * BLOCK, 10 * BLOCK + 1000]) {
      const { status, stderr } = await runCommand([...question, ...metadataArgs, String(cut)])
      t.is(status, 0)
      // A block that the size cuts in two is the last one of the volume.
      const from = Math.ceil(cut / BLOCK) * BLOCK
      const beyond = extentsOf(JSON.parse(whole.stdout) as JsonAnswer).reduce(
        (sum, [offset, bytes]) => sum + Math.max(0, offset + bytes - Math.max(offset, from)),
        0
      )
      t.true(beyond > 0)
      t.true(stderr.includes(`deltamapper: --size leaves out ${beyond} bytes (`), `${cut}: ${beyond} in ${stderr}`)
    }
  }
})

test('--live-root does not look at a metadata snapshot that is damaged', async (t) => {
  const path = join(folder, 'held-damaged.img')
  const image = await readFile(metadata)
  const held = Number(image.readBigUInt64LE(superblockField.heldRoot))
  image[held * BLOCK_BYTES + 100] ^= 1
  await writeFile(path, image)
  const args = ['delta', String(monday.thin_id), String(friday.thin_id), '--metadata']
  t.is((await runCommand([...args, path])).status, 1)
  const { status, stdout } = await runCommand([...args, path, '--live-root'])
  t.is(status, 0)
  t.is(stdout, (await runCommand([...args, metadata, '--live-root'])).stdout)
})

test('sizes may be given in the units that LVM writes, up to PiB', async (t) => {
  for (const [text, bytes] of [
    ['16MiB', 2 ** 24],
    ['16384KiB', 2 ** 24],
    ['1GiB', 2 ** 30],
    ['1TiB', 2 ** 40],
    ['7PiB', 7 * 2 ** 50],
    ['50g', 50 * 2 ** 30],
    ['50G', 50 * 2 ** 30],
    ['65536b', 65536],
    ['128s', 65536],
    ['1p', 2 ** 50]
  ] as const) {
    const args = ['allocated', String(friday.thin_id), '--metadata', metadata, '--size', text, '-o', 'json']
    t.is((JSON.parse((await runCommand(args)).stdout) as JsonAnswer).volume_capacity_bytes, bytes)
  }
  for (const [text, says] of [
    ['1.50g', /lvs --units b/],
    ['50GB', /64KiB/],
    ['50gib', /64KiB or 64k/],
    ['8PiB', /beyond 2\^53/],
    ['1e', /beyond 2\^53/],
    ['5 g', /whole number/]
  ] as const) {
    const { status, stderr } = await runCommand(['allocated', '1', '--metadata', metadata, '--size', text])
    t.is(status, 2, text)
    t.regex(stderr, says, text)
  }
})

test('a base that is smaller than the target is taken to lack the rest', async (t) => {
  const half = String(Math.floor(friday.size_bytes / 2 / BLOCK) * BLOCK)
  const args = ['delta', String(friday.thin_id), String(friday.thin_id), '--metadata', metadata, '--size', size]
  t.is(extentsOf(JSON.parse((await runCommand([...args, '-o', 'json'])).stdout) as JsonAnswer).length, 0)
  const { stdout } = await runCommand([...args, '--base-size', half, '-o', 'json'])
  const beyond = extentsOf(JSON.parse(stdout) as JsonAnswer)
  t.true(beyond.length > 0)
  t.true(beyond.every(([offset]) => offset >= Number(half)))
})

test('a long answer is whole', async (t) => {
  const { status, stdout } = await runCommand(['allocated', '1', '--metadata', large.path, '-o', 'json'])
  t.is(status, 0)
  t.deepEqual(
    extentsOf(JSON.parse(stdout) as JsonAnswer),
    Array.from({ length: manyExtents }, (_, i) => [2 * i * BLOCK, BLOCK] as const)
  )
})

test('nothing that was read is changed', async (t) => {
  const hash = async () =>
    createHash('sha256')
      .update(await readFile(metadata))
      .digest('hex')
  const before = await hash()
  for (const format of ['table', 'map']) await runCommand([...deltaFromMetadata, '-o', format])
  t.is(await hash(), before)
})

const notAnswered: [string, () => Promise<string[]>, RegExp][] = [
  ['a file that is missing', async () => ['1', '--metadata', join(folder, 'missing')], /\(DM_READ_FAILED\)$/],
  ['a name with a line break', async () => ['1', '--metadata', join(folder, 'a\nb')], /\(DM_READ_FAILED\)$/],
  ['a folder', async () => ['1', '--metadata', folder], /\(DM_READ_FAILED\)$/],
  [
    'a text',
    async () => ['1', '--metadata', await written('text', 'Hello.\n'.repeat(10_000))],
    /\(DM_METADATA_FOREIGN\)$/
  ],
  ['an empty file', async () => ['1', '--metadata', await written('empty', '')], /\(DM_METADATA_FOREIGN\)$/],
  [
    'a device that the pool lacks',
    async () => ['99', '--metadata', metadata],
    /no thin device 99.*\(DM_DEVICE_NOT_FOUND\)$/
  ],
  [
    'an offset beyond the end',
    async () => ['1', '--metadata', metadata, '--starting-offset', '1TiB'],
    /\(DM_OFFSET_OUT_OF_RANGE\)$/
  ],
  [
    'nobody at the endpoint',
    async () => ['demo/monday', '--endpoint', `unix://${socketFolder}/none.sock`],
    /\(DM_UNREACHABLE\)$/
  ],
  [
    'a snapshot that the endpoint lacks',
    async () => ['demo/never', '--endpoint', endpoint],
    /\(DM_SNAPSHOT_NOT_FOUND\)$/
  ],
  ['a handle that is none', async () => ['monday', '--endpoint', endpoint], /\(DM_HANDLE_INVALID\)$/]
]

async function written(name: string, content: string): Promise<string> {
  await writeFile(join(folder, name), content)
  return join(folder, name)
}

for (const [what, args, reason] of notAnswered) {
  test(`no answer, exit status 1: ${what}`, async (t) => {
    const result = await runCommand(['allocated', ...(await args()), '-o', 'json'])
    t.is(result.status, 1)
    t.is(result.stdout, '')
    t.regex(complaint(result), reason)
  })
}

for (const format of ['table', 'ndjson', 'map']) {
  test(`nothing is printed as ${format} either where there is no answer`, async (t) => {
    const result = await runCommand(['allocated', '99', '--metadata', metadata, '-o', format])
    t.is(result.status, 1)
    t.is(result.stdout, '')
  })
}

test('an order that the endpoint refuses is refused with its words', async (t) => {
  const result = await runCommand(['delta', 'demo/friday', 'demo/monday', '--endpoint', endpoint, '-o', 'json'])
  t.is(result.status, 1)
  t.is(result.stdout, '')
  t.regex(complaint(result), /demo\/friday was taken after target demo\/monday; .*\(DM_ORDER_REVERSED\)$/)
})

test('metadata that is damaged far behind gives no answer that looks complete, in any format', async (t) => {
  const path = join(folder, 'damaged.img')
  await copyFile(large.path, path)
  const bytes = await readFile(path)
  const last = [...large.image.mappingNodes(1)].at(-1) ?? 0
  bytes[last * 4096 + 100] ^= 1
  await writeFile(path, bytes)
  for (const format of ['table', 'json', 'ndjson', 'map']) {
    const result = await runCommand(['allocated', '1', '--metadata', path, '--size', '1GiB', '-o', format])
    // Up to 1 GiB nothing is damaged: the image can be read as such.
    t.is(result.status, 0, format)
    const failed = await runCommand(['allocated', '1', '--metadata', path, '--size', '8GiB', '-o', format])
    t.is(failed.status, 1, format)
    t.regex(complaint(failed), new RegExp(`metadata block ${last} of .* is damaged.*\\(DM_METADATA_DAMAGED\\)$`))
    t.false(failed.stdout.includes('complete'))
    if (format === 'map') t.is(failed.stdout, '')
    else t.true(failed.stdout.length > 0)
    if (format === 'json') t.throws(() => JSON.parse(failed.stdout) as unknown)
  }
})

test('a reader that has had enough ends the command quietly', async (t) => {
  for (const format of ['table', 'json', 'ndjson']) {
    const child = startCommand(['allocated', '1', '--metadata', large.path, '--size', '8GiB', '-o', format])
    const ended = outcome(child)
    await once(child.stdout, 'readable')
    child.stdout.destroy()
    const { status, stderr } = await ended
    t.is(status, 141, format)
    // What was remarked before the answer, and no more.
    t.regex(stderr, /^deltamapper: reading the live root[^\n]*\n$/)
  }
})

test('Ctrl-C ends a command whose output nobody takes', async (t) => {
  const child = startCommand(['allocated', '1', '--metadata', large.path, '--size', '8GiB', '-o', 'ndjson'])
  const ended = outcome(child)
  await once(child.stdout, 'readable')
  await sleep(200)
  t.is(child.exitCode, null)
  child.kill('SIGINT')
  const result = await ended
  t.is(result.status, 130)
  t.regex(complaint(result), /interrupted, so that the output is not complete; .*\(DM_CANCELLED\)$/)
})

test('a time limit ends it as well', async (t) => {
  const args = ['allocated', '1', '--metadata', large.path, '--size', '8GiB', '-o', 'ndjson', '--timeout', '0.5']
  const result = await outcome(startCommand(args))
  t.is(result.status, 1)
  t.regex(complaint(result), /not complete after 0\.5 seconds; .*\(DM_DEADLINE_EXCEEDED\)$/)
})

test('a full disk is told', async (t) => {
  const full = await open('/dev/full', 'w')
  const child = spawn(process.execPath, [command, ...deltaFromMetadata, '-o', 'json'], {
    stdio: ['ignore', full.fd, 'pipe']
  })
  let stderr = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [status] = (await once(child, 'close')) as [number | null]
  await full.close()
  t.is(status, 1)
  t.regex(complaint({ status, stdout: '', stderr }), /the output cannot be written: ENOSPC/)
})
