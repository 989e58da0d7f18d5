/**
 * `deltamapper router`: one address for the snapshots of many nodes.
 */
import type { Command } from 'commander'
import { listenAddress } from '../command-line/endpoint.ts'

export function addRouterCommand(program: Command): void {
  program
    .command('router')
    .summary('pass calls on to the agent of the node that has the snapshot')
    .description(
      'Answers csi.v1.SnapshotMetadata for all nodes of a cluster: finds the node of a snapshot, passes the ' +
        "question to the agent there, and passes the agent's answer back unchanged. One for each CSI driver, " +
        "behind the driver's snapshot-metadata sidecar. It keeps no state, so several may run. Runs in the " +
        'foreground until SIGTERM or SIGINT; its log goes to stdout, one JSON object to a line.'
    )
    .option('--config <file>', 'configuration file, YAML or JSON; options on the command line override it')
    .option(
      '--listen <address>',
      'unix socket to listen on; may be repeated (default: unix:///run/deltamapper/router.sock)',
      (text, others: string[] = []) => [...others, listenAddress(text)]
    )
    .option(
      '--monitoring <address>',
      'where to serve /metrics, /healthz and /readyz over plain HTTP, as in tcp://127.0.0.1:8081 (default: nowhere)'
    )
    .addHelpText(
      'after',
      `
The configuration has the driver's name, the agents' addresses, and how to read
node and volume group from handles:

  driverName: local.csi.example.org
  tls:
    certificate: /etc/deltamapper/tls/tls.crt
    key: /etc/deltamapper/tls/tls.key
    ca: /etc/deltamapper/tls/ca.crt
    agentName: agent.deltamapper        # what the agents' certificates carry
  static:
    nodes:
      node-1: tcp://10.0.0.1:50051
      node-2: tcp://10.0.0.2:50051
    handles:                            # the first that matches the whole handle
      - pattern: '(?<node>[^:]+):(?<vg>[^/]+)/(?<lv>.+)'
      - pattern: '(?<vg>archive)/(?<lv>.+)'
        node: node-2

If nothing names the node, all agents are asked. In a Kubernetes cluster, nodes
and handles come from the API server instead (docs/reference.md lists the drivers
and the permissions that they need):

  driverName: topolvm.io
  kubernetes:
    agents:
      namespace: deltamapper            # of the agents' Service, deltamapper-agent

Exit status:
  0  stopped by SIGTERM or SIGINT
  1  it could not start or continue: stderr says why, and what to do
  2  the command line is wrong

Examples:
  deltamapper router --config /etc/deltamapper/router.yaml
  deltamapper router --config router.yaml --listen unix:///tmp/router.sock
  deltamapper allocated node-1:vg0/snap --endpoint unix:///tmp/router.sock    (in another terminal)`
    )
    .action(async ({ config, listen, monitoring }: { config?: string; listen?: string[]; monitoring?: string }) => {
      const { runRouter } = await import('../../router/router.ts')
      await runRouter({
        ...(config === undefined ? {} : { configFile: config }),
        ...(listen === undefined ? {} : { listen }),
        ...(monitoring === undefined ? {} : { monitoring })
      })
    })
}
