/**
 * A short differential run, and proof that it finds what it is there for.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { addTallies, askKept, compareEngines, EnginesDisagree, keepSmall, noTally } from './differential.ts'
import { restoredPool, writtenPool } from './random-pool.ts'
import { testFolder } from './test-folder.ts'
import { scriptedTools, toolCommands, toolVersions } from './tool-commands.ts'

const commands = await toolCommands()
const folder = testFolder(test)
const toolTest = typeof commands === 'string' ? test.skip : test

for (const version of toolVersions) {
  toolTest(`a short run: both engines agree on every pair of every pool (${version})`, async (t) => {
    if (typeof commands === 'string') return
    let tally = noTally
    for (let seed = 4000; seed < 4008; seed++) {
      const pool = await (seed % 4 === 3 ? restoredPool(seed, folder) : writtenPool(seed, folder))
      if (!pool.readableByTools) continue
      tally = addTallies(
        tally,
        await compareEngines({ ...pool, deviceIds: pool.deviceIds.slice(0, 3) }, commands[version], seed)
      )
      await rm(pool.path)
    }
    t.true(tally.pairs > 40)
    t.true(tally.extents > 500)
    // Some bases are smaller than their targets.
    t.true(tally.sameBeyondBase > 0)
  })
}

/** Calls a run of changed blocks the same, as thin_delta 1.0.0 to 1.0.4 did; or leaves out mappings, as a torn dump would. */
const faults = {
  'a changed block called the same': String.raw`real "$@" | sed '0,/<different /s//<same /'`,
  'a discarded block left out': String.raw`real "$@" | sed '/<left_only /d'`,
  'a range one block too short': String.raw`real "$@" | sed 's/\(<right_only begin="[0-9]*" length="\)2"/\11"/'`
}

for (const [title, script] of Object.entries(faults)) {
  toolTest(`planted: ${title}; it is found, made small and kept`, async (t) => {
    if (typeof commands === 'string') return
    const command = await scriptedTools(folder, { thin_delta: script, thin_dump: 'real "$@"' }, commands['0.9.0'])
    let found: EnginesDisagree | undefined
    let seed = 5000
    for (; found === undefined && seed < 5050; seed++) {
      const pool = await writtenPool(seed, folder, 'dense')
      found = await compareEngines(pool, command, seed).then(
        () => undefined,
        (error: unknown) => {
          if (error instanceof EnginesDisagree) return error
          throw error
        }
      )
    }
    if (found === undefined) return t.fail('it was not found')
    const kept = await keepSmall(found, command, join(folder, 'kept'))
    // One block, or a run of two, is all it takes.
    t.true(kept.mappings !== undefined && kept.mappings <= 4, String(kept.mappings))

    // What was kept shows it, and with tools that are right there is nothing to be seen.
    const again = await askKept(kept.folder, command)
    t.false(again.agreed)
    // Most are found by what the device details say that is mapped, before a byte is compared.
    t.regex(again.says, /they part at byte [0-9]+|thin_delta finds \d+ data blocks/)
    for (const version of toolVersions) t.true((await askKept(kept.folder, commands[version])).agreed)
  })
}

toolTest('tools that fail are no agreement', async (t) => {
  const command = await scriptedTools(folder, { thin_delta: 'exit 1', thin_dump: 'exit 1' })
  const pool = await writtenPool(6000, folder, 'deep')
  await t.throwsAsync(compareEngines(pool, command, 1), {
    instanceOf: EnginesDisagree,
    message: /gave no answer.*status 1/
  })
})
