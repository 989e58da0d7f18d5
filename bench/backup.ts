/**
 * What `deltamapper backup` takes from start to end: of a large volume in which nothing changed, and of one of which all changed, beside reading
 * the same with dd. Out of a pool's images on this machine's disk, and for what needs LVM and an agent in a kernel of the lab's (load-backup.ts is
 * what runs there).
 */
import { existsSync } from 'node:fs'
import { cp, mkdir, mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Chain } from '../src/backup/chain.ts'
import { digestOf } from '../src/backup/digest.ts'
import { openPoolMetadata } from '../src/devicemapper/thin/pool-metadata.ts'
import { projectFolder } from '../scripts/setup.mjs'
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { thinRestore } from '../test/support/thin-tools.ts'
import { mappedPool, unchangedPool } from './fragmented-pool.ts'
import { measureInLab } from './lab-load.ts'
import type { UnchangedFigures } from './load-backup.ts'
import { median, timeProcess, timeTree, type TreeRun } from './measure.ts'
import { writeRandom } from './nbd.ts'

/** The heading of its section in docs/benchmarks.md. */
export const backupHeading = '## Backups'

const command = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
const [BLOCK, GIB] = [65536, 2 ** 30]
const LARGE_BLOCKS = (340 * GIB) / BLOCK
const CHANGED_BLOCKS = GIB / BLOCK

