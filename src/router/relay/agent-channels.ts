/**
 * The router's connections to agents: a few to each address, opened with the first call and again after a loss, shared
 * by all calls.
 *
 * What a connection carries comes in order. So a client that reads a hundred large answers would have everybody else's
 * wait behind them: the clients of a router are spread over the connections, each newcomer to the one with the fewest
 * calls.
 */
import type { Client } from '@grpc/grpc-js'
import { parseConnectAddress } from '../../grpc/address.ts'
import { openChannel } from '../../grpc/client.ts'
import type { Certificates } from '../../grpc/tls.ts'

/**
 * A machine that has failed sends nothing. Pings go out while calls are running, and a call without an answer to one
 * ends.
 */
const keepalive = { 'grpc.keepalive_time_ms': 10_000, 'grpc.keepalive_timeout_ms': 10_000 }

/** gRPC's own limit, and the CSI sidecar's. Agents stay far below. */
const maximumMessageBytes = 4 * 1024 * 1024

/**
 * What an agent may send of one answer before it is read, in bytes. Enough for 250 MB/s with a round trip of a
 * millisecond, as within a cluster. Every unread answer costs as much memory.
 */
const flowControlWindowBytes = 256 * 1024

/**
 * A connection without a call for so long is closed, in milliseconds. Those with old certificates end in the same way,
 * because closing one at once would end its running calls.
 */
const idleMs = 60_000

/** Connections to one address, at the most. Calls of one client that run at the same time share one. */
const lanes = 4

/** A connection for one call. Disposed of when the call is over. */
export interface TakenChannel extends Disposable {
  readonly client: Client
}

/** The calls of one client to one address that are running. */
interface PartyCalls {
  readonly lane: number
  calls: number
}

export class AgentChannels {
  readonly #tls: { readonly certificates: Certificates; readonly agentName: string } | undefined
  /** By lane and address, with a space between. */
  readonly #channels = new Map<string, Client>()
  /** By address and party. */
  readonly #running = new Map<string, Map<string, PartyCalls>>()
  /**
   * Not for new calls, because their certificates or addresses are old. Running calls hold them; once idle, they are
   * closed.
   */
  readonly #retired = new Set<WeakRef<Client>>()
  readonly #stopListening: (() => void) | undefined

  /** @param tls for agents at `tcp://` addresses, whose certificates must carry `agentName` */
  constructor(tls?: { readonly certificates: Certificates; readonly agentName: string }) {
    this.#tls = tls
    // New certificates mean new connections; running calls go on over the old ones.
    this.#stopListening = tls?.certificates.onChange(() => {
      this.retain(new Set())
    })
  }

  /** Leaves the connections to all other addresses to their running calls. */
  retain(addresses: ReadonlySet<string>): void {
    for (const [place, channel] of this.#channels) {
      if (addresses.has(place.slice(place.indexOf(' ') + 1))) continue
      this.#channels.delete(place)
      this.#retired.add(new WeakRef(channel))
    }
    for (const retired of this.#retired) if (retired.deref() === undefined) this.#retired.delete(retired)
  }

  /** @param party whose call it is (CallContext.party) */
  take(address: string, party = ''): TakenChannel {
    const running = this.#running.get(address) ?? new Map<string, PartyCalls>()
    this.#running.set(address, running)
    const own = running.get(party) ?? { lane: freestLane(running.values()), calls: 0 }
    running.set(party, own)
    own.calls++
    let isOver = false
    return {
      client: this.#channel(own.lane, address),
      [Symbol.dispose]: () => {
        if (isOver) return
        isOver = true
        if (--own.calls > 0) return
        running.delete(party)
        if (running.size === 0) this.#running.delete(address)
      }
    }
  }

  #channel(lane: number, address: string): Client {
    const place = `${lane} ${address}`
    let channel = this.#channels.get(place)
    if (channel === undefined) {
      const tls = this.#tls && { material: this.#tls.certificates.material, serverName: this.#tls.agentName }
      channel = openChannel(parseConnectAddress(address, { tls: tls !== undefined }), tls, {
        ...keepalive,
        // Else grpc-js has all channels to an address share one connection.
        'grpc.use_local_subchannel_pool': 1,
        'grpc-node.flow_control_window': flowControlWindowBytes,
        'grpc.client_idle_timeout_ms': idleMs,
        'grpc.max_receive_message_length': maximumMessageBytes
      })
      this.#channels.set(place, channel)
    }
    return channel
  }

  /** Ends the calls that are still under way. */
  close(): void {
    this.#stopListening?.()
    for (const channel of this.#channels.values()) channel.close()
    for (const retired of this.#retired) retired.deref()?.close()
    this.#channels.clear()
    this.#retired.clear()
  }
}

/** 0 to `lanes` - 1: the first of those with the fewest calls, so that a lone client keeps to one connection. */
function freestLane(running: Iterable<PartyCalls>): number {
  const calls = new Array<number>(lanes).fill(0)
  for (const each of running) calls[each.lane] = (calls[each.lane] ?? 0) + each.calls
  return calls.indexOf(Math.min(...calls))
}
