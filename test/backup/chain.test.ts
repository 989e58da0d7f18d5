/**
 * `deltamapper backup` as a person runs it, on the recorded pool: points restored byte for byte, pairing that is proven or not believed, and
 * everything that can become of a chain, each with its own error and nothing lost.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { Chain } from '../../src/backup/chain.ts'
import { ClusterMap } from '../../src/backup/cluster-map.ts'
import { isOurName, snapshotName } from '../../src/backup/snapshot-names.ts'
import type { NbdBase } from '../../src/nbd/source.ts'
import { type ErrorCode } from '../../src/errors.ts'
import { complaint, outcome, runCommand, startCommand } from '../cli/run-command.ts'
import { readPoolDescription, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { toolFolder } from '../support/nbd-clients.ts'
import { testFolder } from '../support/test-folder.ts'
import { VolumeHistory } from '../support/volume-history.ts'
import { store, VOLUME } from './chain-life.ts'

const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const folder = testFolder(test)
process.env['PATH'] = `${toolFolder('trixie')}:${process.env['PATH']}`

interface Listed {
  volume: string
  point: string
  created: string
  kind: string
  size_bytes: number
  stored_bytes: number
  full_because?: string
}

const harbour = pool.snapshots.filter(({ volume }) => volume === 'harbour')

const newRoot = () => mkdtemp(join(folder, 'root-'))
const backUp = (root: string, snapshot: string, ...more: string[]) =>
  runCommand([
    ...['backup', 'demo/harbour', '--snapshot', snapshot, '--recorded', `demo=${recorded}`, '--to', root, '-o', 'json'],
    ...more
  ])

async function backedUp(root: string, snapshot: string, ...more: string[]): Promise<Listed> {
  const { status, stdout, stderr } = await backUp(root, snapshot, ...more)
  if (status !== 0) throw new Error(stderr)
  return (JSON.parse(stdout) as { points: Listed[] }).points[0]
}

async function listed(root: string): Promise<Listed[]> {
  const { stdout } = await runCommand(['backup', 'list', root, '-o', 'json'])
  return (JSON.parse(stdout) as { points: Listed[] }).points
}

async function restored(root: string, point: string): Promise<string> {
  const to = join(await newRoot(), 'image')
  const { status, stderr } = await runCommand([
    ...['backup', 'restore', root, '--volume', 'demo/harbour', '--point', point, '--to', to]
  ])
  if (status !== 0) throw new Error(stderr)
  return createHash('sha256')
    .update(await readFile(to))
    .digest('hex')
}

/** A chain of the first two snapshots, to be copied. */
let prepared: { root: string; points: Listed[] }
test.before(async () => {
  const root = await newRoot()
  for (const { name } of harbour.slice(0, 2)) await backedUp(root, name)
  prepared = { root, points: await listed(root) }
})

async function copied(): Promise<{ root: string; chain: string; file: (at: number) => string }> {
  const root = await newRoot()
  await cp(prepared.root, root, { recursive: true })
  const chain = join(root, 'demo/harbour')
  return { root, chain, file: (at) => join(chain, `${prepared.points[at].point}.qcow2`) }
}

function failsWith(t: ExecutionContext, result: Awaited<ReturnType<typeof backUp>>, code: ErrorCode): void {
  t.is(result.status, 1)
  t.true(complaint(result).includes(`(${code})`), complaint(result))
}

test('a full backup and increments: list, restore and verify, as the manual has them', async (t) => {
  t.is(prepared.points.length, 2)
  t.deepEqual(
    prepared.points.map(({ kind }) => kind),
    ['full', 'increment']
  )
  t.deepEqual(Object.keys(prepared.points[0]), ['volume', 'point', 'created', 'kind', 'size_bytes', 'stored_bytes'])
  for (const [i, { point, volume, size_bytes }] of prepared.points.entries()) {
    const { mode } = await stat(join(prepared.root, volume, `${point}.qcow2`))
    t.is(mode & 0o077, 0, 'nobody else may read what is in a volume, also where the folder is copied')
    t.is(volume, 'demo/harbour')
    t.is(size_bytes, harbour[i].size_bytes)
    t.is(await restored(prepared.root, point), harbour[i].sha256)
  }
  const verified = await runCommand(['backup', 'verify', prepared.root, '--recorded', `demo=${recorded}`, '-o', 'json'])
  t.is(verified.status, 0, verified.stderr)
  const { points } = JSON.parse(verified.stdout) as { points: { state: string; compared: boolean }[] }
  t.deepEqual(
    points.map(({ state, compared }) => [state, compared]),
    [
      ['ok', false],
      ['ok', true]
    ]
  )
})

