/**
 * The metrics that only a router has: calls by the node that answers them, and how often agents had to be tried.
 *
 * Nodes are those of the configuration or the cluster: a node that only a handle names is refused before it is counted.
 */
import { Counter, Gauge, type Registry } from 'prom-client'
import type { CallObserver } from '../grpc/snapshot-metadata.ts'

export interface RouterMetrics {
  /** The observer given, and what the router counts itself. */
  readonly calls: CallObserver
  /** An agent is asked, for the first time or again. */
  readonly tried: (node: string) => void
}

/**
 * @param nodes how many nodes have an agent whose address is known
 * @param ageSeconds in a cluster: the age of what is known of it, 0 while it is up to date
 */
export function routerMetrics(
  registry: Registry,
  calls: CallObserver,
  nodes: () => number,
  ageSeconds: () => number = () => 0
): RouterMetrics {
  const registers = [registry]
  const byNode = new Counter({
    name: 'deltamapper_router_calls_total',
    help: 'Calls that have ended, by the node that they were for; without one, they ended before it was known',
    labelNames: ['node', 'grpc_code'],
    registers
  })
  const tries = new Counter({
    name: 'deltamapper_router_agent_tries_total',
    help: 'Tries to have a call answered by an agent; more of them than calls are repetitions',
    labelNames: ['node'],
    registers
  })
  new Gauge({
    name: 'deltamapper_router_nodes',
    help: 'Nodes whose agent has an address that is known',
    registers,
    collect() {
      this.set(nodes())
    }
  })
  new Gauge({
    name: 'deltamapper_router_cluster_age_seconds',
    help: 'How old what is known of the cluster is while the Kubernetes API does not answer; 0 while it is kept up to date',
    registers,
    collect() {
      this.set(ageSeconds())
    }
  })
  return {
    calls: {
      ...calls,
      ended(call) {
        calls.ended(call)
        byNode.inc({ node: call.node ?? '', grpc_code: call.status })
      }
    },
    tried: (node) => tries.inc({ node })
  }
}
