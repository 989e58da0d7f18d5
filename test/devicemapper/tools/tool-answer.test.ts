/**
 * What the tools answer against what our own reading does, on every kind of image, and what they print where they answer nothing.
 */
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { openPoolMetadata, type PoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import type { ToolCommand } from '../../../src/devicemapper/tools/tool.ts'
import { type ToolAnswer, toolAnswer } from '../../../src/devicemapper/tools/tool-answer.ts'
import { readPoolDescription, unpackRecordedPool } from '../../fixtures/recorded-pool.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { Random } from '../../support/random.ts'
import { flavours, restoredPool, type TestPool, writtenPool } from '../../support/random-pool.ts'
import { testFolder } from '../../support/test-folder.ts'
import { scriptedTools, toolCommands, toolVersions } from '../../support/tool-commands.ts'

const commands = await toolCommands()
const recorded = await unpackRecordedPool()
const description = await readPoolDescription(recorded)
const recordedImage = join(recorded, 'metadata.img')
const folder = testFolder(test)

/** A test that needs the tools. Where they cannot be had, it is left out, and says so. */
function toolTest(title: string, run: (t: ExecutionContext, command: ToolCommand) => Promise<void>) {
  for (const version of toolVersions) {
    if (typeof commands === 'string') test.skip(`${title} (${version}: ${commands})`, () => undefined)
    else test(`${title} (${version})`, (t) => run(t, commands[version]))
  }
}

interface Asked {
  base?: number | undefined
  target: number
  sizeBytes: number
  baseSizeBytes?: number | undefined
  startingOffset?: number | undefined
}

async function ask(metadata: PoolMetadata, command: ToolCommand, asked: Asked): Promise<ToolAnswer> {
  const { base, target, sizeBytes, baseSizeBytes = sizeBytes, startingOffset } = asked
  const device = async (id: number, size: number) => ({ device: await metadata.device(id), sizeBytes: size })
  return toolAnswer({
    metadata,
    base: base === undefined ? undefined : await device(base, baseSizeBytes),
    target: await device(target, sizeBytes),
    startingOffset,
    command
  })
}

async function own(metadata: PoolMetadata, { base, target, ...sizes }: Asked) {
  return base === undefined
    ? metadata.allocated({ deviceId: target, sizeBytes: sizes.sizeBytes, startingOffset: sizes.startingOffset })
    : metadata.delta({ baseId: base, targetId: target, ...sizes })
}

async function compare(t: ExecutionContext, pool: TestPool, command: ToolCommand, random: Random): Promise<void> {
  const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
  try {
    const ids = pool.deviceIds.slice(0, 3)
    for (const target of ids) {
      const end = await metadata.mappedEnd(await metadata.device(target))
      const size = () => random.pick([end, random.integer(0, end), Math.min(end + 12345, Number.MAX_SAFE_INTEGER)])
      for (const base of [undefined, ...ids]) {
        const sizeBytes = size()
        const startingOffset = random.chance(0.5) ? random.integer(0, sizeBytes) : undefined
        const asked = { base, target, sizeBytes, baseSizeBytes: size(), startingOffset }
        const expected = await collectExtents(await own(metadata, asked))
        const answer = await ask(metadata, command, asked)
        t.deepEqual(await collectExtents(answer), expected, `${pool.name}: ${JSON.stringify(asked)}`)
        t.is(answer.capacityBytes, sizeBytes)
      }
    }
  } finally {
    await metadata.close()
  }
}

toolTest('the same extents as our own, at any size and offset: pools of every kind', async (t, command) => {
  const random = new Random(5)
  for (const [i, flavour] of flavours.entries()) {
    const pool = await writtenPool(900 + i, folder, flavour)
    if (pool.readableByTools) await compare(t, pool, command, random)
  }
  await compare(t, await restoredPool(910, folder), command, random)
  const held = { name: 'the recorded pool', path: recordedImage, metadataSnapshot: true, readableByTools: true }
  const blockSizeBytes = description.data_block_size_bytes
  await compare(t, { ...held, blockSizeBytes, deviceIds: [1, 4, 42] }, command, random)
})

toolTest('what is called the same beyond a shrunk base is put right, and counted', async (t, command) => {
  const [shrunk, grown] = ['tides-shrunk', 'tides-grown'].map((name) => {
    const found = description.snapshots.find((each) => each.name === name)
    if (!found) throw new Error('the recorded pool tells another story')
    return { id: found.thin_id, sizeBytes: found.size_bytes }
  })
  const metadata = await openPoolMetadata(recordedImage)
  const asked = { base: shrunk.id, target: grown.id, sizeBytes: grown.sizeBytes }
  const answer = await ask(metadata, command, { ...asked, baseSizeBytes: shrunk.sizeBytes })
  t.deepEqual(
    await collectExtents(answer),
    await collectExtents(await own(metadata, { ...asked, baseSizeBytes: shrunk.sizeBytes }))
  )
  t.true(answer.beyondBase() > 0)
  const same = await ask(metadata, command, asked)
  await collectExtents(same)
  t.is(same.beyondBase(), 0)
  await metadata.close()
})

/** An answer of tools that are scripts, of devices 1 and 4 of the recorded pool. */
async function scripted(script: string, base?: number): Promise<unknown> {
  if (typeof commands === 'string') throw new Error(commands)
  const command = await scriptedTools(folder, { thin_delta: script, thin_dump: script }, commands['0.9.0'])
  const metadata = await openPoolMetadata(recordedImage)
  try {
    return await collectExtents(await ask(metadata, command, { base, target: 4, sizeBytes: 2 ** 30 }))
  } finally {
    await metadata.close()
  }
}

const scripts: [title: string, script: string, code: string, says: RegExp][] = [
  ['nothing', 'true', 'DM_TOOL_FAILED', /unexpected output.*it is empty/],
  ['half of it, with status 0', 'real "$@" | head -n 5', 'DM_TOOL_FAILED', /it ends too early|ends in the middle/],
  ['all of it, with status 1', 'real "$@"; exit 1', 'DM_TOOL_FAILED', /status 1/],
  ['what is no XML', 'echo Segmentation fault', 'DM_TOOL_FAILED', /unexpected output/],
  [
    'the live pool instead of the metadata snapshot',
    'shift_m() { for each; do shift; [ "$each" = -m ] || set -- "$@" "$each"; done; real "$@"; }; shift_m "$@"',
    'DM_SNAPSHOT_CHANGED',
    /another state of/
  ]
]
for (const [title, script, code, says] of scripts) {
  const skipped = typeof commands === 'string'
  ;(skipped ? test.skip : test)(`a tool that prints ${title}`, async (t) => {
    for (const base of [undefined, 1]) await t.throwsAsync(scripted(script, base), { code, message: says } as object)
  })
}

;(typeof commands === 'string' ? test.skip : test)('a tool that answers another question', async (t) => {
  const others = 'real --thin1 4 --thin2 1 -m "$6"'
  await t.throwsAsync(scripted(others, 1), { code: 'DM_TOOL_FAILED', message: /compares other devices/ } as object)
  await t.throwsAsync(scripted('real -m --dev-id 1 "$4"'), { code: 'DM_DEVICE_NOT_FOUND' } as object)
})
