/**
 * The common metrics of agent and router: calls, and messages sent. Each has a registry of its own, never a global one.
 *
 * Labels have few values by construction: methods, status codes, error codes, nodes, pools, and a limited number of
 * volumes. Never a snapshot's handle, a client.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { ServerObserver } from '../grpc/server.ts'
import type { CallObserver, MethodName } from '../grpc/snapshot-metadata.ts'
import type { Certificates } from '../grpc/tls.ts'
import type { Readiness } from './readiness.ts'

/** A small delta takes milliseconds, a large volume minutes; the CSI sidecar ends a call after ten. */
const DURATIONS = [0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 600, 1800]

export interface ProcessMetrics {
  readonly registry: Registry
  /** Gets the events of calls and clients. */
  readonly observer: ServerObserver
}

export interface ProcessFacts {
  readonly role: 'agent' | 'router'
  readonly version: string
  readonly readiness: Readiness
  readonly certificates: Certificates | undefined
}

/** The metrics that agent and router have in common, each registered once. */
export function processMetrics({ role, version, readiness, certificates }: ProcessFacts): ProcessMetrics {
  const registry = new Registry()
  const registers = [registry]
  new Gauge({
    ...{ name: 'deltamapper_build_info', help: 'Version and role of this process', registers },
    labelNames: ['version', 'role']
  }).set({ version, role }, 1)
  new Gauge({
    ...{ name: 'deltamapper_ready', help: '1 when /readyz says ready, else 0', registers },
    async collect() {
      this.set((await readiness.problems()).length === 0 ? 1 : 0)
    }
  })
  if (certificates) {
    new Gauge({
      name: 'deltamapper_certificate_expiry_timestamp_seconds',
      help: 'Unix time at which our own certificate expires',
      registers,
      collect() {
        this.set(certificates.expiresAt / 1000)
      }
    })
  }
  const refused = new Counter({
    name: 'deltamapper_refused_clients_total',
    help: 'TLS connections that were refused, mostly for their certificate',
    registers
  })
  return { registry, observer: { calls: countCalls(registry), clientRefused: () => refused.inc() } }
}

function countCalls(registry: Registry): CallObserver {
  const registers = [registry]
  const labelNames = ['method'] as const
  const ended = new Counter({
    name: 'deltamapper_calls_total',
    help: 'Calls that have ended',
    labelNames: ['method', 'grpc_code', 'error'],
    registers
  })
  const running = new Gauge({ name: 'deltamapper_calls_running', help: 'Calls under way', registers })
  const duration = new Histogram({
    name: 'deltamapper_call_seconds',
    help: 'From the request to the last message or error, the slowness of the client included',
    ...{ labelNames, buckets: DURATIONS, registers }
  })
  const firstMessage = new Histogram({
    name: 'deltamapper_first_message_seconds',
    help: 'From the request to the first message',
    ...{ labelNames, buckets: DURATIONS, registers }
  })
  const messages = new Counter({
    name: 'deltamapper_messages_total',
    help: 'Response messages sent',
    ...{ labelNames, registers }
  })
  const bytes = new Counter({
    name: 'deltamapper_sent_bytes_total',
    help: 'Bytes of response messages sent',
    ...{ labelNames, registers }
  })
  // Looked up once: a call may have millions of messages.
  const counters = (method: MethodName) => {
    const found = { messages: messages.labels(method), bytes: bytes.labels(method) }
    found.messages.inc(0)
    found.bytes.inc(0)
    return found
  }
  const sent = {
    GetMetadataAllocated: counters('GetMetadataAllocated'),
    GetMetadataDelta: counters('GetMetadataDelta')
  }
  return {
    begun: () => running.inc(),
    sent(method, length) {
      sent[method].messages.inc()
      sent[method].bytes.inc(length)
    },
    ended({ method, status, error, durationMs, firstMessageMs }) {
      running.dec()
      ended.inc({ method, grpc_code: status, error: error ?? '' })
      duration.observe({ method }, durationMs / 1000)
      if (firstMessageMs !== undefined) firstMessage.observe({ method }, firstMessageMs / 1000)
    }
  }
}
