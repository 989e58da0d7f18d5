/**
 * Whatever moment a backup, a prune or a restore of live volumes is killed at, by itself or with all that it has started: every point that was
 * finished restores byte for byte, and once the next run is over nothing is left running, mounted, frozen, activated, suspended or half-named.
 * Runs inside the kernel lab: node test/lab/run.ts test/kernel/backup-kills.test.ts
 */
import { type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  watch,
  writeFileSync
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { runCommand, startCommand } from '../cli/run-command.ts'
import { clientTest, toolFolder } from '../support/nbd-clients.ts'
import { run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent, processes } from './live-agent.ts'
import { createGroup, createThin, lvm, prepareLvm } from './lvm-setup.ts'

const group = 'vg'
const names = ['one', 'two']
const volumes = names.map((name) => `${group}/${name}`)
const { random, count: kills, again } = labRun(2)
const folder = mkdtempSync(join(tmpdir(), 'backup-'))
const [root, notes, tripping] = ['to', 'notes', 'tripping'].map((each) => join(folder, each))
const env: Record<string, string> = {}

/** Where a run is killed: at a moment of its length, or around a program that it starts, the first or second time. */
type Moment =
  | { readonly delayMs: number }
  | { readonly when: 'before' | 'in' | 'after'; readonly program: string; readonly word: string; readonly nth: number }

type Operation = 'backup' | 'prune' | 'restore'

/** Programs that an operation starts, and a word of theirs. */
const steps: Readonly<Record<Operation, readonly (readonly [string, string])[]>> = {
  backup: [
    ['fsfreeze', '--freeze'],
    ['fsfreeze', '--unfreeze'],
    ['lvm', 'lvcreate'],
    ['lvm', 'lvcreate'],
    ['lvm', 'lvremove'],
    ['qemu-img', 'convert'],
    ['qemu-img', 'map'],
    ['qemu-img', 'commit']
  ],
  prune: [['qemu-img', 'commit']],
  restore: [['qemu-img', 'convert']]
}

/**
 * Programs that say when they are started, and otherwise are what they are called: `before` and `after` they wait to be killed, or for the
 * mark to go.
 */
const wire = `#!/bin/bash
name=\${0##*/}
real=$(PATH=$REAL_PATH type -P "$name")
read -r when program word nth <<<"$TRIP_AT"
if [ "$name" = "$program" ] && [[ " $* " == *" $word "* ]]; then
  echo >>"$TRIP/count"
  if [ "$(wc -l <"$TRIP/count")" = "$nth" ]; then
    [ "$when" = after ] && { "$real" "$@"; status=$?; }
    touch "$TRIP/hit"
    [ "$when" = in ] || while [ -e "$TRIP/hit" ]; do sleep 0.05; done
    [ "$when" = after ] && exit "$status"
  fi
fi
exec "$real" "$@"
`

let agent: LiveAgent
let mounts: string[]
let mountsBefore: string
/** How long a whole run took last, in milliseconds. */
const lengths: Record<Operation, number> = { backup: 4000, prune: 1500, restore: 1500 }

test.before(async () => {
  for (const each of [root, notes, tripping]) mkdirSync(each)
  for (const name of ['fsfreeze', 'lvm', 'qemu-img']) {
    writeFileSync(join(tripping, name), wire)
    chmodSync(join(tripping, name), 0o755)
  }
  prepareLvm()
  createGroup(group, '/dev/ubda')
  lvm('lvcreate', '--type', 'thin-pool', '--size', '256m', '--chunksize', '64k', '--name', 'pool', group)
  mounts = names.map((name) => {
    const device = createThin(group, 'pool', name, 12)
    run('mkfs.ext4', ['-q', device])
    const mountPoint = mkdtempSync(join(tmpdir(), 'mounted-'))
    run('mount', [device, mountPoint])
    return mountPoint
  })
  createThin(group, 'pool', 'restored', 12)
  mountsBefore = readFileSync('/proc/self/mountinfo', 'utf8')
  agent = await LiveAgent.start()
  const real = `${toolFolder('bookworm')}:${process.env['PATH'] ?? ''}`
  Object.assign(env, {
    ...{ DELTAMAPPER_ENDPOINT: agent.address, LVM_SYSTEM_DIR: process.env['LVM_SYSTEM_DIR'] },
    ...{ PATH: `${tripping}:${real}`, REAL_PATH: real, TRIP: folder }
  })
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
  rmSync(folder, { recursive: true })
})

/** Writes down what each snapshot holds: the points that are made of it have to hold the same. */
const hook = `cd /dev/${group} && for d in *-backup-*; do [ -e ${notes}/$d ] || dd if=$d iflag=direct bs=1M status=none | sha256sum >${notes}/$d; done`

function wordsOf(operation: Operation): string[] {
  if (operation === 'prune') return ['backup', 'prune', root, '--keep', '1']
  if (operation === 'restore') {
    const [volume] = volumes
    const newest = pointsOf(volume).at(-1)?.point ?? ''
    const to = random.chance(0.5) ? `/dev/${group}/restored` : join(folder, 'image')
    return ['backup', 'restore', root, '--volume', volume, '--point', newest, '--to', to, '--force']
  }
  const kept = random.chance(0.5) ? ['--keep-snapshot'] : []
  const more = random.chance(0.3) ? ['--full'] : []
  return ['backup', ...volumes, '--to', root, '--keep', '3', '-o', 'json', '--after', hook, ...kept, ...more]
}

interface Point {
  readonly point: string
  readonly file: string
  readonly snapshot: { readonly handle: string }
}

function pointsOf(volume: string): Point[] {
  const manifest = join(root, volume, 'chain.json')
  if (!existsSync(manifest)) return []
  return (JSON.parse(readFileSync(manifest, 'utf8')) as { points: Point[] }).points
}

/** All that came of a process, itself first. */
function treeOf(pid: number): number[] {
  const all = processes()
  const tree = [pid]
  for (const each of tree) tree.push(...all.filter(({ parent }) => parent === each).map(({ pid }) => pid))
  return tree
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended meanwhile.
  }
}

