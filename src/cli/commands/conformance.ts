/**
 * `deltamapper conformance`: whether a CSI driver, any, keeps the rules of SnapshotMetadata.
 */
import { type Command, InvalidArgumentError, Option } from 'commander'
import { byteCount, count } from '../command-line/option-values.ts'
import type { ConformanceCommandOptions } from './run-conformance.ts'

const help = `
A rule that has to be kept (must) fails where it is broken; one that should be
is a warning. A rule that could not be judged is skipped, and says why. What was
seen is quoted, so that a driver's author can act on it.

Exit status:
  0    no must failed
  1    one did, or the run could not be made: stderr says why
  2    the command line is wrong
  130  interrupted (Ctrl-C)

Examples:
  deltamapper conformance --endpoint unix:///csi/csi.sock --snapshot ID1 ID2 ID3 --other-snapshot ID4
  deltamapper conformance --endpoint unix:///csi/csi.sock --snapshot ID1 ID2 -o junit > report.xml
  deltamapper conformance --endpoint unix:///csi/csi.sock --content content.yaml --record run.ndjson
  deltamapper conformance --replay run.ndjson --rule 10 15`

export function addConformanceCommand(program: Command): void {
  program
    .command('conformance')
    .summary('check whether a CSI driver keeps the rules of SnapshotMetadata')
    .description(
      'Asks the SnapshotMetadata service of any CSI driver, and judges its answers by the rules of the CSI ' +
        'specification, of KEP-3314 and of the sidecar, each with its number and source ' +
        '(docs/conformance.md). It does not trust the driver: a run ends within five minutes, whatever the ' +
        'driver does.'
    )
    .option('--endpoint <address>', "the driver's unix socket, as in unix:///csi/csi.sock")
    .option('--snapshot <id...>', 'snapshots of one volume, oldest first; two or more')
    .option('--other-snapshot <id...>', 'a snapshot of another volume')
    .option(
      '--untracked-snapshot <id...>',
      'snapshots of a volume whose changes are not tracked, oldest first (rule 39)'
    )
    .option('--unready-snapshot <id>', 'a snapshot that is not ready (rule 40)')
    .option(
      '--device <id=file...>',
      'a device or file that was restored from a snapshot, for its size (rule 19)',
      device
    )
    .option('--rule <number...>', 'only these rules', ruleNumber)
    .option('--seed <number>', 'which tuples and offsets are tried (default: 1)', count)
    .option(
      '--hooks <file>',
      'write, snapshot and restore with these commands, and compare the data (rules 19, 21 to 25, 30)'
    )
    .option('--content <file>', 'the same through CSI itself, with the parameters, secrets and topology in this file')
    .option(
      '--size <bytes>',
      'with --hooks or --content: size of the volumes that are made (default: 16MiB)',
      byteCount
    )
    .option('--history <name...>', 'with --hooks or --content: only these histories')
    .option('--record <file>', 'keep every call, to judge it again')
    .addOption(
      new Option('--replay <file>', 'judge what was recorded; no driver is asked').conflicts([
        'endpoint',
        'snapshot',
        'otherSnapshot',
        'hooks',
        'content',
        'record'
      ])
    )
    .option(
      '--baseline <file>',
      'an earlier report (-o json): rules that failed there are known, and do not fail this run'
    )
    .addOption(
      new Option('-o, --output <format>', 'how to show it').choices(['table', 'json', 'junit', 'tap']).default('table')
    )
    .addHelpText('after', help)
    .action(async (options: ConformanceCommandOptions) => {
      const { showConformance } = await import('./run-conformance.ts')
      await showConformance(options)
    })
}

function ruleNumber(text: string, others: number[] = []): number[] {
  if (!/^[1-9]\d?$/.test(text))
    throw new InvalidArgumentError('It is the number of a rule, as docs/conformance.md lists them.')
  return [...others, Number(text)]
}

function device(text: string, others: Record<string, string> = {}): Record<string, string> {
  const [, id, file] = /^(.+)=([^=]+)$/s.exec(text) ?? []
  if (id === undefined || file === undefined)
    throw new InvalidArgumentError('It is ID=FILE: a snapshot, and what was restored from it.')
  return { ...others, [id]: file }
}
