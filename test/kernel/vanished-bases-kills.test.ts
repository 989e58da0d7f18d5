/**
 * The agent is killed around the last message of an answer, and while its record is written. What was promised by an OK holds afterwards: the
 * base may go, and the next delta is right, or refused with the reason. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/vanished-bases-kills.test.ts
 *
 * LAB_COUNT kills, which follow from LAB_SEED.
 */
import { mkdtempSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeltamapperError } from '../../src/errors.ts'
import type { SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { ask, answerTo } from './ask.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, createPool, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'

const BLOCK = 65_536
const BLOCKS = 512
/** What an answer of this test takes, at the most; milliseconds. */
const LONGEST_MS = 400

const { random, count: kills, again } = labRun(2)

prepareLvm()
createGroup('kills', '/dev/ubda')
createPool('kills', 'pool', 256)
const volume = createThin('kills', 'pool', 'data', (BLOCKS * BLOCK) / 2 ** 20)
const folder = mkdtempSync(join(tmpdir(), 'vanished-kills-'))
const config = { catalog: join(folder, 'catalog') }

test.serial(`an answer that has ended OK has left a record, whenever the agent dies (${again})`, async (t) => {
  t.timeout(600_000 + kills * 120_000)
  const outcomes = new Map<string, number>()
  const count = (outcome: string) => outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
  writeBlocks(volume, 0, BLOCKS, 'a')
  let agent = await LiveAgent.start({ config })
  let client = agent.client()
  let previous: string | undefined
  for (let i = 0; i < kills; i++) {
    const [base, target] = [`base-${i}`, `target-${i}`].map((name) => `kills/${name}`)
    snapshot(base)
    const changed = new Set<number>()
    for (let write = 0; write < 6; write++) {
      const block = random.integer(0, BLOCKS - 1)
      writeBlocks(volume, block, 1, 'bcdefg'[write])
      changed.add(block)
    }
    // Half of the answers are whole, half are patched into the record of the one before.
    const question = previous !== undefined && random.chance(0.5) ? { base: previous, target: base } : { target: base }
    const ended = endsOk(client, question)
    // Around its end, which is soon.
    await sleep(random.integer(0, LONGEST_MS))
    await agent.kill()
    const isOk = await ended
    agent = await LiveAgent.start({ config })
    client = agent.client()
    t.deepEqual(
      readdirSync(join(folder, 'bases')).filter((each) => each.endsWith('.part')),
      [],
      'nothing half is left'
    )
    snapshot(target)
    lvm('lvremove', '--force', base)
    const due = [...changed].toSorted((one, other) => one - other)
    try {
      const extents = await answerTo(client, { base, target })
      const blocks = extents.flatMap(([offset, size]) =>
        Array.from({ length: size / BLOCK }, (_, k) => offset / BLOCK + k)
      )
      t.deepEqual(blocks, due, `${base}, kill ${i}`)
      count(isOk ? 'promised and right' : 'not promised, and right')
    } catch (error) {
      if (!(error instanceof DeltamapperError)) throw error
      t.true(error.code === 'DM_SNAPSHOT_NOT_FOUND' || error.code.startsWith('DM_BASE_RECORD_'), error.line)
      t.false(isOk && error.code !== 'DM_BASE_RECORD_UNWATCHED', `promised, and refused: ${error.line}`)
      count(`${isOk ? 'promised' : 'not promised'}, and refused with ${error.code}`)
    }
    await answerTo(client, { target })
    previous = target
  }
  t.log([...outcomes].map(([outcome, times]) => `${outcome}: ${times}`).join(', '))
  await agent.stop()
})

function snapshot(handle: string): void {
  lvm(
    'lvcreate',
    '--snapshot',
    '--setactivationskip',
    'y',
    '--permission',
    'r',
    '--name',
    handle.split('/')[1],
    'kills/data'
  )
}

/** Whether an answer has come to its end. */
async function endsOk(client: SnapshotMetadataClient, question: { base?: string; target: string }): Promise<boolean> {
  try {
    await Array.fromAsync((await ask(client, question, { maxResults: 2 })).batches)
    return true
  } catch {
    return false
  }
}