/** @param whole with all that it has started */
function kill(child: ChildProcess, whole: boolean): void {
  const { pid = 0 } = child
  if (!whole) return send(pid, 'SIGKILL')
  const tree = treeOf(pid)
  for (const each of tree) send(each, 'SIGSTOP')
  for (const each of new Set([...tree, ...treeOf(pid)])) send(each, 'SIGKILL')
}

/** Runs until a moment, and kills. @returns whether it ended before */
async function runAndKill(words: string[], moment: Moment, whole: boolean): Promise<boolean> {
  for (const each of ['count', 'hit']) rmSync(join(folder, each), { force: true })
  const at = 'delayMs' in moment ? '' : `${moment.when} ${moment.program} ${moment.word} ${moment.nth}`
  const child = startCommand(words, { env: { ...env, TRIP_AT: at } })
  const ended = once(child, 'exit')
  child.stdout.resume()
  child.stderr.resume()
  if ('delayMs' in moment) await Promise.race([ended, sleep(moment.delayMs)])
  else {
    const tripped = Promise.withResolvers<undefined>()
    const watching = watch(folder, (_, name) => name === 'hit' && tripped.resolve(undefined))
    await Promise.race([ended, tripped.promise])
    watching.close()
    if (moment.when === 'in') await sleep(random.integer(0, 200))
  }
  const isOver = child.exitCode !== null
  kill(child, whole)
  await ended
  // What goes on without its command goes on now.
  rmSync(join(folder, 'hit'), { force: true })
  return isOver
}

/** Each has to hold what its snapshot held: all points, or the oldest and the newest. */
function checkPoints(t: ExecutionContext, all: boolean, what: string): void {
  for (const volume of volumes) {
    for (const [i, point] of pointsOf(volume).entries()) {
      if (!all && i > 0 && i < pointsOf(volume).length - 1) continue
      const to = join(folder, 'restored')
      const chain = join(root, volume)
      const there = existsSync(join(chain, point.file)) ? point.file : `${point.file}.part`
      run('bash', ['-c', `cd ${chain} && PATH=${env['REAL_PATH']} qemu-img convert -f qcow2 -O raw ${there} ${to}`])
      checkContent(t, volume, point, to, what)
    }
  }
}

function checkContent(t: ExecutionContext, volume: string, point: Point | undefined, path: string, what: string): void {
  const noted = readFileSync(join(notes, point?.snapshot.handle.split('/')[1] ?? ''), 'utf8')
  t.is(run('sha256sum', [path]).split(' ')[0], noted.split(' ')[0], `${volume} ${point?.point} in ${path}: ${what}`)
}

/** A file in each file system: this hangs where one is frozen, or suspended. */
function writeSomething(t: ExecutionContext, what: string): void {
  for (const each of mounts) {
    const file = join(each, `file-${random.integer(0, 4)}`)
    const text = `head -c ${random.integer(1, 500_000)} /dev/urandom > ${file} && sync -f ${file}`
    t.notThrows(() => run('timeout', ['--signal=KILL', '60', 'bash', '-c', text]), `frozen or suspended: ${what}`)
  }
}

