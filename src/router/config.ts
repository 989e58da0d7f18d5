/**
 * The router's configuration: a YAML (or JSON) file, which the command line overrides. As with the agent's, errors stop
 * the start.
 */
import { z } from 'zod'
import { checkServing, invalidConfig, readConfigFile, socketFields, tlsFields, valid } from '../process/config-file.ts'
import { describeIssues } from '../config-issues.ts'
import type { DeltamapperError } from '../errors.ts'
import { parseConnectAddress } from '../grpc/address.ts'
import { checkDriverName } from '../grpc/identity.ts'
import { checkMonitorAddress } from '../monitoring/monitor.ts'
import { driverKinds, kindsByName } from './drivers/kinds.ts'
import { handlePattern } from './drivers/handle-patterns.ts'

/** The default address. */
export const DEFAULT_LISTEN = 'unix:///run/deltamapper/router.sock'

/** How to read handles; see handle-patterns.ts. */
const handles = z
  .array(
    z
      .strictObject({ pattern: z.string().min(1), node: z.string().min(1).optional() })
      .superRefine(valid(({ pattern, node }) => handlePattern(pattern, node)))
  )
  .default([])

/** A name that goes into a path of the Kubernetes API (RFC 1123 label). */
const objectName = z.string().regex(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/, 'is no name of Kubernetes')

/** The file's fields. Unknown ones are refused: a misspelt option must not silently become its default. */
export const routerConfig = z
  .strictObject({
    /** Addresses of unix sockets: the CSI sidecar is beside the router. */
    listen: z
      .array(z.string().regex(/^(unix:|\/)/, 'is no unix socket; the router listens on nothing else'))
      .min(1)
      .default([DEFAULT_LISTEN]),
    ...socketFields,
    /** The answer of GetPluginInfo: the name of the CSI driver whose snapshots are served. */
    driverName: z.string().superRefine(valid(checkDriverName)),
    /** Mutual TLS with agents at `tcp://` addresses. */
    tls: z
      .strictObject({
        ...tlsFields,
        /** The DNS name that an agent's certificate must have. */
        agentName: z.string().min(1)
      })
      .optional(),
    /** Permit agents at tcp://127.0.0.1 and [::1] without TLS. For tests. */
    allowLoopbackTcp: z.boolean().default(false),
    /** Nodes and handles that this file alone describes. */
    static: z
      .strictObject({
        /** Node → address of its agent. */
        nodes: z.record(z.string().min(1), z.string()).refine((nodes) => Object.keys(nodes).length > 0, 'has no node'),
        handles
      })
      .optional(),
    /** Nodes and handles as a cluster has them: its agents' EndpointSlices, and the objects of the CSI driver. */
    kubernetes: z
      .strictObject({
        /** How to read the driver's handles; by default its name tells. */
        driver: z.enum(driverKinds).optional(),
        /** The namespace of the driver's own objects; all unless given. For `openebs-lvm` only. */
        driverNamespace: objectName.optional(),
        /** The agents' Service. */
        agents: z.strictObject({
          namespace: objectName,
          service: objectName.default('deltamapper-agent'),
          /** The name of its port. */
          port: z.string().min(1).default('grpc')
        }),
        /** How to read handles, for the driver `generic`. */
        handles,
        /** A kubeconfig file; by default the service account of the pod, or what kubectl would take. */
        kubeconfig: z.string().min(1).optional()
      })
      .optional(),
    /** How long to try to reach an agent before a call ends with DM_AGENT_UNREACHABLE. */
    connectSeconds: z.number().min(0.1).max(60).default(5),
    /**
     * Answers that may run at the same time. For one client, told by its process, fewer than an agent allows a router,
     * so that others have some left. An agent takes as many over the router's one connection to it (grpc/server.ts):
     * more would wait there without an answer.
     */
    maxStreams: z.int().min(1).max(256).default(256),
    maxStreamsPerClient: z.int().min(1).max(10_000).default(160),
    /** How long a client may leave a waiting answer unread; then the call ends with DM_CLIENT_IDLE. */
    idleSeconds: z.number().min(1).max(86_400).default(1800),
    /** Where to serve metrics, liveness and readiness over plain HTTP: `tcp://HOST:PORT`. Nowhere by default. */
    monitoring: z.string().superRefine(valid(checkMonitorAddress)).optional(),
    logLevel: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info'),
    /** How long running streams may go on after SIGTERM. */
    drainSeconds: z.number().min(0).max(3600).default(20)
  })
  .superRefine((config, context) => {
    const { static: fixed, kubernetes, driverName, tls, allowLoopbackTcp } = config
    const issue = (path: (string | number)[], message: string) => context.addIssue({ code: 'custom', path, message })
    if ((fixed === undefined) === (kubernetes === undefined)) {
      issue([fixed ? 'kubernetes' : 'static'], 'nodes are told by either static or kubernetes: give one of them')
    }
    if (kubernetes !== undefined) {
      const kind = kubernetes.driver ?? kindsByName[driverName]
      if (kind === undefined) issue(['kubernetes', 'driver'], `does not follow from ${driverName}: give it`)
      if (kind !== 'generic' && kubernetes.handles.length > 0) {
        issue(['kubernetes', 'handles'], 'are for the driver generic; this one has handles of its own')
      }
      if (kind !== 'openebs-lvm' && kubernetes.driverNamespace !== undefined) {
        issue(['kubernetes', 'driverNamespace'], 'is for openebs-lvm; this driver keeps nothing in a namespace')
      }
      if (!tls && !allowLoopbackTcp) issue(['tls'], 'is needed: the agents of a cluster are asked over mutual TLS')
    }
    const { nodes, handles } = fixed ?? { nodes: {}, handles: [] }
    const complain = (path: (string | number)[], message: string) => issue(['static', ...path], message)
    for (const [node, text] of Object.entries(nodes)) {
      try {
        const { kind } = parseConnectAddress(text, { tls: tls !== undefined })
        if (kind === 'tcp' && !tls && !allowLoopbackTcp) complain(['nodes', node], 'needs tls, or allowLoopbackTcp')
      } catch (error) {
        complain(['nodes', node], (error as DeltamapperError).message)
      }
    }
    for (const [index, { node }] of handles.entries()) {
      if (node !== undefined && !Object.hasOwn(nodes, node))
        complain(['handles', index, 'node'], 'is none of the nodes')
    }
  })

export type RouterConfig = z.infer<typeof routerConfig>

/** The command line's options, which override the file. */
export interface RouterOptions {
  configFile?: string
  listen?: string[]
  monitoring?: string
}

/** @throws DM_CONFIG_INVALID naming file and field */
export async function loadConfig({ configFile, listen, monitoring }: RouterOptions): Promise<RouterConfig> {
  const { fields, text } = await readConfigFile(configFile)
  const merged = routerConfig.safeParse({
    ...fields,
    ...(listen?.length ? { listen } : {}),
    ...(monitoring === undefined ? {} : { monitoring })
  })
  if (!merged.success) throw invalidConfig(configFile, describeIssues(merged.error.issues, routerConfig, text))
  checkServing(merged.data)
  return merged.data
}
