/**
 * Runs inside the kernel lab, started by backup.ts: backups of an LVM volume of 340 GiB, all of it mapped, in which nothing changed since the last
 * one, and increments of a volume on the disk. Prints the figures as JSON.
 *
 *   node bench/load-backup.ts --fio FILE --libraries FOLDERS --rounds N --seconds S
 *
 * The data of the large volume are on dm-zero, so only its metadata cost anything. They are made by thin_restore, and put into the pool as LVM
 * has it done after a repair. A first backup would read all of it; it is made of an empty image, which is what dm-zero holds.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Chain, readPoints } from '../src/backup/chain.ts'
import { digestOf } from '../src/backup/digest.ts'
import { run } from '../test/kernel/dmsetup.ts'
import { LiveAgent } from '../test/kernel/live-agent.ts'
import { createGroup, lvm, prepareLvm } from '../test/kernel/lvm-setup.ts'
import { ensureNbdTools } from '../test/lab/nbd-tools.ts'
import { loadArguments } from './fio-job.ts'
import { timeTree, type TreeRun } from './measure.ts'

/** Turn by turn. */
export interface UnchangedFigures {
  readonly blocks: number
  /** A backup, with the newest snapshot kept and with nothing kept. */
  readonly kept: TreeRun[]
  readonly record: TreeRun[]
  /** What is in each of them whatever is backed up: `deltamapper --version`; and a report of LVM's. */
  readonly start: TreeRun[]
  readonly report: TreeRun[]
  /** Reading a GiB of the volume with dd, O_DIRECT, 2 MiB at once, in milliseconds. */
  readonly dd: number[]
  /** How often a backup, with the newest snapshot kept, has LVM or qemu-img started: by itself, and by the agent. */
  readonly processes: { own: number; agent: number }
}

const [BLOCK, GIB, SECTOR] = [65536, 2 ** 30, 512]
const BLOCKS = (340 * GIB) / BLOCK
const volume = 'vg/large'
const command = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
const { rounds } = loadArguments()
const tools = await ensureNbdTools('bookworm')
const folder = mkdtempSync(join(tmpdir(), 'backup-'))

makeVolume()
const env = { ...process.env, PATH: `${tools}:${process.env['PATH'] ?? ''}` }
const [log, wires] = ['log', 'wires'].map((each) => join(folder, each))
const agent = await LiveAgent.start({ prefix: ['env', `PATH=${wired('agent')}`] })
const endpoint = { ...env, DELTAMAPPER_ENDPOINT: agent.address }
const processes = { own: 0, agent: 0 }
const figures: UnchangedFigures = { blocks: BLOCKS, kept: [], record: [], start: [], report: [], dd: [], processes }
await firstPoint()
for (let round = 0; round <= rounds; round++) {
  const kept = await backedUp(endpoint, '--keep-snapshot')
  const dd = ['if=/dev/vg/large', 'of=/dev/null', 'iflag=direct', 'bs=2M', `count=${GIB / 2 ** 21}`]
  const { milliseconds } = await timeTree('dd', [...dd, 'status=none'], env)
  const start = await timeTree(process.execPath, [command, '--version'], env)
  const report = await timeTree('lvm', ['lvs', 'vg'], env)
  // What is done only once is not what is measured.
  if (round === 0) continue
  for (const [name, run] of Object.entries({ kept, start, report })) figures[name as 'kept'].push(run)
  figures.dd.push(milliseconds)
}
rmSync(log)
await backedUp({ ...endpoint, PATH: wired('own') }, '--keep-snapshot')
for (const each of readFileSync(log, 'utf8').trim().split('\n')) processes[each as 'own']++
// (The first one of these has a base still.)
for (let round = 0; round <= rounds; round++) {
  const record = await backedUp(endpoint)
  if (round > 0) figures.record.push(record)
}
await agent.stop()
console.log(JSON.stringify(figures))
process.exit(0)

/** A PATH on which LVM and qemu-img note that they were started, and by whom. */
function wired(by: string): string {
  const bin = join(wires, by)
  mkdirSync(bin, { recursive: true })
  for (const program of ['lvm', 'qemu-img']) {
    const script = `#!/bin/sh\necho ${by} >> ${log}\nPATH=${env.PATH} exec ${program} "$@"\n`
    writeFileSync(join(bin, program), script, { mode: 0o755 })
  }
  return `${bin}:${env.PATH}`
}