function checkNothingIsLeft(t: ExecutionContext, kept: boolean, what: string): void {
  const all = lvm('lvs', '--noheadings', '-o', 'lv_name', group).split(/\s+/).filter(Boolean)
  const snapshots = all.filter((each) => each.includes('-backup-'))
  t.is(snapshots.length, kept ? names.length : 0, `${snapshots.join(' ')}: ${what}`)
  t.is(all.length - snapshots.length, 4, what)
  const devices = run('dmsetup', ['info', '-c', '--noheadings', '-o', 'suspended', '--separator', ' ']).split('\n')
  t.false(
    devices.some((each) => each.includes('Suspended')),
    what
  )
  const active = run('dmsetup', ['info', '-c', '--noheadings', '-o', 'name']).split('\n')
  t.is(active.filter((each) => each.includes('--backup--')).length, snapshots.length, what)
  t.is(readFileSync('/proc/self/mountinfo', 'utf8'), mountsBefore, what)
  const running = processes().filter(
    ({ pid, words }) => pid !== process.pid && /qemu-|fsfreeze|lvm lv(create|remove)| backup /.test(words)
  )
  t.deepEqual(running, [], what)
  for (const volume of volumes) {
    const files = ['chain.json', 'lock', ...pointsOf(volume).map(({ file }) => file)]
    t.deepEqual(readdirSync(join(root, volume)).sort(), files.sort(), what)
  }
  t.false(existsSync(join(folder, 'image.part')), what)
  t.deepEqual(
    readdirSync(tmpdir()).filter((each) => /^deltamapper-[0-9a-f]{12}-/.test(each)),
    [],
    what
  )
}

/** The first one has both file systems frozen, and nobody left to thaw them. Points are there from the second one on. */
function drawn(i: number): { operation: Operation; moment: Moment; whole: boolean } {
  if (i === 0) {
    return {
      operation: 'backup',
      moment: { when: 'after', program: 'fsfreeze', word: '--freeze', nth: 2 },
      whole: true
    }
  }
  const operation = random.pick<Operation>(['backup', 'backup', 'backup', 'prune', 'restore'])
  const whole = random.chance(0.5)
  if (i % 2 === 1) return { operation, whole, moment: { delayMs: random.integer(0, lengths[operation]) } }
  const [program, word] = random.pick(steps[operation])
  const nth = operation === 'restore' ? 1 : random.integer(1, 2)
  return { operation, whole, moment: { when: random.pick(['before', 'in', 'after']), program, word, nth } }
}

clientTest(
  'killed at any moment, alone or with all that it has started: finished points stay, and the next run leaves nothing behind',
  async (t) => {
    t.timeout(4 * 60 * 60_000)
    const counts: Record<string, number> = { points: 0, alone: 0, tree: 0, late: 0 }
    let isKept = false
    for (let i = 0; i < kills; i++) {
      writeSomething(t, again)
      const { operation, moment, whole } = drawn(i)
      const what = `kill ${i}, ${operation}, ${JSON.stringify(moment)}, ${whole ? 'tree' : 'alone'} (${again})`
      const before = pointsOf(volumes[0])
      const words = wordsOf(operation)
      const isLate = await runAndKill(words, moment, whole)
      counts[isLate ? 'late' : whole ? 'tree' : 'alone']++
      if (i % 3 === 0) checkPoints(t, true, `at once, ${what}`)
      // The next run: of restore and prune it is the same one.
      const next = operation === 'backup' ? wordsOf('backup') : words
      const began = performance.now()
      const { status, stderr } = await runCommand(next, { env: { ...env, TRIP_AT: '' } })
      lengths[operation] = performance.now() - began
      t.is(status, 0, `${what}: ${stderr}`)
      if (operation === 'restore') checkContent(t, volumes[0], before.at(-1), next[next.indexOf('--to') + 1], what)
      if (operation === 'backup') isKept = next.includes('--keep-snapshot')
      checkNothingIsLeft(t, isKept, what)
      // A prune goes down to one, and two more are made at most.
      const last = before.at(-1)?.point
      if (last !== undefined)
        t.true(
          pointsOf(volumes[0]).some(({ point }) => point === last),
          `${last} is gone: ${what}`
        )
      checkPoints(t, i % 5 === 4 || i === kills - 1, what)
      counts['points'] += volumes.flatMap(pointsOf).length
      writeSomething(t, what)
    }
    for (const each of mounts) run('umount', [each])
    t.log(JSON.stringify(counts))
  },
  ['bookworm']
)