test('a chain that was moved as a whole goes on, is compressed and pruned, and each point is what it was', async (t) => {
  const { root } = await copied()
  const made = await backedUp(root, harbour[2].name, '--compress', '--keep', '2')
  t.is(made.kind, 'increment', made.full_because)
  const points = await listed(root)
  t.deepEqual(
    points.map(({ kind }) => kind),
    ['full', 'increment']
  )
  for (const [i, { point }] of points.entries()) t.is(await restored(root, point), harbour[i + 1].sha256)
  t.deepEqual((await readdir(join(root, 'demo/harbour'))).sort(), [
    ...points.map(({ point }) => `${point}.qcow2`),
    ...['chain.json', 'lock']
  ])
})

test('the figures for node_exporter', async (t) => {
  const { root } = await copied()
  const file = join(await newRoot(), 'deltamapper.prom')
  const { created } = await backedUp(root, harbour[2].name, '--metric-file', file)
  const text = await readFile(file, 'utf8')
  const seconds = Date.parse(created) / 1000
  t.true(text.includes(`deltamapper_backup_newest_point_timestamp_seconds{volume="demo/harbour"} ${seconds}\n`))
  t.true(text.includes('deltamapper_backup_points{volume="demo/harbour"} 3\n'))
})

test('a base that is not the snapshot that the newest point was made of is not believed', async (t) => {
  const { root, chain } = await copied()
  const manifest = join(chain, 'chain.json')
  const text = await readFile(manifest, 'utf8')
  // As if the name had gone to another snapshot since.
  await writeFile(manifest, text.replace(/("handle": "demo\/tuesday",\s+"fingerprint": "thin )2/, '$19'))
  const made = await backedUp(root, harbour[2].name)
  t.is(made.kind, 'full')
  t.regex(made.full_because ?? '', /demo\/tuesday.*is not what it was/)
  t.is(await restored(root, made.point), harbour[2].sha256)
})

test('a base of which nothing proves what it is, or that a person may have named twice, makes a full backup that says so', async (t) => {
  const sizes = [10 * 65536, 10 * 65536, 10 * 65536, 12 * 65536]
  const history = new VolumeHistory({ seed: 5, sizes, blockBytes: 65536 })
  const chain = await Chain.open(await newRoot(), VOLUME, 'exclusive')
  const stored = (at: number, change: Partial<NbdBase>) =>
    store(chain, history, at, {
      open: async (handle, bases) => {
        const source = history.source(handle, bases)
        return { ...source, bases: source.bases.map((base) => ({ ...base, ...change })) }
      }
    })
  await store(chain, history, 0)
  for (const [at, change, reason] of [
    [1, { identity: undefined }, /nothing proves that m\/0/],
    [2, { identity: 'gone' }, /m\/1, .* is gone, and its name may have been used twice/],
    [3, { sizeBytes: 5 * 65536 }, /m\/2, .* has 327680 bytes now, and had 655360/]
  ] as const) {
    const { point } = await stored(at, change)
    t.is(point.kind, 'full')
    t.regex(point.full_because ?? '', reason)
  }
  await chain.close()
})

test('a base that is gone, or younger, makes a full backup that says so', async (t) => {
  const { root } = await copied()
  const made = await backedUp(root, harbour[0].name)
  t.is(made.kind, 'full')
  t.regex(made.full_because ?? '', /DM_ORDER_REVERSED/)
  t.is(await restored(root, made.point), harbour[0].sha256)
})

test('a layer with a cluster too few or too many is noticed', (t) => {
  const planned = () => {
    const map = new ClusterMap(10 * 65536, 4 * 65536)
    map.add(0, 100, 0)
    map.add(65536, 2 * 65536, 1)
    map.add(2 * 65536, 3 * 65536, 3)
    map.add(5 * 65536, 6 * 65536, 3)
    return map
  }
  const complaintOf = (...found: [number, number][]) => {
    const map = planned()
    for (const [begin, end] of found) map.found(begin * 65536, end * 65536)
    return map.complaint()
  }
  t.is(complaintOf([0, 1], [2, 3]), undefined)
  t.is(complaintOf([0, 1], [2, 3], [5, 6]), undefined)
  t.regex(complaintOf([0, 1]) ?? '', /lacks the cluster at 131072/)
  t.regex(complaintOf([0, 3]) ?? '', /has the cluster at 65536/)
  t.regex(complaintOf([0, 1], [2, 3], [9, 10]) ?? '', /has the cluster at 589824/)
})

test('a qemu-img that stores less than what changed is not believed: a full backup, and it says why', async (t) => {
  const { root } = await copied()
  const bin = await newRoot()
  // Instead of an increment, it makes a file that has nothing of its own, and says that all is well.
  const script = [
    '#!/bin/bash',
    `PATH=${process.env['PATH']}`,
    'if [[ "$1" == convert && " $* " =~ " -B "([^ ]+)" " ]]',
    'then exec qemu-img create -q -f qcow2 -o cluster_size=65536 -b "${BASH_REMATCH[1]}" -F qcow2 "${@: -1}"',
    'else exec qemu-img "$@"',
    'fi'
  ]
  await writeFile(join(bin, 'qemu-img'), script.join('\n'), { mode: 0o755 })
  const words = [
    'backup',
    'demo/harbour',
    '--snapshot',
    harbour[2].name,
    '--recorded',
    `demo=${recorded}`,
    '--to',
    root
  ]
  const env = { PATH: `${bin}:${process.env['PATH']}` }
  const { status, stdout, stderr } = await runCommand([...words, '-o', 'json'], { env })
  t.is(status, 0, stderr)
  const [made] = (JSON.parse(stdout) as { points: Listed[] }).points
  t.is(made.kind, 'full')
  t.regex(made.full_because ?? '', /did not store exactly what changed/)
  t.is(await restored(root, made.point), harbour[2].sha256)
})

test('two backups of one volume at once: the second one is refused, and the first is whole', async (t) => {
  const { root } = await copied()
  const chain = await Chain.open(root, 'demo/harbour', 'exclusive')
  failsWith(t, await backUp(root, harbour[2].name), 'DM_CHAIN_IN_USE')
  await chain.close()
  t.is((await backedUp(root, harbour[2].name)).kind, 'increment')
})

test('a folder that is not there, or cannot be written to', async (t) => {
  failsWith(t, await backUp(join(folder, 'nowhere'), 'monday'), 'DM_CHAIN_GONE')
  // (Root may write to what is read-only, but not into the kernel's own folders.)
  failsWith(t, await backUp('/sys/kernel', 'monday'), 'DM_CHAIN_READ_ONLY')
})

test('a manifest of another volume, one that is changed, and one that is gone', async (t) => {
  const other = await copied()
  await mkdir(join(other.root, 'demo/tides'))
  await cp(other.chain, join(other.root, 'demo/tides'), { recursive: true })
  const words = ['--snapshot', 'tides-shrunk', '--recorded', `demo=${recorded}`, '--to', other.root]
  failsWith(t, await runCommand(['backup', 'demo/tides', ...words]), 'DM_CHAIN_FOREIGN')

  const changed = await copied()
  const manifest = join(changed.chain, 'chain.json')
  const text = await readFile(manifest, 'utf8')
  for (const broken of [
    text.slice(0, 200),
    text.replace('"increment"', '"full"'),
    text.replace('"format": 1', '"format": 2')
  ]) {
    await writeFile(manifest, broken)
    failsWith(t, await backUp(changed.root, 'thursday'), 'DM_CHAIN_INVALID')
  }
  await rm(manifest)
  failsWith(t, await backUp(changed.root, 'thursday'), 'DM_CHAIN_INVALID')
  await writeFile(manifest, text)
  t.is((await backedUp(changed.root, harbour[2].name)).kind, 'increment')
})

test('a FIFO in place of a file of the chain is refused, and nobody waits for it', async (t) => {
  for (const name of ['lock', 'chain.json']) {
    const { root, chain } = await copied()
    await rm(join(chain, name), { force: true })
    execFileSync('mkfifo', [join(chain, name)])
    failsWith(t, await backUp(root, 'thursday'), 'DM_CHAIN_INVALID')
    // Without a manifest, no chain is found.
    const verified = name === 'lock' ? 'DM_CHAIN_INVALID' : 'DM_POINT_NOT_FOUND'
    failsWith(t, await runCommand(['backup', 'verify', root]), verified)
  }
})

test("the folder of one volume's chain is not taken for one without backups", async (t) => {
  const { chain } = await copied()
  for (const words of [['list'], ['verify'], ['prune', '--keep', '1']]) {
    const refused = await runCommand(['backup', words[0], chain, ...words.slice(1)])
    failsWith(t, refused, 'DM_ARGUMENT_INVALID')
    t.regex(refused.stderr, /is the folder of one volume; name the one above it/)
  }
})

test("what a killed run left of its sockets goes with the chain's next one, and not with a copy's", async (t) => {
  const [original, copy] = [await copied(), await copied()]
  const chain = await Chain.open(original.root, 'demo/harbour', 'exclusive')
  const socket = await mkdtemp(join(tmpdir(), `deltamapper-${chain.mark}-`))
  await backedUp(copy.root, harbour[2].name)
  t.true(existsSync(socket))
  await chain.close()
  await backedUp(original.root, harbour[2].name)
  t.false(existsSync(socket))
})

test('a bit that has changed is found by verify, restore and prune, which change nothing', async (t) => {
  const { root, file } = await copied()
  const content = await readFile(file(0))
  content[content.length - 70_000] ^= 1
  await writeFile(file(0), content)
  failsWith(t, await runCommand(['backup', 'verify', root]), 'DM_CHAIN_DAMAGED')
  const [, { point }] = prepared.points
  const to = join(await newRoot(), 'image')
  const words = ['backup', 'restore', root, '--volume', 'demo/harbour', '--point', point, '--to', to]
  failsWith(t, await runCommand(words), 'DM_CHAIN_DAMAGED')
  t.false(existsSync(to))
  failsWith(t, await runCommand(['backup', 'prune', root, '--keep', '1']), 'DM_CHAIN_DAMAGED')
  t.is((await listed(root)).length, 2)
  t.is((await runCommand([...words, '--unverified'])).status, 0)
})

test('a file that was swapped or is gone', async (t) => {
  const { root, file } = await copied()
  const right = await readFile(file(1))
  await cp(file(0), file(1))
  failsWith(t, await backUp(root, 'thursday'), 'DM_CHAIN_SWAPPED')
  failsWith(t, await runCommand(['backup', 'verify', root]), 'DM_CHAIN_SWAPPED')
  await writeFile(file(1), 'something else')
  failsWith(t, await backUp(root, 'thursday'), 'DM_CHAIN_SWAPPED')
  await rm(file(1))
  failsWith(t, await backUp(root, 'thursday'), 'DM_CHAIN_SWAPPED')
  await writeFile(file(1), right)
  t.is((await backedUp(root, harbour[2].name)).kind, 'increment')
})

test('no room: refused before it begins, and the chain is as it was', async (t) => {
  const root = await newRoot()
  const history = new VolumeHistory({ seed: 5, sizes: [2 ** 20, 2 ** 20], blockBytes: 65536 })
  const chain = await Chain.open(root, VOLUME, 'exclusive')
  await store(chain, history, 0)
  chain.freeBytes = async () => 10_000
  const error = await t.throwsAsync(store(chain, history, 1))
  t.is((error as { code?: string }).code, 'DM_CHAIN_NO_SPACE')
  t.is(chain.points.length, 1)
  await chain.close()
})

test('a snapshot of another volume, which a person has named, becomes no point', async (t) => {
  const { root, chain } = await copied()
  const before = (await readdir(chain)).sort()
  failsWith(t, await backUp(root, 'tides-shrunk'), 'DM_CHAIN_FOREIGN')
  failsWith(t, await backUp(root, 'tides-shrunk', '--full'), 'DM_CHAIN_FOREIGN')
  t.deepEqual((await readdir(chain)).sort(), before)
})

test('no two snapshots get one name, also where the clock was set back', async (t) => {
  const root = await newRoot()
  const history = new VolumeHistory({ seed: 1, sizes: [65536], blockBytes: 65536 })
  const chain = await Chain.open(root, VOLUME, 'exclusive')
  const at = new Date(Date.UTC(2026, 0, 1))
  for (const moment of ['000', '001']) {
    const name = snapshotName(chain, at)
    t.true(name.endsWith(`-20260101T000000${moment}Z`), name)
    t.true(isOurName(`m/${name}`))
    await store(chain, history, 0, { handle: `m/${name}`, full: true, open: async () => history.source('m/0', []) })
  }
  await chain.close()
})

test('a backup that cannot begin leaves no folder of a chain, and one that is there alone', async (t) => {
  const { root, chain } = await copied()
  const before = await readFile(join(chain, 'chain.json'), 'utf8')
  const bin = await newRoot()
  await writeFile(join(bin, 'lvm'), '#!/bin/sh\necho "  cannot" >&2; exit 5\n', { mode: 0o755 })
  const env = { PATH: `${bin}:${process.env['PATH']}` }
  for (const volumes of [['misspelt/one'], ['misspelt/one', 'demo/two'], ['demo/harbour']]) {
    failsWith(t, await runCommand(['backup', ...volumes, '--to', root], { env }), 'DM_LVM_FAILED')
  }
  t.deepEqual(await readdir(root), ['demo'])
  t.deepEqual(await readdir(join(root, 'demo')), ['harbour'])
  t.is(await readFile(join(chain, 'chain.json'), 'utf8'), before)
})

test('restore leaves alone what is there, and says what is missing', async (t) => {
  const { root, chain } = await copied()
  const to = join(await newRoot(), 'image')
  await writeFile(to, 'mine')
  const words = ['backup', 'restore', root, '--to', to, '--volume', 'demo/harbour', '--point']
  failsWith(t, await runCommand([...words, prepared.points[0].point]), 'DM_NAME_TAKEN')
  t.is(await readFile(to, 'utf8'), 'mine')
  failsWith(t, await runCommand([...words, 'yesterday']), 'DM_POINT_NOT_FOUND')
  t.is((await runCommand([...words, prepared.points[0].point, '--force'])).status, 0)
  t.is((await stat(to)).size, harbour[0].size_bytes)
  words[words.indexOf('--to') + 1] = join(chain, `${prepared.points[1].point}.qcow2`)
  failsWith(t, await runCommand([...words, prepared.points[0].point, '--force']), 'DM_RESTORE_FAILED')
  t.is((await runCommand(['backup', 'verify', root])).status, 0)
})

test('an interrupted backup leaves the chain as it was, and the next one tidies up', async (t) => {
  const { root, chain } = await copied()
  const before = (await readdir(chain)).sort()
  const child = startCommand([
    ...['backup', 'demo/harbour', '--snapshot', 'thursday', '--recorded', `demo=${recorded}`, '--to', root],
    ...['--rate', '64KiB']
  ])
  while (!(await readdir(chain)).some((name) => name.endsWith('.part')))
    await new Promise((resolve) => setTimeout(resolve, 20))
  child.kill('SIGINT')
  const [status] = (await once(child, 'close')) as [number]
  t.is(status, 130)
  t.deepEqual((await readdir(chain)).sort(), before)
  await writeFile(join(chain, 'left.qcow2.part'), 'by one that was killed')
  t.is((await backedUp(root, harbour[2].name)).kind, 'increment')
  t.false(existsSync(join(chain, 'left.qcow2.part')))
})

test('a folder that goes away in the middle', async (t) => {
  const { root, chain } = await copied()
  const elsewhere = `${root}-elsewhere`
  const child = startCommand([
    ...['backup', 'demo/harbour', '--snapshot', 'thursday', '--recorded', `demo=${recorded}`, '--to', root],
    ...['--rate', '256KiB']
  ])
  const ended = outcome(child)
  while (!(await readdir(chain)).some((name) => name.endsWith('.part'))) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  await rename(root, elsewhere)
  failsWith(t, await ended, 'DM_CHAIN_GONE')
  await rename(elsewhere, root)
  t.is((await listed(root)).length, 2)
  t.is((await backedUp(root, harbour[2].name)).kind, 'increment')
})

for (const [what, words, wanted] of [
  ['no volume', ['--to', '/tmp'], /no volume was named/],
  ['nowhere to go', ['demo/harbour'], /give --to DIR/],
  ['a volume twice', ['a/b', 'a/b', '--to', '/tmp'], /named twice/],
  ['snapshots of a recorded pool', ['a/b', '--to', '/tmp', '--recorded', 'a=/tmp'], /--snapshot/],
  ['one snapshot of two volumes', ['a/b', 'a/c', '--to', '/tmp', '--snapshot', 'x'], /of one volume/],
  ['hooks around no snapshot', ['a/b', '--to', '/tmp', '--snapshot', 'x', '--before', 'true'], /--before is for/]
] as const) {
  test(`usage: ${what}`, async (t) => {
    const result = await runCommand(['backup', ...words])
    t.is(result.status, 2)
    t.regex(complaint(result), wanted)
  })
}
