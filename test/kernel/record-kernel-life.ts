/**
 * One life of a kernel that is going to be killed while an agent answers about snapshots that are removed as soon as
 * their answer has ended. Started on a disk that an earlier life has left behind, it asks the agent about every snapshot
 * that was promised a record, and then writes, discards, answers and removes until it is gone. Runs inside the kernel
 * lab, started by test/lab/kernel-kills.ts:
 *
 *   node test/kernel/record-kernel-life.ts --journal FILE --seed S --life N [--last]
 *
 * On the lab's disk are an ext4 with the agent's catalog and records, and a volume group. Says `up` when the pool is
 * active and the agent is about to start, and `busy` when everything was right. The last life ends instead.
 */
import { appendFileSync, existsSync, mkdirSync } from 'node:fs'
import { createLinear, run } from './dmsetup.ts'
import { readJournal } from './kernel-life-journal.ts'
import { lifeArguments } from './life-arguments.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, lvm, prepareLvm } from './lvm-setup.ts'
import { noPutBackTally, PutBackLife, type Served } from './put-back-life.ts'

const MEBIBYTE = 2 ** 20
const CATALOG_BYTES = 48 * MEBIBYTE
const GROUP_BYTES = 200 * MEBIBYTE

const folder = '/run/mnt/agent'
const group = 'gone'

/** What the lives leave to each other, in a file of the host's. */
export type RecordLifeEntry =
  { readonly kind: 'served'; readonly name: string; readonly content: number[] } | RecordLifeChecked

/** What a life has found: answers that were right after its start, and those that were refused, by code. */
export interface RecordLifeChecked {
  readonly kind: 'checked'
  readonly right: number
  readonly refused: Readonly<Record<string, number>>
}

const { journalPath, life, isLast, random } = lifeArguments()
const isFirst = !existsSync(journalPath)
/** A line is written by one call, so that a kill cuts none short. */
const say = (entry: RecordLifeEntry) => appendFileSync(journalPath, `${JSON.stringify(entry)}\n`)

prepareLvm({ mapped: true })
const disk = createLinear('catalog', '/dev/ubda', 0, CATALOG_BYTES)
if (isFirst) run('mkfs.ext4', ['-q', disk])
mkdirSync(folder, { recursive: true })
run('mount', ['-t', 'ext4', disk, folder])
const part = createLinear('group', '/dev/ubda', CATALOG_BYTES, GROUP_BYTES)
if (isFirst) createGroup(group, part)
else lvm('vgchange', '--activate', 'y', group)

const before: Served[] = []
if (!isFirst) {
  const there = lvm('lvs', '--noheadings', '--options', 'lv_name', group).trim().split(/\s+/)
  for (const entry of readJournal<RecordLifeEntry>(journalPath)) {
    if (entry.kind !== 'served') continue
    const { name } = entry
    before.push({ name, content: Uint32Array.from(entry.content), record: undefined, isThere: there.includes(name) })
  }
  // What was taken and never served.
  const left = there.filter((name) => /-s\d+$/.test(name) && !before.some((each) => each.name === name))
  if (left.length > 0) lvm('lvremove', '--force', ...left.map((name) => `${group}/${name}`))
}
const tally = noPutBackTally()
const pool = new PutBackLife(
  { group, pool: 'pool', passdown: true, records: `${folder}/bases`, prefix: `l${life}`, ...(!isFirst && { before }) },
  random,
  tally
)
console.log('up')
// (One walker: most of what a life costs is the agent's start.)
const agent = await LiveAgent.start({ config: { catalog: `${folder}/catalog.sqlite`, walkers: 1 } })
const client = agent.client()

async function served(base?: Served): Promise<Served> {
  const target = await pool.snapshot(client, base)
  say({ kind: 'served', name: target.name, content: [...target.content] })
  return target
}

/** @throws Error for what was refused although nothing has ended it */
async function askSameKernel(): Promise<void> {
  const refused = { ...tally.refused }
  await pool.askAll(client, { isLvmBack: false, isSeen: false })
  const codes = Object.keys(tally.refused).filter((code) => tally.refused[code] !== (refused[code] ?? 0))
  // (In a lab that has to wait, looks come late.)
  const wrong = codes.filter((code) => !['DM_BASE_RECORD_INTERRUPTED', 'DM_BASE_RECORD_UNWATCHED'].includes(code))
  if (wrong.length > 0) throw new Error(`refused with ${wrong.join(', ')}`)
}

if (!isFirst) await pool.askAll(client, { isLvmBack: false, isSeen: false })
say({ kind: 'checked', right: tally.right, refused: tally.refused })
if (isLast) {
  const status = await agent.stop()
  if (status !== 0) throw new Error(`the agent ended with status ${status}: ${agent.stderr}`)
  process.exit(0)
}
// (However short a life is, the next one has something to ask about.)
let base = await served()
await goOn()
console.log('busy')
for (;;) {
  await goOn()
  if (random.chance(0.3)) await askSameKernel()
}

/** A snapshot is served, its base goes, and blocks of that are discarded. */
async function goOn(): Promise<void> {
  pool.write(random.integer(1, 12))
  const target = await served(base)
  const others = pool.served.filter(({ isThere, name }) => isThere && name !== target.name)
  for (const each of others) pool.remove(each)
  pool.discard(random.integer(1, 20))
  pool.write(random.integer(1, 12))
  base = target
}
