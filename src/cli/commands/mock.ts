/**
 * `deltamapper mock`: a CSI driver for authors of backup programs, on any machine; `mock check` compares a restored
 * image with its data.
 */
import type { Command } from 'commander'
import { listenAddress } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import { count } from '../command-line/option-values.ts'
import type { MockCommandOptions } from './run-mock.ts'

export function addMockCommand(program: Command): void {
  const mock = program
    .command('mock')
    .summary('run a CSI driver for testing a backup program: snapshots, their data, and every kind of failure')
    .description(
      'Serves csi.v1.SnapshotMetadata, Identity and the snapshots of Controller for made-up volumes: no ' +
        'root, no device-mapper. A scenario determines how it answers: like a good driver, cut off at any ' +
        'place, or against the rules. Runs in the foreground until SIGTERM or SIGINT.'
    )
    .option('--listen <address>', 'the unix socket to listen on, as in unix:///tmp/csi.sock', listenAddress)
    .option(
      '--scenario <name|file>',
      'how to answer: a name that --list has, `random`, or a YAML file (default: honest)'
    )
    .option('--seed <number>', 'the seed of everything random (default: 1)', count)
    .option(
      '--data <dir>',
      'write the data of every snapshot there, as sparse files, and snapshots.json, which lists them'
    )
    .option('--kubernetes <dir>', 'serve the Kubernetes side too, and write a kubeconfig for it there')
    .option('--list', 'name the scenarios, and end')
    .addHelpText(
      'after',
      `
DIR/snapshots.json lists the snapshots, oldest first: [{"id", "volume", "image"}].
Each image is as long as the snapshot's capacity.

With --kubernetes, DIR/kubeconfig leads to an API that has the VolumeSnapshots
(namespace default, named as the snapshots are), and from there to the service
as the sidecar offers it, with TLS and tokens.

Exit status:
  0  stopped by SIGTERM or SIGINT; with check: the image is the snapshot's
  1  it could not start: stderr says why; with check: the image differs
  2  the command line is wrong

Examples:
  deltamapper mock --list
  deltamapper mock --listen unix:///tmp/csi.sock --data /tmp/mock
  deltamapper mock --listen unix:///tmp/csi.sock --data /tmp/mock --scenario cut-unavailable
  deltamapper mock check --data /tmp/mock --snapshot orders-1-snap-0002 restored.img
  deltamapper mock --kubernetes /tmp/mock-cluster`
    )
    .action(async (options: MockCommandOptions) => {
      const { runMock } = await import('./run-mock.ts')
      await runMock(options)
    })
  addCheck(mock)
}

function addCheck(mock: Command): void {
  mock
    .command('check')
    .summary("check that a restored image equals a snapshot's data, byte for byte")
    .description("Compares a file with a snapshot's data, and names the first ranges that differ, in bytes.")
    .argument('<IMAGE>', 'the restored file or block device')
    .option('--data <dir>', 'the folder that the mock was given')
    .option('--snapshot <id>', 'the snapshot that it should equal')
    .addHelpText(
      'after',
      `
Exit status:
  0  it is the same
  1  it differs, or could not be compared
  2  the command line is wrong

Example:
  deltamapper mock check --data /tmp/mock --snapshot orders-1-snap-0002 restored.img`
    )
    .action(async (image: string, _options: object, command: Command) => {
      // --data is an option of both commands, and Commander gives it to the outer one.
      const { data, snapshot } = command.optsWithGlobals<{ data?: string; snapshot?: string }>()
      if (data === undefined || snapshot === undefined) {
        throw new UsageError('--data and --snapshot are needed', 'say what the image is to be', 'DM_ARGUMENT_MISSING')
      }
      const { checkImage } = await import('./run-mock.ts')
      await checkImage(image, { data, snapshot })
    })
}
