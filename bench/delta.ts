/**
 * The whole thin_delta process beside the whole gRPC call, on the same metadata, in turn in one run.
 *
 * thin_delta reads both mapping trees with O_DIRECT; the agent reads the image through the page cache (warm after the first call) or, as it
 * does with devices, with O_DIRECT. Our side counts from dialling the socket to the last extent decoded and checked.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { connect } from '../src/grpc/client.ts'
import { thinTool } from '../test/lab/tools.ts'
import { startAgentProcess } from './agent-process.ts'
import { median, peakMemoryMiB, type ProcessRun, timeProcess } from './measure.ts'

/** A question that is asked of both. */
export interface Pair {
  title: string
  /** Names of snapshots in the recorded pool. */
  base: string
  target: string
}

export interface DeltaFigures {
  title: string
  mappings: number
  extents: number
  /** thin_delta: medians of the runs. */
  tool: { milliseconds: number; peakMiB: number }
  /** Ours, medians; `ratio` is the median of thin_delta's time over ours, run by run. */
  warm: OurFigures
  direct: OurFigures
}

export interface OurFigures {
  /** Of a call in turn with thin_delta, while which the agent slept; and of the next one, right after it. */
  milliseconds: number
  againMs: number
  /** The very first call of a fresh agent, before anything is compiled or cached in it. */
  firstCallMs: number
  firstExtentMs: number
  ratio: number
  againRatio: number
  nodesRead: number
  readMiB: number
  /** Of the agent, over all calls so far. */
  peakMiB: number
}

/** Calls until V8 has compiled all that is hot; the first of them is a figure of its own. */
const CALLS_BEFORE = 20

interface Description {
  snapshots: { name: string; thin_id: number; size_bytes: number; mapped_blocks?: number }[]
}

/** @param folder a recorded pool */
export async function measureDeltas(folder: string, pairs: readonly Pair[], runs: number): Promise<DeltaFigures[]> {
  const { snapshots } = JSON.parse(await readFile(join(folder, 'pool.json'), 'utf8')) as Description
  const idOf = (name: string) => {
    const found = snapshots.find((each) => each.name === name)
    if (!found) throw new Error(`${folder} has no snapshot ${name}`)
    return found.thin_id
  }
  const { path: thinDelta, env } = thinTool('thin_delta')
  const figures: DeltaFigures[] = []
  for (const { title, base, target } of pairs) {
    const args = [
      '--metadata-snap',
      '--thin1',
      `${idOf(base)}`,
      '--thin2',
      `${idOf(target)}`,
      join(folder, 'metadata.img')
    ]
    const runTool = () => timeProcess(thinDelta, args, env)
    await runTool()
    const sides = { warm: await ours(false), direct: await ours(true) }
    const toolRuns = [...sides.warm.toolRuns, ...sides.direct.toolRuns]
    figures.push({
      title,
      mappings: snapshots.find((each) => each.name === target)?.mapped_blocks ?? 0,
      extents: sides.warm.extents,
      tool: {
        milliseconds: median(toolRuns.map((run) => run.milliseconds)),
        peakMiB: Math.max(...toolRuns.map((run) => run.peakMiB))
      },
      warm: sides.warm.figures,
      direct: sides.direct.figures
    })

    async function ours(direct: boolean) {
      const agent = await startAgentProcess({ recorded: { bench: folder }, directReads: direct })
      try {
        const ask = () => askOnce(agent.address, `bench/${base}`, `bench/${target}`)
        const logged = agent.nextCall()
        const first = await ask()
        const { statistics } = await logged
        // An agent runs for weeks: what is compared is one that has been asked before.
        for (let call = 1; call < CALLS_BEFORE; call++) await ask()
        const calls: Awaited<ReturnType<typeof ask>>[] = []
        const again: typeof calls = []
        const toolRuns: ProcessRun[] = []
        for (let run = 0; run < runs; run++) {
          toolRuns.push(await runTool())
          calls.push(await ask())
          again.push(await ask())
        }
        const ratioOf = (these: typeof calls) =>
          median(these.map((call, run) => toolRuns[run].milliseconds / call.milliseconds))
        return {
          extents: first.extents,
          toolRuns,
          figures: {
            milliseconds: median(calls.map((call) => call.milliseconds)),
            againMs: median(again.map((call) => call.milliseconds)),
            firstCallMs: first.milliseconds,
            firstExtentMs: median(calls.map((call) => call.firstExtentMs)),
            ratio: ratioOf(calls),
            againRatio: ratioOf(again),
            nodesRead: statistics.nodesRead,
            readMiB: statistics.bytesRead / 2 ** 20,
            peakMiB: peakMemoryMiB(agent.pid)
          }
        }
      } finally {
        await agent.stop()
      }
    }
  }
  return figures
}

async function askOnce(address: string, baseSnapshotId: string, targetSnapshotId: string) {
  const began = performance.now()
  const client = connect(address)
  const { batches } = await client.delta({ baseSnapshotId, targetSnapshotId })
  const firstExtentMs = performance.now() - began
  let extents = 0
  for await (const { count } of batches) extents += count
  const milliseconds = performance.now() - began
  client.close()
  return { milliseconds, firstExtentMs, extents }
}
