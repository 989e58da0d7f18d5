/**
 * A cluster for tests: an API server, agents with recorded pools that its EndpointSlices name, and a router that knows nothing but the API
 * server, with mutual TLS between them.
 */
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import type { KubernetesObject } from '../../src/kubernetes/object.ts'
import type { TlsFiles } from '../../src/grpc/tls.ts'
import { Authority } from './certificates.ts'
import { FakeApiServer } from './fake-api-server.ts'
import { runAgent, runRouter, type Running } from './in-process.ts'

export const agentNamespace = 'deltamapper'

export class ClusterOfAgents {
  readonly server: FakeApiServer
  readonly #folder: string
  readonly #agentTls: TlsFiles
  readonly #routerTls: TlsFiles
  static #sockets = 0
  /** The same certificates do for all clusters of an authority. */
  static readonly #issued = new WeakMap<Authority, Promise<TlsFiles>[]>()

  private constructor(server: FakeApiServer, folder: string, agentTls: TlsFiles, routerTls: TlsFiles) {
    this.server = server
    this.#folder = folder
    this.#agentTls = agentTls
    this.#routerTls = routerTls
  }

  /** @param folder short: sockets are put there */
  static async create(
    t: ExecutionContext,
    folder: string,
    authority: Authority,
    objects: readonly KubernetesObject[]
  ): Promise<ClusterOfAgents> {
    const issued =
      ClusterOfAgents.#issued.get(authority) ?? ['agent.test', 'router.test'].map((name) => authority.issue(name))
    ClusterOfAgents.#issued.set(authority, issued)
    const [agentTls, routerTls] = await Promise.all(issued)
    return new ClusterOfAgents(await FakeApiServer.start(t, objects), folder, agentTls, routerTls)
  }

  socket(): string {
    return `unix://${join(this.#folder, `c${ClusterOfAgents.#sockets++}.sock`)}`
  }

  /** An agent that the cluster does not know of yet. */
  agent(t: ExecutionContext, recorded: Record<string, string>): Promise<Running> {
    return runAgent(t, {
      listen: [this.socket(), 'tcp://127.0.0.1:0'],
      tls: { ...this.#agentTls, clientName: 'router.test' },
      recorded,
      walkers: 1
    })
  }

  async router(t: ExecutionContext, driverName: string, more: object = {}, kubernetes: object = {}): Promise<Running> {
    return runRouter(t, {
      listen: [this.socket()],
      driverName,
      tls: { ...this.#routerTls, agentName: 'agent.test' },
      kubernetes: {
        agents: { namespace: agentNamespace, service: 'agents' },
        kubeconfig: await this.server.kubeconfig(join(this.#folder, `kubeconfig-${ClusterOfAgents.#sockets++}`)),
        ...kubernetes
      },
      connectSeconds: 3,
      ...more
    })
  }

  /** Says that a node's agent is this one; without one, that its pod is not ready. */
  announce(nodeName: string, agent: Running | undefined): void {
    const port = Number(/:(\d+)$/.exec(agent?.addresses[1] ?? ':1')?.[1])
    const conditions = { ready: agent !== undefined, serving: agent !== undefined, terminating: false }
    this.server.put({
      ...this.#slice(nodeName),
      endpoints: [{ addresses: ['127.0.0.1'], conditions, nodeName }],
      ports: [{ name: 'grpc', port, protocol: 'TCP' }]
    } as KubernetesObject)
  }

  /** Its pod is gone. */
  withdraw(nodeName: string): void {
    this.server.delete(this.#slice(nodeName))
  }

  #slice(nodeName: string): KubernetesObject {
    return {
      apiVersion: 'discovery.k8s.io/v1',
      kind: 'EndpointSlice',
      metadata: {
        name: `agents-${nodeName}`,
        namespace: agentNamespace,
        labels: { 'kubernetes.io/service-name': 'agents' }
      }
    }
  }
}

/** A snapshot as TopoLVM has it. */
export function logicalVolume(
  volumeID: string,
  { node = 'worker-1', source = 'pvc-data', hour = 0 }: { node?: string; source?: string; hour?: number } = {}
): KubernetesObject {
  const name = `snapshot-of-${volumeID}-on-${node}`
  return {
    apiVersion: 'topolvm.io/v1',
    kind: 'LogicalVolume',
    metadata: { name, creationTimestamp: `2026-05-04T${String(hour).padStart(2, '0')}:00:00Z` },
    spec: { name, nodeName: node, deviceClass: 'thin', size: '20Gi', source, accessType: 'ro' },
    status: { volumeID, currentSize: '20Gi' }
  } as KubernetesObject
}
