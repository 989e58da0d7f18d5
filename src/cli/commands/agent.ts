/**
 * `deltamapper agent`: serves csi.v1.SnapshotMetadata on this node.
 */
import { type Command, Option } from 'commander'
import { type Engine, engines } from '../../devicemapper/tools/engine.ts'
import { DEFAULT_ENDPOINT, listenAddress } from '../command-line/endpoint.ts'
import { recordedPool } from '../command-line/option-values.ts'

interface AgentCommandOptions {
  config?: string
  listen?: string[]
  recorded?: Record<string, string>
  engine?: Engine
  monitoring?: string
}

export function addAgentCommand(program: Command): void {
  program
    .command('agent')
    .summary("serve this node's snapshots to backup software (CSI SnapshotMetadata over gRPC)")
    .description(
      'Answers csi.v1.SnapshotMetadata: which blocks of a snapshot are allocated, and which changed since another one. ' +
        'Runs in the foreground until SIGTERM or SIGINT, then lets running answers finish. Its log goes to stdout, one JSON ' +
        'object to a line.'
    )
    .option('--config <file>', 'configuration file, YAML or JSON; options on the command line override it')
    .option(
      '--listen <address>',
      `where to listen, as in unix:///run/x.sock or, with tls in the configuration, tcp://0.0.0.0:50051; may be repeated (default: ${DEFAULT_ENDPOINT})`,
      (text, others: string[] = []) => [...others, listenAddress(text)]
    )
    .option(
      '--recorded <name=dir>',
      'serve the recorded pool in this folder; its snapshots are NAME/SNAPSHOT; may be repeated',
      recordedPool
    )
    .addOption(
      new Option(
        '--engine <engine>',
        'what reads the metadata: native, tools (thin_delta and thin_dump), or both (native, checked with the ' +
          'tools)'
      ).choices(engines)
    )
    .option(
      '--monitoring <address>',
      'where to serve /metrics, /healthz and /readyz over plain HTTP, as in tcp://127.0.0.1:8081 (default: nowhere)'
    )
    .addHelpText(
      'after',
      `
Exit status:
  0  stopped by SIGTERM or SIGINT
  1  it could not start or continue: stderr says why, and what to do
  2  the command line is wrong

Examples:
  deltamapper agent --config /etc/deltamapper/agent.yaml
  deltamapper agent --listen unix:///tmp/agent.sock --recorded demo=/srv/recorded-pool
  deltamapper allocated demo/snap-1 --endpoint unix:///tmp/agent.sock     (in another terminal)`
    )
    .action(async ({ config, listen, recorded, engine, monitoring }: AgentCommandOptions) => {
      const { runAgent } = await import('../../agent/agent.ts')
      await runAgent({
        ...(config === undefined ? {} : { configFile: config }),
        ...(listen === undefined ? {} : { listen }),
        ...(recorded === undefined ? {} : { recorded }),
        ...(engine === undefined ? {} : { engine }),
        ...(monitoring === undefined ? {} : { monitoring })
      })
    })
}
