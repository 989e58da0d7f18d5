/** `base save`, `delta --base-record` and `inspect` of a record, as a person runs them, on a pool that a kernel wrote. */
import { execFileSync } from 'node:child_process'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import {
  readPoolDescription,
  type RecordedSnapshot,
  type RecordedVolume,
  unpackRecordedPool
} from '../../fixtures/recorded-pool.ts'
import { seal, superblockField, writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import { adminAgents, helpLacks } from '../admin-agent.ts'
import { runCommand } from '../run-command.ts'

const folder = testFolder(test)
const { order } = adminAgents(test)
let metadata = ''
let snapshots: RecordedSnapshot[] = []
let volumes: RecordedVolume[] = []

test.before(async () => {
  const poolFolder = await unpackRecordedPool()
  metadata = join(poolFolder, 'metadata.img')
  ;({ snapshots, volumes } = await readPoolDescription(poolFolder))
})

async function save(id: number, size: number, name: string, image = metadata) {
  const to = join(folder, name)
  const saved = await runCommand(['base', 'save', `${id}`, '--metadata', image, '--size', `${size}`, '--to', to])
  return { to, saved }
}

test('of pairs of the recorded pool a record says what the living base says', async (t) => {
  const first = snapshots[0]
  const records = new Map<string, string>()
  for (const { name, thin_id: id, size_bytes: size } of snapshots) {
    const { to, saved } = await save(id, size, `${name}.base`)
    t.is(saved.status, 0, saved.stderr)
    t.regex(saved.stderr, /complete\n$/)
    records.set(name, to)
  }
  const ofOne = snapshots.filter(({ volume }) => volume === first.volume)
  for (const [b, base] of ofOne.entries()) {
    for (const target of b === 0 ? ofOne.slice(1) : ofOne.slice(b + 1, b + 2)) {
      const sizes = ['--metadata', metadata, '--size', `${target.size_bytes}`, '-o', 'json']
      const ids = [`${base.thin_id}`, `${target.thin_id}`]
      const living = await runCommand(['delta', ...ids, '--base-size', `${base.size_bytes}`, ...sizes])
      const gone = await runCommand(['delta', ids[1], '--base-record', records.get(base.name) ?? '', ...sizes])
      t.is(gone.status, 0, gone.stderr)
      t.deepEqual(JSON.parse(gone.stdout), JSON.parse(living.stdout), `${base.name} to ${target.name}`)
    }
  }
})

test('a record tells what it stands for', async (t) => {
  const [{ thin_id: id, size_bytes: size }] = snapshots
  const { to } = await save(id, size, 'shown.base')
  const { stdout } = await runCommand(['inspect', to, '-o', 'json'])
  const shown = JSON.parse(stdout) as Record<string, unknown>
  t.like(shown, { kind: 'base record', id, size_bytes: size })
  t.regex((await runCommand(['inspect', to])).stdout, new RegExp(`thin device ${id}`))
})

test('a volume is no base, and a file that cannot be made is said', async (t) => {
  const { saved } = await save(volumes[0].thin_id, volumes[0].size_bytes, 'volume.base')
  t.is(saved.status, 1)
  t.regex(saved.stderr, /DM_BASE_CHANGED/)
  t.false((await readdir(folder)).some((each) => each.startsWith('volume.base')))
  const nowhere = await save(snapshots[0].thin_id, 1024, 'no-folder/x.base')
  t.is(nowhere.saved.status, 1)
  t.regex(nowhere.saved.stderr, /DM_OUTPUT_FAILED/)
})

/** A volume of some blocks, a snapshot of it, and what `happen` does next; in an image. */
async function imageOf(name: string, happen: (model: PoolModel) => void, sectors = 128): Promise<string> {
  const shape = { leafEntries: 252, internalEntries: 252, split: 'middle' } as const
  const model = new PoolModel({ random: new Random(1), shape, dataBlockSizeSectors: sectors })
  model.createThin(1)
  for (let block = 0; block < 20; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  happen(model)
  const path = join(folder, name)
  await writeFile(path, writeMetadataImage(model, { random: new Random(2) }).bytes)
  return path
}

test('what --size leaves out of a delta from a record is said', async (t) => {
  const image = await imageOf('left-out.img', (model) => {
    model.createSnapshot(3, 1)
    for (const block of [3, 18, 19]) model.write(1, block)
  })
  const { to } = await save(3, 20 * 65536, 'left-out.base', image)
  const ask = (...size: string[]) => runCommand(['delta', '1', '--base-record', to, '--metadata', image, ...size])
  const cut = await ask('--size', `${10 * 65536}`)
  t.is(cut.status, 0, cut.stderr)
  t.regex(cut.stderr, /--size leaves out 131072 bytes \(128 KiB\) that lie beyond it/)
  for (const whole of [await ask(), await ask('--size', `${20 * 65536}`)]) {
    t.is(whole.status, 0, whole.stderr)
    t.notRegex(whole.stderr, /leaves out/)
  }
})

test('a FIFO is no record, and nobody waits for its writer', async (t) => {
  const fifo = join(folder, 'fifo.base')
  execFileSync('mkfifo', [fifo])
  const image = await imageOf('fifo.img', () => undefined)
  const asked = await runCommand(['delta', '1', '--base-record', fifo, '--metadata', image])
  t.is(asked.status, 1)
  t.regex(asked.stderr, /DM_BASE_RECORD_FOREIGN/)
})

test('a pool that went back, another one, a base that was changed and mistaken options are refused', async (t) => {
  const nothing = () => undefined
  const later = await imageOf('later.img', (model) => {
    model.createSnapshot(3, 1)
  })
  const { to } = await save(3, 20 * 65536, 'later.base', later)
  const cases: [args: string[], says: RegExp][] = [
    [['2', '--metadata', await imageOf('earlier.img', nothing)], /its clock was 2 before.*DM_BASE_RECORD_ROLLED_BACK/],
    [
      ['1', '--metadata', await imageOf('other.img', (model) => model.createSnapshot(3, 1), 256)],
      /DM_BASE_RECORD_REBUILT/
    ],
    [
      [
        '1',
        '--metadata',
        await imageOf('changed.img', (model) => {
          model.createSnapshot(3, 1)
          model.discard(3, 4)
        })
      ],
      /still in the pool.*DM_BASE_RECORD_WRITABLE/
    ],
    [['1', '2', '--metadata', later], /takes the place of BASE/],
    [['1'], /goes with --metadata/]
  ]
  for (const [args, says] of cases) {
    const { status, stdout, stderr } = await runCommand(['delta', '--base-record', to, ...args])
    t.not(status, 0)
    t.is(stdout, '')
    t.regex(stderr, says)
  }
  const noRecord = await runCommand(['delta', '--base-record', later, '1', '--metadata', later])
  t.regex(noRecord.stderr, /DM_BASE_RECORD_FOREIGN/)
  t.true((await readFile(to)).length > 0)
})

test('an agent is asked which snapshots may go, and told to drop a record', async (t) => {
  for (const each of ['list', 'show', 'drop']) t.deepEqual(await helpLacks('base', each), [], each)
  const listed = await order('base', 'list')
  t.is(listed.status, 0, listed.stderr)
  t.deepEqual(listed.calls, [['listBases', {}]])
  t.regex(listed.stdout, /^SNAPSHOT +STATE/)
  t.regex(listed.stdout, /vg\/monday +stands .* 2 +its record stands for it\n/)
  t.regex(listed.stdout, /vg\/tuesday +must-stay +- .* it was not made read-only\n/)
  t.regex(listed.stdout, /the next backup after vg\/tuesday has to be a full one, unless it stays\n/)
  t.notRegex(listed.stdout, /after vg\/monday/, 'a later snapshot of its volume is the next base')
  t.regex(listed.stdout, /2 snapshots; records in \/var\/lib\/deltamapper\/bases; complete\n$/)
  const shown = await order('base', 'show', 'vg/monday', '-o', 'json')
  t.like(JSON.parse(shown.stdout), { handle: 'vg/monday', state: 'stands', gone_at_ms: 1_800_000_001_000 })
  t.deepEqual(shown.calls, [['getBase', { handle: 'vg/monday' }]])
  t.regex((await order('base', 'show', 'vg/monday')).stdout, /state +stands: its record stands for it\n/)
  const dropped = await order('base', 'drop', 'vg/monday', '--yes')
  t.deepEqual(dropped.calls, [['dropBase', { handle: 'vg/monday' }]])
  t.is(dropped.stdout, 'the record of vg/monday is removed\n')
  const unasked = await order('base', 'drop', 'vg/monday')
  t.deepEqual([unasked.status, unasked.calls], [2, []])
})

test('a snapshot taken a second time after the pool went back is found by its time, where there are no transactions', async (t) => {
  const withoutTransactions = (happen: (model: PoolModel) => void) => (model: PoolModel) => {
    model.transactionId = 5
    happen(model)
    model.transactionId = 5
  }
  const first = await imageOf(
    'first.img',
    withoutTransactions((model) => model.createSnapshot(3, 1))
  )
  const { to } = await save(3, 20 * 65536, 'first.base', first)
  const ask = (image: string) => runCommand(['delta', '--base-record', to, '1', '--metadata', image])
  const again = await imageOf(
    'again.img',
    withoutTransactions((model) => {
      model.write(1, 7)
      model.createSnapshot(4, 1)
    })
  )
  t.regex((await ask(again)).stderr, /thin device 4 is a snapshot of time 2.*DM_BASE_RECORD_ROLLED_BACK/)
  // A volume that was made since has that time too.
  const wentOn = await imageOf(
    'went-on.img',
    withoutTransactions((model) => {
      model.createSnapshot(3, 1)
      model.delete(3)
      model.transactionId = 5
      model.createThin(4)
      model.write(4, 1)
      model.write(1, 7)
    })
  )
  const answer = await ask(wentOn)
  t.is(answer.status, 0, answer.stderr)
})

test('a pool that needs a check, was shrunk or has no time left is refused', async (t) => {
  const snapshot = (model: PoolModel) => model.createSnapshot(3, 1)
  const image = await imageOf('state.img', snapshot)
  const { to } = await save(3, 20 * 65536, 'state.base', image)
  const bytes = await readFile(image)
  const spoilt = async (name: string, change: (superblock: Buffer) => void) => {
    const copy = Buffer.from(bytes)
    change(copy.subarray(0, 4096))
    seal(copy.subarray(0, 4096), 'superblock')
    await writeFile(join(folder, name), copy)
    return join(folder, name)
  }
  const ends: [image: string, code: RegExp][] = [
    [await spoilt('needs-check.img', (block) => block.writeUInt32LE(1, superblockField.flags)), /NEEDS_CHECK/],
    [await spoilt('shrunk.img', (block) => block.writeUInt32LE(3, superblockField.dataSpaceMapRoot)), /REBUILT/],
    [await spoilt('no-time.img', (block) => block.writeUInt32LE(2 ** 24 - 1, superblockField.time)), /TIME_EXHAUSTED/]
  ]
  for (const [spoiltImage, code] of ends) {
    const { status, stdout, stderr } = await runCommand(['delta', '--base-record', to, '1', '--metadata', spoiltImage])
    t.is(status, 1)
    t.is(stdout, '')
    t.regex(stderr, code)
  }
  for (const each of ['needs-check.img', 'no-time.img']) {
    const { saved } = await save(3, 20 * 65536, 'impossible.base', join(folder, each))
    t.regex(saved.stderr, /DM_BASE_RECORD_IMPOSSIBLE/)
  }
})
