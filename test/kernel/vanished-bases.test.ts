/**
 * Bases that are gone, as an agent answers about them: the same answer as before, or a refusal. Runs inside the kernel lab: node
 * test/lab/run.ts test/kernel/vanished-bases.test.ts
 */
import { mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { BaseRecordReader } from '../../src/devicemapper/thin/base-record/reader.ts'
import { runCommand } from '../cli/run-command.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import type { Extent } from '../support/expected.ts'
import { ask, answerTo, failure } from './ask.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createPool, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'

const BLOCK = 65_536
const GROUP = 'bases'

prepareLvm()
createGroup(GROUP, '/dev/ubda')
createPool(GROUP, 'pool', 256)
const volume = createThin(GROUP, 'pool', 'data', 64)

const folder = mkdtempSync(join(tmpdir(), 'vanished-'))
const config = { catalog: join(folder, 'catalog') }
let agent: LiveAgent
let client: SnapshotMetadataClient

async function startAgent(): Promise<void> {
  agent = await LiveAgent.start({ config })
  client = agent.client()
}

test.before(startAgent)
test.after.always(() => agent.stop())

/** Read-only, as TopoLVM makes them: a moment after they were taken. */
function snapshot(name: string): void {
  lvm('lvcreate', '--snapshot', '--setactivationskip', 'y', '--name', name, `${GROUP}/data`)
  lvm('lvchange', '--permission', 'r', `${GROUP}/${name}`)
}

const uuidOf = (name: string) => lvm('lvs', '--noheadings', '--options', 'uuid', `${GROUP}/${name}`).trim()
const remove = (name: string) => lvm('lvremove', '--force', `${GROUP}/${name}`)
const full = (name: string) => answerTo(client, { target: `${GROUP}/${name}` })
const delta = (base: string, target: string) =>
  answerTo(client, { base: `${GROUP}/${base}`, target: `${GROUP}/${target}` })

/** A command of deltamapper's, at the agent. */
async function command(...words: string[]) {
  return runCommand([...words, '--endpoint', agent.address])
}

async function refusal(base: string, target: string): Promise<string> {
  return (await failure(ask(client, { base: `${GROUP}/${base}`, target: `${GROUP}/${target}` }))).code
}

/** Until a look of the agent's own, every 10 seconds, has found that a snapshot is not what a record can stand for. */
async function untilMustStay(handle: string): Promise<void> {
  const admin = connectAdmin(agent.address)
  try {
    while ((await admin.getBase({ handle })).state !== 'must-stay') await sleep(200)
  } finally {
    admin.close()
  }
}

function extent(block: number, count = 1): Extent {
  return [block * BLOCK, count * BLOCK]
}

test.serial('a base may go once its answer has ended: the same answer comes from its record', async (t) => {
  t.timeout(600_000)
  writeBlocks(volume, 0, 100, 'a')
  snapshot('mon')
  t.deepEqual(await full('mon'), [extent(0, 100)])
  writeBlocks(volume, 10, 5, 'b')
  writeBlocks(volume, 300, 2, 'b')
  snapshot('tue')
  const monTue = [extent(10, 5), extent(300, 2)]
  t.deepEqual(await delta('mon', 'tue'), monTue)
  const records = readdirSync(join(folder, 'bases'))
  t.is(records.length, 2, 'a full record, and one patched with the delta')
  for (const each of records) {
    const record = await BaseRecordReader.open(join(folder, 'bases', each))
    const { metadataUuid, dataUuid } = record.header.pool
    t.deepEqual([metadataUuid, dataUuid], [uuidOf('pool_tmeta'), uuidOf('pool_tdata')])
    await record.close()
  }
  remove('mon')
  t.deepEqual(await delta('mon', 'tue'), monTue)

  writeBlocks(volume, 12, 1, 'c')
  writeBlocks(volume, 50, 1, 'c')
  snapshot('wed')
  const tueWed = [extent(12), extent(50)]
  t.deepEqual(await delta('tue', 'wed'), tueWed)
  remove('tue')
  t.deepEqual(await delta('tue', 'wed'), tueWed, 'from a record that was patched')
  t.deepEqual(await delta('mon', 'wed'), [extent(10, 5), extent(50), extent(300, 2)])
  // What was gone on with in the pool since does not matter: blocks are freed and used again.
  writeBlocks(volume, 0, 100, 'd')
  t.deepEqual(await delta('mon', 'wed'), [extent(10, 5), extent(50), extent(300, 2)])
  snapshot('thu')
  t.deepEqual(await delta('tue', 'thu'), [extent(0, 100)])
  t.is(await refusal('never', 'thu'), 'DM_SNAPSHOT_NOT_FOUND')
  const admin = connectAdmin(agent.address)
  t.teardown(() => admin.close())
  const states = (await admin.listBases({})).bases.map(({ handle, state, answers }) => `${handle} ${state} ${answers}`)
  t.deepEqual(states.toSorted(), [
    'bases/mon stands 3',
    'bases/thu may-go 0',
    'bases/tue stands 2',
    'bases/wed may-go 0'
  ])
})

test.serial('a record that travelled with its backup is taken back, and no other', async (t) => {
  t.timeout(600_000)
  const file = (name: string) => join(folder, `${name}.base`)
  const lent = (record: string, target: string) =>
    command('delta', '--base-record', record, `${GROUP}/${target}`, '-o', 'ndjson')
  const own = await command('delta', `${GROUP}/tue`, `${GROUP}/thu`, '-o', 'ndjson')
  t.is(own.status, 0, own.stderr)
  for (const name of ['tue', 'wed']) {
    const saved = await command('base', 'save', `${GROUP}/${name}`, '--to', file(name))
    t.regex(saved.stderr, /complete\n$/)
  }
  t.is((await command('base', 'drop', `${GROUP}/tue`, '--yes')).status, 0)
  t.is(await refusal('tue', 'thu'), 'DM_BASE_RECORD_NONE')
  t.deepEqual((await lent(file('tue'), 'thu')).stdout, own.stdout)
  t.deepEqual(await delta('tue', 'thu'), [extent(0, 100)], 'the agent has it again')
  // While a base lives, it answers for itself.
  const living = await lent(file('wed'), 'thu')
  t.deepEqual(living.stdout, (await command('delta', `${GROUP}/wed`, `${GROUP}/thu`, '-o', 'ndjson')).stdout)
  const id = lvm('lvs', '--noheadings', '--options', 'thin_id', `${GROUP}/wed`).trim()
  const byHand = ['--metadata', '/dev/mapper/bases-pool_tmeta', '--live-root', '--to', file('hand')]
  const made = await runCommand(['base', 'save', id, ...byHand])
  t.is(made.status, 0, made.stderr)
  t.regex((await lent(file('hand'), 'thu')).stderr, /no agent has made it.*DM_BASE_RECORD_FOREIGN/)
})

test.serial('an agent that was killed answers from the records that it finds', async (t) => {
  t.timeout(600_000)
  await agent.kill()
  await startAgent()
  t.deepEqual(await delta('wed', 'thu'), [extent(0, 100)])
  t.deepEqual(await delta('mon', 'wed'), [extent(10, 5), extent(50), extent(300, 2)])
})

test.serial(
  'a base that was writable at a look, or changed at one, has no record, also once it is read-only again',
  async (t) => {
    t.timeout(600_000)
    for (const [name, meanwhile] of [
      ['looked-at', () => untilMustStay(`${GROUP}/looked-at`)],
      ['seen', () => answerTo(client, { target: `${GROUP}/seen` })],
      ['written', () => undefined]
    ] as const) {
      snapshot(name)
      await full(name)
      const record = join(folder, `${name}.base`)
      if (name === 'written') await command('base', 'save', `${GROUP}/${name}`, '--to', record)
      lvm('lvchange', '--permission', 'rw', `${GROUP}/${name}`)
      lvm('lvchange', '--activate', 'y', '--ignoreactivationskip', `${GROUP}/${name}`)
      await meanwhile()
      if (name === 'written') writeBlocks(`/dev/${GROUP}/${name}`, 70, 1, 'e')
      lvm('lvchange', '--activate', 'n', `${GROUP}/${name}`)
      lvm('lvchange', '--permission', 'r', `${GROUP}/${name}`)
      snapshot(`after-${name}`)
      // A question is a look, also one that is refused.
      if (name === 'written') t.is(await refusal(name, `after-${name}`), 'DM_BASE_CHANGED')
      remove(name)
      t.is(await refusal(name, `after-${name}`), 'DM_BASE_RECORD_WRITABLE')
      if (name !== 'written') continue
      const lent = await command('delta', '--base-record', record, `${GROUP}/after-${name}`)
      t.regex(lent.stderr, /DM_BASE_RECORD_WRITABLE/)
    }
    lvm('lvcreate', '--snapshot', '--name', 'own', `${GROUP}/data`)
    await full('own')
    snapshot('later')
    remove('own')
    t.is(
      await refusal('own', 'later'),
      'DM_BASE_RECORD_WRITABLE',
      'LVM makes snapshots writable unless it is told otherwise'
    )
  }
)

test.serial('a handle that has meant two snapshots, and a base that goes by another name, have none', async (t) => {
  t.timeout(600_000)
  snapshot('twice')
  await full('twice')
  remove('twice')
  snapshot('twice')
  await full('twice')
  snapshot('other')
  t.is(await refusal('twice', 'other'), 'DM_BASE_CHANGED')
  remove('twice')
  t.is(await refusal('twice', 'other'), 'DM_BASE_RECORD_AMBIGUOUS')
  snapshot('before')
  await full('before')
  lvm('lvrename', GROUP, 'before', 'renamed')
  snapshot('another')
  t.is(await refusal('before', 'another'), 'DM_BASE_RECORD_STILL_THERE')
})

test.serial('a pool that was not active all the time ends its records', async (t) => {
  t.timeout(600_000)
  t.deepEqual(await delta('mon', 'wed'), [extent(10, 5), extent(50), extent(300, 2)])
  lvm('vgchange', '--activate', 'n', GROUP)
  lvm('vgchange', '--activate', 'y', GROUP)
  t.is(await refusal('mon', 'wed'), 'DM_BASE_RECORD_INTERRUPTED')
  const lent = await command('delta', '--base-record', join(folder, 'tue.base'), `${GROUP}/thu`)
  t.regex(lent.stderr, /DM_BASE_RECORD_INTERRUPTED/)
  t.is(await refusal('wed', 'thu').catch(() => 'answered'), 'answered', 'while it lives, a base is a base')
})
