import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test from 'ava'
import { decodeDeviceNumber } from '../../../native/device.ts'
import { type OpenerPlaces, writersOf } from '../../../src/agent/node/openers.ts'

/** A block device of this machine. */
const node = readdirSync('/dev')
  .map((name) => `/dev/${name}`)
  .find((path) => statSync(path, { throwIfNoEntry: false })?.isBlockDevice())
const withDevice = node === undefined ? test.skip : test
const device = node === undefined ? { major: 0, minor: 0 } : decodeDeviceNumber(statSync(node).rdev)
const number = `${device.major}:${device.minor}`

interface Described {
  /** How often it is open. */
  readonly open: number
  readonly holders?: readonly string[]
  /** Descriptors, as `PID SESSION DESCRIPTOR FLAGS`. */
  readonly descriptors?: readonly string[]
  readonly mounts?: string
  /** Loop devices on it: what `ro` says, by name. */
  readonly loops?: Readonly<Record<string, string>>
}

function put(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, text)
}

/** procfs and sysfs that say so. */
function places({ holders = [], descriptors = [], mounts = '', loops = {} }: Described): OpenerPlaces {
  const root = mkdtempSync(join(tmpdir(), 'openers-'))
  const [proc, sysfs] = [join(root, 'proc'), join(root, 'sys')]
  for (const folder of [`${proc}/self/fd`, `${sysfs}/block`, `${sysfs}/dev/block/${number}/holders`]) {
    mkdirSync(folder, { recursive: true })
  }
  for (const each of holders) put(`${sysfs}/dev/block/${number}/holders/${each}`, '')
  for (const each of descriptors) {
    const [pid, session, descriptor, flags] = each.split(' ')
    put(`${proc}/${pid}/stat`, `${pid} (a (program)) S 1 ${session} ${session} 0`)
    put(`${proc}/${pid}/fdinfo/${descriptor}`, `pos:\t0\nflags:\t${flags}\nmnt_id:\t24\n`)
    mkdirSync(`${proc}/${pid}/fd`, { recursive: true })
    symlinkSync(node ?? '', `${proc}/${pid}/fd/${descriptor}`)
  }
  put(`${proc}/1/mountinfo`, mounts)
  for (const [name, readOnly] of Object.entries(loops)) {
    put(`${sysfs}/block/${name}/loop/backing_file`, `${node}\n`)
    put(`${sysfs}/block/${name}/ro`, `${readOnly}\n`)
  }
  return { proc, sysfs }
}

async function writers(described: Described, isReadOnly = false): Promise<string | undefined> {
  const info = async () => ({ name: 'vg-o-real', openCount: described.open }) as never
  const found = await writersOf({ info }, device, { isReadOnly, places: places(described), pauseMs: 0 })
  return found && `${found.areKnown ? '' : '? '}${found.who}`
}

const READS = '0140000'
const WRITES = '0140002'

withDevice('holders, and whoever only reads', async (t) => {
  t.is(await writers({ open: 2, holders: ['dm-3', 'dm-4'] }), undefined)
  t.is(await writers({ open: 3, holders: ['dm-3'], descriptors: [`7 7 5 ${READS}`, `8 8 5 ${READS}`] }), undefined)
  t.is(await writers({ open: 1, mounts: `30 1 ${number} / /mnt rw - ext4 /dev/x ro,norecovery` }), undefined)
})

withDevice('who may write is named', async (t) => {
  t.is(await writers({ open: 2, holders: ['dm-3'], descriptors: [`7 7 5 ${WRITES}`] }), 'process 7 (a (program))')
  t.is(await writers({ open: 1, loops: { loop1: '0' } }), '/dev/loop1')
  // Set read-only under something that writes.
  t.is(await writers({ open: 1, loops: { loop1: '1' } }), '/dev/loop1')
  t.is(await writers({ open: 1, mounts: `30 1 ${number} / /mnt ro - ext4 /dev/x rw` }), '/mnt')
  const both = [`7 7 5 ${READS}`, `8 8 5 ${WRITES}`]
  t.is(await writers({ open: 2, descriptors: both, loops: { loop1: '0' } }), 'process 8 (a (program)), /dev/loop1')
})

withDevice('a loop device on what is read-only cannot write', async (t) => {
  t.is(await writers({ open: 1, loops: { loop1: '0' } }, true), undefined)
  t.is(await writers({ open: 1, descriptors: [`7 7 5 ${WRITES}`] }, true), 'process 7 (a (program))')
})

withDevice('what nobody explains is a writer', async (t) => {
  t.regex(
    (await writers({ open: 2, holders: ['dm-3'] })) ?? '',
    /cannot be seen from here \(vg-o-real is open 2 times\)/
  )
  t.regex((await writers({ open: 2, descriptors: [`7 7 5 ${READS}`] })) ?? '', /^\? .* cannot be seen/)
  // With O_PATH, nothing is opened.
  t.regex((await writers({ open: 1, descriptors: ['7 7 5 012000000'] })) ?? '', /^\? .* cannot be seen/)
  // A process and its child have one descriptor together.
  t.regex(
    (await writers({ open: 2, descriptors: [`7 7 5 ${READS}`, `8 7 5 ${READS}`] })) ?? '',
    /^\? .* cannot be seen/
  )
})

withDevice('who opens it for a moment is no writer, and a look ends early', async (t) => {
  let looks = 0
  const info = async () => ({ name: 'vg-o-real', openCount: ++looks < 3 ? 1 : 0 }) as never
  t.is(await writersOf({ info }, device, { places: places({ open: 0 }), pauseMs: 0 }), undefined)
  t.is(looks, 3)
})

withDevice('who comes while it is counted explains nothing, and who goes on reading does', async (t) => {
  const about = `${READS}\nmnt_id:\t24`
  const reader = (at: OpenerPlaces, pid: number, position: number) => {
    put(`${at.proc}/${pid}/fdinfo/5`, `pos:\t${position}\nflags:\t${about}\n`)
    mkdirSync(`${at.proc}/${pid}/fd`, { recursive: true })
    rmSync(`${at.proc}/${pid}/fd/5`, { force: true })
    symlinkSync(node ?? '', `${at.proc}/${pid}/fd/5`)
  }
  const whileCounted = async (during: (at: OpenerPlaces, count: number) => number, described: Described) => {
    const at = places(described)
    let count = 0
    const info = async () => ({ name: 'vg-o-real', openCount: during(at, ++count) }) as never
    return writersOf({ info }, device, { places: at, pauseMs: 0 })
  }
  const processes = (at: OpenerPlaces, count: number) => {
    rmSync(`${at.proc}/${count + 99}`, { recursive: true, force: true })
    reader(at, count + 100, 0)
    return 1
  }
  t.is((await whileCounted(processes, { open: 1 }))?.areKnown, false)
  const holders = (at: OpenerPlaces, count: number) => {
    put(`${at.sysfs}/dev/block/${number}/holders/dm-${count + 100}`, '')
    return count
  }
  t.is((await whileCounted(holders, { open: 1 }))?.areKnown, false)
  const onItsWay = (at: OpenerPlaces, count: number) => {
    reader(at, 7, 4096 * count)
    return 1
  }
  t.is(await whileCounted(onItsWay, { open: 1, descriptors: [`7 7 5 ${READS}`] }), undefined)
})
