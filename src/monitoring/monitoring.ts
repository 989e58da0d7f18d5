/**
 * The monitoring of one process, agent or router: its registry, its readiness, and the listener for both, if one is
 * configured.
 */
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { packageVersion } from '../grpc/identity.ts'
import type { ServerObserver } from '../grpc/server.ts'
import type { Certificates } from '../grpc/tls.ts'
import { processMetrics } from './metrics.ts'
import { startMonitor } from './monitor.ts'
import { Readiness } from './readiness.ts'

export interface Monitoring {
  readonly registry: Registry
  readonly readiness: Readiness
  /** Gets the events of calls and clients. */
  readonly observer: ServerObserver
  /** The listener's address; undefined without one. */
  readonly address: string | undefined
  /** A process is not ready before it reports that it runs, and once it stops. */
  runs(): void
  stops(): void
  close(): void
}

export interface MonitoringOptions {
  readonly role: 'agent' | 'router'
  /** `tcp://HOST:PORT`; undefined for no listener. */
  readonly listen: string | undefined
  readonly certificates: Certificates | undefined
  readonly logger: Logger
}

/** Start it before anything that takes long. @throws DM_CONFIG_INVALID, DM_SOCKET_IN_USE */
export async function startMonitoring(options: MonitoringOptions): Promise<Monitoring> {
  const { role, listen, certificates, logger } = options
  const readiness = new Readiness()
  let problem: string | undefined = `the ${role} is starting; wait`
  readiness.add('server', () => problem)
  if (certificates) {
    readiness.add('certificate', () =>
      certificates.expiresAt > Date.now()
        ? undefined
        : 'our certificate has expired, and no peer accepts it; renew it (it is read again without a restart)'
    )
  }
  const { registry, observer } = processMetrics({ role, version: packageVersion(), readiness, certificates })
  const monitor =
    listen === undefined ? undefined : await startMonitor(listen, { metrics: registry, readiness }, logger)
  return {
    ...{ registry, readiness, observer, address: monitor?.address },
    runs: () => (problem = undefined),
    stops: () => (problem = `the ${role} is stopping; ask another one, or wait for its next start`),
    close: () => monitor?.close()
  }
}
