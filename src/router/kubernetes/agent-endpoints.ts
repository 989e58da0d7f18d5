/**
 * The agents' addresses, from the EndpointSlices of their Service: each endpoint names its node.
 *
 * An agent whose pod is being replaced is in no slice for a while. Its node is remembered for some time: if all other
 * agents do not have a snapshot, that one still may.
 */
import { isIPv6 } from 'node:net'
import { formatTcp } from '../../grpc/address.ts'
import { fieldOf, type KubernetesObject, listOf, textOf } from '../../kubernetes/object.ts'
import type { WatchCache } from '../../kubernetes/watch-cache.ts'
import type { Agents } from '../relay/agents.ts'

/** How long a node without an agent counts as one that should have one, in milliseconds. */
const REMEMBER_MS = 600_000

/**
 * The order of preference: an endpoint that is ready, then one that still serves while it terminates; others cannot be
 * asked.
 */
const [READY, LEAVING, DOWN] = [2, 1, 0]

/**
 * The best address on each node; undefined for a node whose agent cannot be asked.
 *
 * @param port the name of the port; in a slice with a single unnamed port, that one
 */
export function agentAddresses(slices: Iterable<KubernetesObject>, port: string): Map<string, string | undefined> {
  const best = new Map<string, { worth: number; address: string }>()
  for (const slice of slices) {
    const ports = listOf(slice, 'ports')
    const chosen = ports.find((each) => textOf(each, 'name') === port) ?? (ports.length === 1 ? ports[0] : undefined)
    const number = fieldOf(chosen, 'port')
    for (const endpoint of listOf(slice, 'endpoints')) {
      const [node, host] = [textOf(endpoint, 'nodeName'), textOf(endpoint, 'addresses', 0)]
      if (node === undefined || host === undefined) continue
      const named = textOf(chosen, 'name')
      const usable = typeof number === 'number' && (named === undefined || named === port)
      const candidate = { worth: usable ? worthOf(endpoint) : DOWN, address: formatTcp(host, Number(number)) }
      const known = best.get(node)
      if (known === undefined || compare(candidate, known) < 0) best.set(node, candidate)
    }
  }
  return new Map([...best].map(([node, { worth, address }]) => [node, worth === DOWN ? undefined : address]))
}

/** A missing `ready` counts as true, and a missing `serving` as `ready` (discovery.k8s.io/v1, EndpointConditions). */
function worthOf(endpoint: unknown): number {
  const ready = fieldOf(endpoint, 'conditions', 'ready') ?? true
  if (ready === true) return READY
  return fieldOf(endpoint, 'conditions', 'serving') === true ? LEAVING : DOWN
}

/** The same choice in any order of the slices. */
function compare(one: { worth: number; address: string }, other: { worth: number; address: string }): number {
  if (one.worth !== other.worth) return other.worth - one.worth
  const sixth = (address: string) => Number(isIPv6(/^tcp:\/\/\[([^\]]*)\]/.exec(address)?.[1] ?? ''))
  return sixth(one.address) - sixth(other.address) || (one.address < other.address ? -1 : 1)
}

export interface EndpointOptions {
  readonly port: string
  /** How long `awaited` waits, in milliseconds. */
  readonly waitMs: number
  /** Gets the addresses in use after each change. */
  readonly onChange: (addresses: ReadonlySet<string>) => void
}

export class AgentEndpoints implements Agents {
  readonly #slices: WatchCache
  readonly #options: EndpointOptions
  readonly #arrivals = new Set<() => void>()
  #addresses = new Map<string, string | undefined>()
  /** When each node was last seen to have an agent, in milliseconds since 1970. */
  readonly #seen = new Map<string, number>()

  constructor(slices: WatchCache, options: EndpointOptions) {
    this.#slices = slices
    this.#options = options
    slices.onChange(() => this.#look())
  }

  nodes(): readonly string[] {
    const now = Date.now()
    for (const [node, seen] of this.#seen) {
      if (this.#addresses.has(node)) this.#seen.set(node, now)
      else if (now - seen > REMEMBER_MS) this.#seen.delete(node)
    }
    return [...this.#seen.keys()]
  }

  address(node: string): string | undefined {
    return this.#addresses.get(node)
  }

  async awaited(node: string, signal: AbortSignal): Promise<string | undefined> {
    const timeout = AbortSignal.timeout(this.#options.waitMs)
    const either = AbortSignal.any([signal, timeout])
    while (this.address(node) === undefined && !either.aborted) {
      await new Promise<void>((resolve) => {
        const done = () => {
          this.#arrivals.delete(done)
          either.removeEventListener('abort', done)
          resolve()
        }
        this.#arrivals.add(done)
        either.addEventListener('abort', done)
      })
    }
    signal.throwIfAborted()
    return this.address(node)
  }

  #look(): void {
    const now = Date.now()
    for (const node of this.#addresses.keys()) this.#seen.set(node, now)
    this.#addresses = agentAddresses(this.#slices.all(), this.#options.port)
    for (const node of this.#addresses.keys()) this.#seen.set(node, now)
    this.#options.onChange(new Set([...this.#addresses.values()].filter((address) => address !== undefined)))
    for (const arrived of [...this.#arrivals]) arrived()
  }
}