function makeVolume(): void {
  prepareLvm({ mapped: true })
  const label = join(folder, 'label')
  run('truncate', ['--size', '32M', label])
  const loop = run('losetup', ['--find', '--show', label]).trim()
  const sectors = (342 * GIB) / SECTOR
  run('bash', ['-c', `printf '0 32768 linear ${loop} 32768\\n32768 ${sectors} zero\\n' | dmsetup create huge`])
  createGroup('vg', '/dev/ubda', '/dev/mapper/huge')
  lvm('lvcreate', '--size', '340g', '--name', 'data', 'vg', '/dev/mapper/huge')
  for (const name of ['first', 'restored']) lvm('lvcreate', '--size', '512m', '--name', name, 'vg', '/dev/ubda')
  const pool = ['--type', 'thin-pool', '--zero', 'n', '--chunksize', '64k', '--poolmetadataspare', 'n']
  lvm('lvconvert', ...pool, '--poolmetadata', 'vg/first', 'vg/data')
  lvm('lvcreate', '--type', 'thin', '--virtualsize', '340g', '--thinpool', 'data', '--name', 'large', 'vg')
  const [id, transaction] = lvm('lvs', '--noheadings', '-o', 'thin_id,transaction_id', '-a', 'vg').match(/\d+/g) ?? []
  lvm('lvchange', '--activate', 'n', 'vg/large', 'vg/data')
  const xml = join(folder, 'pool.xml')
  writeFileSync(
    xml,
    `<superblock uuid="" time="0" transaction="${transaction}" version="2" data_block_size="128" nr_data_blocks="${BLOCKS}">
<device dev_id="${id}" mapped_blocks="${BLOCKS}" transaction="0" creation_time="0" snap_time="0">
<range_mapping origin_begin="0" data_begin="0" length="${BLOCKS}" time="0"/></device></superblock>\n`
  )
  run('thin_restore', ['--input', xml, '--output', '/dev/vg/restored'])
  lvm('lvchange', '--activate', 'n', 'vg/restored')
  lvm('lvconvert', '--thinpool', 'vg/data', '--poolmetadata', 'vg/restored')
  lvm('lvchange', '--activate', 'y', volume)
}

/** A snapshot that is the chain's newest point, as a backup leaves it. */
async function firstPoint(): Promise<void> {
  const chain = await Chain.open(folder, volume, 'exclusive')
  const name = `large-backup-${chain.mark}-20260101T000000000Z`
  const words = [
    '--snapshot',
    '--setactivationskip',
    'n',
    '--permission',
    'r',
    '--addtag',
    `deltamapper.backup=${chain.mark}`
  ]
  lvm('lvcreate', ...words, '--name', name, volume)
  const file = '20260101T000000Z.qcow2'
  run('env', [`PATH=${env.PATH}`, 'qemu-img', 'create', '-q', '-f', 'qcow2', chain.path(chain.partOf(file)), '340G'])
  const { sha256, bytes } = await digestOf(chain.path(chain.partOf(file)))
  const uuid = lvm('lvs', '--noheadings', '-o', 'uuid', `vg/${name}`).trim()
  await chain.add({
    ...{ point: '20260101T000000Z', created: '2026-01-01T00:00:00.000Z', kind: 'full', size_bytes: 340 * GIB },
    ...{ file, stored_bytes: bytes, sha256, snapshot: { handle: `vg/${name}`, uuid } },
    tools: { deltamapper: 'bench', qemu_img: 'bench' }
  })
  await chain.close()
}

/** @throws where it is not an increment */
async function backedUp(environment: NodeJS.ProcessEnv, ...more: string[]): Promise<TreeRun> {
  const words = [command, 'backup', volume, '--to', folder, ...more]
  const took = await timeTree(process.execPath, words, environment)
  const newest = (await readPoints(folder, volume)).at(-1)
  if (newest?.kind !== 'increment') throw new Error(JSON.stringify(newest))
  return took
}
