/**
 * Archives of borg 2 made with our maps, every one of them extracted: what borg is to leave alone is garbage in what it is given to read, so that a
 * byte which it reads too many shows.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { runCommand } from '../cli/run-command.ts'
import { readPoolDescription, type RecordedSnapshot, unpackRecordedPool } from '../fixtures/recorded-pool.ts'
import { ensureBorg2, ensureNbdTools } from '../lab/nbd-tools.ts'

export interface BorgReport {
  archives: number
  /** Bytes that borg was to read, and those that it was to leave alone. */
  readBytes: number
  sameBytes: number
  zeroBytes: number
}

/** @throws Error for an archive that is not its snapshot, byte for byte */
export async function borgArchives(): Promise<BorgReport> {
  const [borg, nbd, recorded] = [await ensureBorg2(), await ensureNbdTools('bookworm'), await unpackRecordedPool()]
  const { snapshots } = await readPoolDescription(recorded)
  const folder = await mkdtemp(join(tmpdir(), 'borg-'))
  const home = join(folder, 'home')
  await mkdir(home)
  await mkdir(join(folder, 'out'))
  const env = {
    ...process.env,
    HOME: home,
    USER: 'root',
    LOGNAME: 'root',
    BORG_PASSPHRASE: 'x',
    BORG_REPO: join(folder, 'repo')
  }
  const out = join(folder, 'out')
  const borg2 = (...words: string[]) => promisify(execFile)(join(borg, 'borg2'), words, { env, cwd: out })
  const report: BorgReport = { archives: 0, readBytes: 0, sameBytes: 0, zeroBytes: 0 }
  try {
    await borg2('repo-create', '-e', 'authenticated-blake3')
    for (const [volume, all] of Map.groupBy(snapshots, (each) => each.volume)) {
      for (const [i, snapshot] of all.entries()) {
        const map = join(folder, 'map')
        const text = await mapOf(recorded, all[i - 1], snapshot)
        await writeFile(map, text)
        const input = join(folder, volume)
        const words = [
          'nbd',
          `x/${snapshot.name}`,
          '--recorded',
          `x=${recorded}`,
          '--run',
          `'${nbd}/nbdcopy' "$uri" '${input}'`
        ]
        const { status, stderr } = await runCommand(words)
        if (status !== 0) throw new Error(stderr)
        await writeFile(input, spoiled(await readFile(input), text, report))
        const reuse = i === 0 ? [] : ['--reuse-from', all[i - 1].name]
        const options = ['--read-special', '--chunker-params', 'fixed,65536', '--map', map, ...reuse]
        await borg2('create', ...options, snapshot.name, input)
        await rm(input)
        await borg2('extract', snapshot.name)
        const extracted = join(out, input)
        const sha256 = createHash('sha256')
          .update(await readFile(extracted))
          .digest('hex')
        if (sha256 !== snapshot.sha256) throw new Error(`the archive of ${snapshot.name} is not the snapshot`)
        await rm(out, { recursive: true })
        await mkdir(out)
        report.archives++
      }
    }
    return report
  } finally {
    await rm(folder, { recursive: true })
  }
}

async function mapOf(recorded: string, base: RecordedSnapshot | undefined, target: RecordedSnapshot): Promise<string> {
  const ids = [...(base ? [base.thin_id] : []), target.thin_id].map(String)
  const sizes = ['--size', String(target.size_bytes), ...(base ? ['--base-size', String(base.size_bytes)] : [])]
  const words = [base ? 'delta' : 'allocated', ...ids, '--metadata', join(recorded, 'metadata.img'), ...sizes]
  const { status, stdout, stderr } = await runCommand([...words, '-o', 'borg-map'])
  if (status !== 0) throw new Error(stderr)
  return stdout
}

/** The content with garbage wherever the map says that it need not be read. */
function spoiled(content: Buffer, map: string, report: BorgReport): Buffer {
  for (const line of map.split('\n')) {
    const [start, length, type] = line.split(' ')
    if (!['data', 'same', 'zero'].includes(type)) continue
    if (type === 'data') report.readBytes += Number(length)
    else content.fill('garbage', Number(start), Number(start) + Number(length))
    if (type === 'same') report.sameBytes += Number(length)
    if (type === 'zero') report.zeroBytes += Number(length)
  }
  return content
}

if (import.meta.main) console.log(JSON.stringify(await borgArchives()))