/** @returns its section */
export async function measureBackup(rounds: number): Promise<string> {
  // The lab has no network.
  const tools = await ensureNbdTools('bookworm')
  const env = { ...process.env, PATH: `${tools}:${process.env['PATH'] ?? ''}` }
  const work = await mkdtemp(join(tmpdir(), 'backup-'))
  try {
    const data = await randomData()
    const unchanged = await measureUnchanged(work, env, rounds)
    const changed = await measureChanged(work, data, env, rounds)
    const lab = await measureInLab<UnchangedFigures>('load-backup.ts', rounds, 1, 3 * GIB, 2048)
    return section(rounds, unchanged, changed, lab)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Milliseconds, turn by turn. */
interface ChangedFigures {
  readonly backup: number[]
  readonly dd: number[]
  /** Of dd, onto the same disk. */
  readonly copy: number[]
}

interface HereFigures {
  readonly backup: TreeRun[]
  /** `deltamapper --version`. */
  readonly start: TreeRun[]
}

/** A GiB of random bytes on this machine's disk. */
async function randomData(): Promise<string> {
  const data = join(await mappedPool(CHANGED_BLOCKS), 'data.img')
  if (!existsSync(data)) await writeRandom(data)
  return data
}

/** A recorded pool with two snapshots of a volume: `s1`, in which nothing is mapped, and `s2`, in which all is. */
async function writtenBetween(blocks: number): Promise<string> {
  const folder = join(projectFolder, '.cache/bench', `written-between-${blocks}`)
  if (existsSync(join(folder, 'pool.json'))) return folder
  await mkdir(folder, { recursive: true })
  const device = (id: number, mapped: number, text: string) =>
    `<device dev_id="${id}" mapped_blocks="${mapped}" transaction="${id}" creation_time="${id}" snap_time="${id}">${text}</device>`
  const range = `<range_mapping origin_begin="0" data_begin="0" length="${blocks}" time="1"/>`
  const xml = [
    `<superblock uuid="" time="2" transaction="2" version="2" data_block_size="128" nr_data_blocks="${blocks}">`,
    ...[device(1, 0, ''), device(2, blocks, range), '</superblock>']
  ]
  await thinRestore(xml.join('\n'), join(folder, 'metadata.img'), 64 * 2 ** 20)
  const snapshots = [1, 2].map((id) => {
    return { name: `s${id}`, volume: 'volume', thin_id: id, size_bytes: blocks * BLOCK }
  })
  const description = { format: 1, data_block_size_bytes: BLOCK, volumes: [{ name: 'volume' }], snapshots }
  await writeFile(join(folder, 'pool.json'), JSON.stringify(description))
  return folder
}

/** All 340 GiB are mapped, and nothing changed: the data are never read, and are a hole on the disk. */
async function measureUnchanged(work: string, env: NodeJS.ProcessEnv, rounds: number): Promise<HereFigures> {
  const sizeBytes = LARGE_BLOCKS * BLOCK
  const folder = await unchangedPool(LARGE_BLOCKS, rounds + 2)
  const data = join(folder, 'data.img')
  if (!existsSync(data)) {
    await writeFile(data, '')
    await truncate(data, sizeBytes)
  }
  const root = join(work, 'unchanged')
  await mkdir(root)
  await firstPoint(root, folder, sizeBytes, env)
  const figures: HereFigures = { backup: [], start: [] }
  for (let round = 0; round <= rounds; round++) {
    const backup = await timeTree(process.execPath, backupWords(root, folder, `s${round + 2}`), env)
    const start = await timeTree(process.execPath, [command, '--version'], env)
    if (round === 0) continue
    figures.backup.push(backup)
    figures.start.push(start)
  }
  return figures
}

/** What a backup of `s1` would have made: a hole holds what an empty image holds. */
async function firstPoint(root: string, folder: string, sizeBytes: number, env: NodeJS.ProcessEnv): Promise<void> {
  const metadata = await openPoolMetadata(join(folder, 'metadata.img'), { liveRoot: false })
  const fingerprint = await metadata.fingerprintText(1)
  await metadata.close()
  const chain = await Chain.open(root, 'x/volume', 'exclusive')
  const file = '20260101T000000Z.qcow2'
  const part = chain.path(chain.partOf(file))
  await timeProcess('qemu-img', ['create', '-q', '-f', 'qcow2', part, String(sizeBytes)], env)
  const { sha256, bytes } = await digestOf(part)
  await chain.add({
    ...{ point: '20260101T000000Z', created: '2026-01-01T00:00:00.000Z', kind: 'full', size_bytes: sizeBytes },
    ...{ file, stored_bytes: bytes, sha256, snapshot: { handle: 'x/s1', fingerprint } },
    tools: { deltamapper: 'bench', qemu_img: 'bench' }
  })
  await chain.close()
}

/** An increment of a GiB, in which all changed, beside dd of the same GiB. */
async function measureChanged(work: string, data: string, env: NodeJS.ProcessEnv, rounds: number) {
  const folder = await writtenBetween(CHANGED_BLOCKS)
  if (!existsSync(join(folder, 'data.img'))) await symlink(data, join(folder, 'data.img'))
  const first = join(work, 'first')
  await mkdir(first)
  await timeProcess(process.execPath, backupWords(first, folder, 's1'), env)
  const figures: ChangedFigures = { backup: [], dd: [], copy: [] }
  for (let round = 0; round <= rounds; round++) {
    const root = join(work, `changed-${round}`)
    await cp(first, root, { recursive: true })
    const words = [`if=${data}`, 'of=/dev/null', 'iflag=direct', 'bs=2M']
    const dd = (await timeProcess('dd', words, env, 'ignore')).milliseconds
    const ontoDisk = [`if=${data}`, `of=${join(work, 'copy')}`, 'iflag=direct', 'bs=2M', 'conv=fsync']
    const copy = (await timeProcess('dd', ontoDisk, env, 'ignore')).milliseconds
    await rm(join(work, 'copy'))
    const backup = (await timeProcess(process.execPath, backupWords(root, folder, 's2'), env)).milliseconds
    await rm(root, { recursive: true })
    if (round === 0) continue
    figures.dd.push(dd)
    figures.copy.push(copy)
    figures.backup.push(backup)
  }
  return figures
}

function backupWords(root: string, folder: string, snapshot: string): string[] {
  return [command, 'backup', 'x/volume', '--snapshot', snapshot, '--recorded', `x=${folder}`, '--to', root]
}

function section(
  rounds: number,
  unchanged: HereFigures,
  changed: ChangedFigures,
  { blocks, dd, start, report, kept, record, processes }: UnchangedFigures
): string {
  const seconds = (ms: readonly number[]) => `${(median(ms) / 1000).toFixed(2)} s`
  const of = (runs: readonly TreeRun[]) => {
    return [seconds(runs.map((each) => each.milliseconds)), seconds(runs.map((each) => each.cpuMilliseconds))] as const
  }
  const speed = (ms: readonly number[]) => GIB / 2 ** 20 / (median(ms) / 1000)
  const reading = (ms: readonly number[]) => `${Math.round((340 * 1024) / speed(ms)).toLocaleString('en-US')} s`
  const row = (where: string, what: string, runs: readonly TreeRun[], read: string) =>
    `| ${where} | ${what} | ${of(runs).join(' | ')} | ${read} |`
  const share = (ms: readonly number[]) => median(changed.copy.map((each, i) => (each / ms[i]) * 100)).toFixed(0)
  const line = (what: string, ms: readonly number[], of = '') =>
    `| ${what} | ${seconds(ms)} | ${speed(ms).toFixed(0)} MiB/s | ${of} |`
  return `${backupHeading}

\`deltamapper backup\` from the start of its process to its end: ${rounds} turns of each, medians. Made by \`npm run bench -- --backup\`.

Nothing changed in a volume of 340 GiB, all of it mapped (64 KiB blocks: ${blocks.toLocaleString('en-US')} mappings). *CPU*: of the command and
all that it starts; on a busy machine, that is what holds. *Reading it*: at dd's speed of a GiB (O_DIRECT, 2 MiB at once). The images are on
this machine's disk. In the lab are a live LVM volume and an agent, in a kernel whose one processor all share, and whose system calls are
dear: a backup with the newest snapshot kept starts ${processes.own} processes there, and the agent another ${processes.agent}.

| where | what | time | CPU | reading it |
|---|---|--:|--:|--:|
${row('images, this machine', 'a backup, the newest snapshot kept', unchanged.backup, reading(changed.dd))}
${row('', '`deltamapper --version`', unchanged.start, '')}
${row('LVM and agent, the lab', 'a backup, the newest snapshot kept', kept, reading(dd))}
${row('', 'a backup, nothing kept', record, reading(dd))}
${row('', '`deltamapper --version`', start, '')}
${row('', '`lvs`', report, '')}

An increment of a GiB, all of which changed, out of images on this machine's disk, onto the same disk. It is on the disk when the command
ends, and so is dd's copy (\`conv=fsync\`). *Of dd's copy*: turn by turn, against the dd just before it.

| | time | speed | of dd's copy |
|---|--:|--:|--:|
${line('dd, reading', changed.dd)}
${line('dd, copying onto the same disk', changed.copy, '100 %')}
${line('an increment, from start to end', changed.backup, `${share(changed.backup)} %`)}
`
}
