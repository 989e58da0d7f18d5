/** `deltamapper kube allocated|delta NAMESPACE SNAPSHOT`: asks a Kubernetes cluster by hand as backup software does. */
import { type Command, Option } from 'commander'
import { addAnswerOptions, extentsHelp } from './extents-command.ts'
import { DeltamapperError } from '../../errors.ts'
import {
  checkAddress,
  checkHandle,
  checkNamespace,
  checkServiceAccount,
  checkSnapshotName
} from '../../kubernetes/names.ts'
import { UsageError } from '../command-line/failure.ts'
import { atLeastOne } from '../command-line/option-values.ts'
import type { ShowOptions } from './show-extents.ts'

interface KubeOptions extends ShowOptions {
  base?: string
  baseHandle?: string
  kubeconfig?: string
  context?: string
  serviceAccount?: string
  address?: string
  tries?: number
  startingOffset?: number
  maxResults?: number
}

export function addKubeCommand(program: Command): void {
  const kube = program
    .command('kube')
    .summary('ask a Kubernetes cluster about VolumeSnapshots, as backup software does')
    .description(
      'Asks the SnapshotMetadata service of a CSI driver in a Kubernetes cluster (KEP-3314), deltamapper behind it or not: finds the ' +
        'driver of a VolumeSnapshot and its SnapshotMetadataService, has a token made for it, and asks over TLS. A stream that ' +
        'breaks is resumed.'
    )
  addQuestion(
    kube
      .command('allocated')
      .summary('list the allocated extents of a VolumeSnapshot, for a full backup')
      .description('Lists the byte ranges of a VolumeSnapshot that are allocated. A full backup copies these.'),
    'allocated',
    `
Examples:
  deltamapper kube allocated shop db-monday
  deltamapper kube allocated shop db-monday -o json --service-account velero/velero`
  )
  addQuestion(
    kube
      .command('delta')
      .summary('list the extents that changed between two VolumeSnapshots, for an incremental backup')
      .description(
        'Lists the byte ranges in which VolumeSnapshot SNAPSHOT differs from a base, an older snapshot of the ' +
          'same volume. The base is a VolumeSnapshot of the same namespace, or a CSI handle that you kept.'
      )
      .addOption(
        new Option('--base <name>', 'the older VolumeSnapshot')
          .conflicts('baseHandle')
          .argParser(usage(checkSnapshotName))
      )
      .option(
        '--base-handle <handle>',
        'its CSI handle instead (status.snapshotHandle of its VolumeSnapshotContent); its objects may be gone',
        usage(checkHandle)
      ),
    'delta',
    `
Examples:
  deltamapper kube delta shop db-tuesday --base db-monday
  deltamapper kube delta shop db-tuesday --base-handle pvc-1@snapshot-7 -o ndjson`
  )
}

function addQuestion(command: Command, ask: 'allocated' | 'delta', examples: string): void {
  addAnswerOptions(
    command
      .argument('<NAMESPACE>', 'of the VolumeSnapshot', usage(checkNamespace))
      .argument('<SNAPSHOT>', 'name of the VolumeSnapshot', usage(checkSnapshotName))
      .option(
        '--kubeconfig <file>',
        'how to reach the cluster (default: as kubectl finds it; in a pod its service account)'
      )
      .option('--context <name>', 'a context of it other than the current one')
      .option(
        '--service-account <namespace/name>',
        'the account for the token (default: our own, if we are a service account)',
        usage(checkServiceAccount)
      )
      .option(
        '--address <host:port>',
        'where to reach the service, if not at the address that its object names',
        usage(checkAddress)
      )
      .option('--tries <count>', 'give up after so many failures in a row without an extent (default: 5)', atLeastOne)
  )
    .addHelpText(
      'after',
      `${extentsHelp}

The user of the kubeconfig may get volumesnapshots, volumesnapshotcontents and
snapshotmetadataservices, and create serviceaccounts/token; the service account
may get volumesnapshots. Outside of a cluster, forward the service's port and
name it with --address: its certificate is still checked for the name it is for.
${examples}`
    )
    .action(async (namespace: string, snapshotName: string, options: KubeOptions) => {
      if (ask === 'delta' && options.base === undefined && options.baseHandle === undefined) {
        throw new UsageError(
          'no base was named',
          'give it with --base NAME or --base-handle HANDLE',
          'DM_ARGUMENT_MISSING'
        )
      }
      await answer(ask, namespace, snapshotName, options)
    })
}

/** What the library refuses is a wrong command line here. */
function usage(check: (text: string) => void): (text: string) => string {
  return (text) => {
    try {
      check(text)
    } catch (error) {
      if (error instanceof DeltamapperError) throw new UsageError(error.message, error.remedy, error.code)
      throw error
    }
    return text
  }
}

async function answer(
  ask: 'allocated' | 'delta',
  namespace: string,
  snapshotName: string,
  { base, baseHandle, startingOffset = 0, maxResults = 0, ...options }: KubeOptions
): Promise<void> {
  const [{ showAnswer }, { connectToCluster }] = await Promise.all([
    import('./show-extents.ts'),
    import('../../kubernetes/snapshot-metadata.ts')
  ])
  await showAnswer(ask, options, async (signal, remark, use) => {
    const cluster = connectToCluster({
      ...options,
      onResume: ({ startingOffset, failure }) =>
        remark(`${failure.message}; asking again, from ${startingOffset} on`.replaceAll(/\p{Cc}+/gu, ' '))
    })
    try {
      const request = { namespace, snapshotName, startingOffset, maxResults, signal }
      await use(
        ask === 'allocated'
          ? await cluster.allocated(request)
          : await cluster.delta({
              ...request,
              ...(baseHandle === undefined ? { baseSnapshotName: base ?? '' } : { baseSnapshotHandle: baseHandle })
            })
      )
    } finally {
      cluster.close()
    }
  })
}
