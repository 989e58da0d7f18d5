/**
 * One life of a kernel that is going to be killed while an LVM volume with classic snapshots is written to. Started on a
 * disk that an earlier life has left behind, it activates the volume, asks the agent about every pair of snapshots, and
 * then writes, takes, removes and merges until it is gone. Runs inside the kernel lab, started by
 * test/lab/kernel-kills.ts:
 *
 *   node test/kernel/cow-kernel-life.ts --journal FILE --seed S --life N [--last]
 *
 * On the lab's disk are an ext4 with the agent's catalog, and a volume group. Says `up` when the volume is active and
 * the agent is about to start, and `busy` when everything was right. The last life ends instead.
 */
import { existsSync, mkdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { answerTo, failure } from './ask.ts'
import { askAgent } from './classic-agent.ts'
import { CowKernelJournal } from './cow-kernel-journal.ts'
import { CowLife, type LifeSnapshot } from './cow-life.ts'
import { createLinear, run } from './dmsetup.ts'
import { lifeArguments } from './life-arguments.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, lvm, prepareLvm } from './lvm-setup.ts'

const MEBIBYTE = 2 ** 20
const CATALOG_BYTES = 48 * MEBIBYTE
const GROUP_BYTES = 200 * MEBIBYTE
const FEWEST_SNAPSHOTS = 3
const MOST_SNAPSHOTS = 4
const MERGED_WITHIN_MS = 600_000

const folder = '/run/mnt/agent'
const group = 'kills'
const origin = 'o'

const { journalPath, isLast, random } = lifeArguments()
const journal = new CowKernelJournal(journalPath)
const isFirst = !existsSync(journalPath)

prepareLvm({ mapped: true })
const disk = createLinear('catalog', '/dev/ubda', 0, CATALOG_BYTES)
if (isFirst) run('mkfs.ext4', ['-q', disk])
mkdirSync(folder, { recursive: true })
run('mount', ['-t', 'ext4', disk, folder])
const part = createLinear('group', '/dev/ubda', CATALOG_BYTES, GROUP_BYTES)
if (isFirst) createGroup(group, part)
else lvm('vgchange', '--activate', 'y', group)
const life = new CowLife(group, origin, random, isFirst ? {} : { taken: journal.taken })

const handle = (name: string) => `${group}/${name}`
/** LVM's names of volumes, those being merged in brackets. */
const names = () => lvm('lvs', '--all', '--noheadings', '--options', 'lv_name', group).trim().split(/\s+/)

/** What was only begun is taken away. @returns a snapshot that is being merged */
function settle(): LifeSnapshot | undefined {
  const there = names()
  let merging: LifeSnapshot | undefined
  for (const [name, { state, snapshot }] of journal.snapshots) {
    if (snapshot && (state === 'taken' || (state === 'merging' && there.includes(name)))) {
      if (!there.includes(name)) throw new Error(`${name} was taken, and is not there`)
      life.snapshots.push(snapshot)
    } else if (state === 'merging' && there.includes(`[${name}]`)) merging = snapshot
    else {
      if (there.includes(name)) lvm('lvremove', '--force', handle(name))
      journal.say({ kind: 'removed', name })
    }
  }
  return merging
}

/** While a merge goes on, its origin's snapshots are refused; then it comes to its end. */
async function checkMerge(merging: LifeSnapshot): Promise<void> {
  const { code } = await failure(answerTo(client, { target: handle(merging.name) }))
  // (It may come to its end while LVM is asked about it.)
  const due = ['DM_COW_MERGING', 'DM_SNAPSHOT_NOT_FOUND', 'DM_SNAPSHOT_CHANGED', 'DM_LVM_FAILED']
  if (!due.includes(code)) throw new Error(`a merge is refused with ${code}`)
  const until = performance.now() + MERGED_WITHIN_MS
  while (names().includes(`[${merging.name}]`)) {
    if (performance.now() > until) throw new Error(`${merging.name} is never merged`)
    await sleep(500)
  }
  journal.say({ kind: 'removed', name: merging.name })
}

function take(mebibytes?: number): void {
  const name = `s${journal.taken}`
  journal.say({ kind: 'taking', name })
  journal.say({ kind: 'taken', name, snapshot: life.take({ name, ...(mebibytes !== undefined && { mebibytes }) }) })
}

function step(): void {
  life.write()
  const { snapshots } = life
  const [oldest] = snapshots
  const what = random.pick(['nothing', 'take', 'take', 'small', 'extend', 'merge'] as const)
  if (what === 'take') take()
  if (what === 'small') take(2)
  const whole = snapshots.filter(({ lost }) => lost === undefined)
  if (what === 'extend' && whole.length > 0) {
    lvm('lvextend', '--size', '+1m', handle(random.pick(whole).name))
  }
  if (snapshots.length > MOST_SNAPSHOTS) {
    journal.say({ kind: 'removing', name: oldest.name })
    life.remove(oldest)
    journal.say({ kind: 'removed', name: oldest.name })
  }
  if (what === 'merge' && whole.length > 1) {
    const { name } = random.pick(whole)
    const merged = snapshots.find((each) => each.name === name)
    if (!merged) return
    journal.say({ kind: 'merging', name })
    life.merge(merged)
    journal.say({ kind: 'removed', name })
  }
}

const merging = settle()
console.log('up')
// (One walker: most of what a life costs is the agent's start.)
const config = { catalog: `${folder}/catalog.sqlite`, logLevel: 'info', walkers: 1 }
const agent = await LiveAgent.start({ config })
const client = agent.client()
if (merging) await checkMerge(merging)
// (However short a life is, the next one has something to ask about.)
for (let missing = FEWEST_SNAPSHOTS - life.snapshots.length; missing > 0; missing--) {
  life.write()
  take()
}
life.write()
await life.check(askAgent(client, group))
const { pairs, refused } = life.counts
journal.say({ kind: 'checked', pairs, refused, merging: merging !== undefined })
if (isLast) {
  const status = await agent.stop()
  if (status !== 0) throw new Error(`the agent ended with status ${status}: ${agent.stderr}`)
  process.exit(0)
}
console.log('busy')
for (;;) {
  for (let i = random.integer(1, 8); i > 0; i--) step()
  await life.check(askAgent(client, group))
}
