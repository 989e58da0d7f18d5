/**
 * What `allocated` and `delta` have in common: where to ask, what to leave out, how to show it.
 */
import { type Command, Option } from 'commander'
import { engines } from '../../devicemapper/tools/engine.ts'
import type { Question } from '../answers/question.ts'
import { addTlsOptions, DEFAULT_ENDPOINT, ENDPOINT_VARIABLE } from '../command-line/endpoint.ts'
import { byteCount, count, seconds } from '../command-line/option-values.ts'
import type { ExtentsOptions } from './show-extents.ts'

/** Adds the options of both commands; `baseToo` those for a base. */
export function addExtentsOptions(command: Command, baseToo: boolean): Command {
  command
    .addOption(
      new Option(
        '--endpoint <address>',
        `ask the agent, or any CSI SnapshotMetadata server, at this socket (default: $${ENDPOINT_VARIABLE}, else ${DEFAULT_ENDPOINT})`
      ).conflicts(['metadata', 'xml'])
    )
    .addOption(
      new Option(
        '--metadata <file>',
        `read a thin pool's metadata${baseToo ? " (with --since: an era device's)" : ''} from this device or file instead; ids are thin device ids`
      ).conflicts('xml')
    )
    .option(
      '--xml <file>',
      baseToo
        ? 'read the output of thin_delta (a pool), or of era_dump or era_invalidate (an era device), from this ' +
            'file or (-) standard input'
        : 'read the output of thin_dump from this file or (-) standard input'
    )
    .option(
      '--size <bytes>',
      `with --metadata${baseToo ? ', --xml or --cow' : ' or --xml'}: size of TARGET (default: where its mappings end)`,
      byteCount
    )
  if (baseToo) {
    command.option(
      '--base-size <bytes>',
      'with --metadata, --xml or --cow: size of BASE (default: as large as TARGET)',
      byteCount
    )
  }
  addTlsOptions(command)
    .option('--live-root', 'with --metadata: read the live pool even if a metadata snapshot is held')
    .addOption(
      new Option(
        '--engine <engine>',
        'with --metadata: read it natively, with the tools (thin_delta, thin_dump), or both: natively, checked with the tools (default: native)'
      ).choices(engines)
    )
  return addAnswerOptions(command, ['table', 'json', 'ndjson', 'map', 'ranges', 'borg-map'])
}

/** Which part of an answer, by when, and how to show it. */
export function addAnswerOptions(command: Command, formats = ['table', 'json', 'ndjson', 'map']): Command {
  return command
    .option('--starting-offset <bytes>', 'leave out extents that end at or before this offset; to resume', byteCount)
    .option('--max-results <count>', 'the most extents in a message of the endpoint; the answer is the same', count)
    .option('--timeout <seconds>', 'give up if the answer is not complete by then', seconds)
    .addOption(new Option('-o, --output <format>', 'how to show the answer').choices(formats).default('table'))
}

/** What formats without gaps say of themselves; not every command has them. */
export const rangesHelp = `

Maps of the whole volume, without gaps, from 0 to its end:
  ranges    START LENGTH TYPE: data or zero; of a delta, changed or same
  borg-map  for borg 2's --map: data and zero; of a delta, also same`

/** What commands that answer with extents say of themselves below their options. */
export const extentsHelp = `
Sizes and offsets are in bytes; 64KiB, 1MiB, 2GiB and 1TiB are understood.
Extents ascend and never overlap.

Output:
  table   a line for each extent, and a last one with the total and "complete"
  json    one object with the field names of csi.v1; if it is cut off, it does not parse
  ndjson  one object to a line: the volume, each extent, {"complete":true,...}
  map     where in the volume they are, drawn
A driver that finds nothing may not tell the capacity. json and ndjson then leave
out volume_capacity_bytes: keep the size of your image.

Exit status:
  0    the answer is complete
  1    it is not: stderr says why, and what to do
  2    the command line is wrong
  130  interrupted (Ctrl-C)
  141  the reader of the output stopped reading`

/** Answers the question. Its code is loaded only now: help and usage errors need none of it. */
export async function answerExtents(question: Question, options: ExtentsOptions): Promise<void> {
  const { output } = options
  if (output === 'ranges' || output === 'borg-map') {
    const { showRanges } = await import('./show-ranges.ts')
    return showRanges(question, options)
  }
  const { showExtents } = await import('./show-extents.ts')
  await showExtents(question, { ...options, output })
}
