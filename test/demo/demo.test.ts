/**
 * The demo proves what it says: it ends well on the recorded pool, and does not where the pool's content is not what the kernel read.
 */
import { execFile } from 'node:child_process'
import { readdir, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { readPoolDescription, unpackRecordedPool, type RecordedPool } from '../fixtures/recorded-pool.ts'
import { testFolder } from '../support/test-folder.ts'

const demo = fileURLToPath(new URL('../../demo/demo.ts', import.meta.url))
const recorded = await unpackRecordedPool()
const pool = await readPoolDescription(recorded)
const folder = testFolder(test)

interface Ending {
  status: number
  stdout: string
  stderr: string
}

function runDemo(...args: string[]): Promise<Ending> {
  return new Promise((resolve) => {
    execFile(process.execPath, [demo, ...args], (error, stdout, stderr) => {
      resolve({ status: error ? Number(error.code) : 0, stdout, stderr })
    })
  })
}

test.serial('every snapshot is restored to what the kernel read', async (t) => {
  const before = (await readdir(tmpdir())).filter((name) => name.startsWith('deltamapper-demo-'))
  const { status, stdout, stderr } = await runDemo()
  t.is(stderr, '')
  t.is(status, 0)
  for (const { name, description } of pool.snapshots) {
    t.regex(stdout, new RegExp(`^  ${name} .* identical\n    `, 'm'))
    t.true(stdout.includes(description))
  }
  t.true(stdout.includes(`All ${pool.snapshots.length} restored snapshots are identical`))
  t.is(stdout.match(/a cell, .* a row/g)?.length, pool.volumes.length)
  t.false(stdout.includes('\u001b'))
  const after = (await readdir(tmpdir())).filter((name) => name.startsWith('deltamapper-demo-'))
  t.deepEqual(after, before)
})

/** The recorded pool with a description that was tampered with. */
async function tampered(change: (pool: RecordedPool) => void): Promise<string> {
  const description = structuredClone(pool)
  change(description)
  for (const image of ['metadata.img', 'data.img']) await symlink(join(recorded, image), join(folder, image))
  await writeFile(join(folder, 'pool.json'), JSON.stringify(description))
  return folder
}

test.serial('one that is not is named, and the demo fails', async (t) => {
  const wrong = pool.snapshots[2]
  const { status, stdout, stderr } = await runDemo(
    await tampered(
      ({ snapshots }) => (snapshots[2].sha256 = wrong.sha256.replace(/^./, (digit) => (digit === '0' ? '1' : '0')))
    )
  )
  t.is(status, 1)
  t.regex(stdout, new RegExp(`^  ${wrong.name} .* DIFFERENT$`, 'm'))
  t.false(stdout.includes('are identical'))
  t.is(stderr, `demo: ${wrong.name}: the restored copy is not what the kernel recorded\n`)
})

test.serial('a folder that holds no pool is told', async (t) => {
  const { status, stderr } = await runDemo(join(folder, 'missing'))
  t.is(status, 1)
  t.regex(stderr, /^demo: ENOENT: .*pool\.json'\n$/)
})
