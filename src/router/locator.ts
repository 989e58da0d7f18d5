/**
 * On which node a snapshot is: as its handle or the cluster tells, otherwise by asking all agents. And whether two
 * snapshots can be compared.
 *
 * A wrong node would give a wrong answer if two nodes use the same names, as volume groups do. So asking counts only if
 * every agent has said yes or no, and one of them yes.
 *
 * The CSI sidecar passes the base's handle on unchecked. So the router checks that base and target are of one volume
 * and in this order, as far as objects of the cluster tell, and the agent does as far as its pool tells. Unknown
 * relations are answered: within a pool, any two snapshots compare exactly.
 */
import { DeltamapperError } from '../errors.ts'
import type { CallContext } from '../grpc/call-context.ts'
import { printable } from '../handle.ts'
import type { Place, SnapshotLocator } from './relay/relay.ts'
import type { Agents } from './relay/agents.ts'
import type { Located } from './drivers/driver.ts'

export interface LocatorSources {
  /** What is known of a snapshot without asking agents. */
  readonly locate: (
    snapshotId: string,
    signal: AbortSignal
  ) => Promise<Located & { readonly ageSeconds?: number | undefined }>
  /**
   * The agent's name of a snapshot of which nothing is known any more; undefined if that cannot be told.
   *
   * @param target a later snapshot of its volume
   */
  readonly whenGone?: ((snapshotId: string, target: Located) => string | undefined) | undefined
  readonly agents: Agents
  /**
   * Whether the agent there has the snapshot, or, if it gave no answer, the reason, as a clause that names the node.
   */
  readonly ask: (place: Place, signal: AbortSignal, call?: CallContext) => Promise<boolean | string>
}

export class Locator implements SnapshotLocator {
  readonly #sources: LocatorSources

  constructor(sources: LocatorSources) {
    this.#sources = sources
  }

  /** @throws DM_NODE_UNKNOWN, DM_SNAPSHOT_NOT_FOUND, DM_NODE_AMBIGUOUS, DM_AGENT_UNREACHABLE; what `locate` throws */
  async target(snapshotId: string, signal: AbortSignal, call?: CallContext): Promise<Place> {
    return this.#place(await this.#sources.locate(snapshotId, signal), signal, call)
  }

  /** @throws as `target`, and DM_VOLUMES_DIFFER, DM_ORDER_REVERSED, DM_NODES_DIFFER */
  async pair(
    baseSnapshotId: string,
    targetSnapshotId: string,
    signal: AbortSignal,
    call?: CallContext
  ): Promise<{ target: Place; baseHandle: string }> {
    const [base, located] = await Promise.all([
      this.#sources.locate(baseSnapshotId, signal).catch((error: unknown) => {
        if (error instanceof DeltamapperError && error.code === 'DM_SNAPSHOT_NOT_FOUND') return error
        throw error
      }),
      this.#sources.locate(targetSnapshotId, signal)
    ])
    // The agent may have a record of it, by the name that it knew it by.
    const goneHandle = () => this.#sources.whenGone?.(baseSnapshotId, located)
    if (base instanceof DeltamapperError) {
      const baseHandle = goneHandle()
      if (baseHandle === undefined) throw base
      return { target: await this.#place(located, signal, call), baseHandle }
    }
    if (baseSnapshotId !== targetSnapshotId) checkRelated(baseSnapshotId, base, targetSnapshotId, located)
    if (base.node !== undefined && located.node !== undefined && base.node !== located.node) {
      throw nodesDiffer(base.node, located.node)
    }
    const target = await this.#place(located, signal, call)
    if (base.node !== undefined) {
      if (base.node !== target.node) throw nodesDiffer(base.node, target.node)
      return { target, baseHandle: base.handle }
    }
    // The target's node counts. A missing base may have been removed, which its agent knows better.
    const { having } = await this.#askAll(base.handle, signal, call)
    if (having.length > 0 && !having.some(({ node }) => node === target.node)) {
      throw nodesDiffer(having[0].node, target.node)
    }
    return { target, baseHandle: having.length > 0 ? base.handle : (goneHandle() ?? base.handle) }
  }

  async #place(
    { node, handle, ageSeconds }: Located & { readonly ageSeconds?: number | undefined },
    signal: AbortSignal,
    call: CallContext | undefined
  ): Promise<Place> {
    if (node !== undefined) return this.#known({ node, handle, ageSeconds }, signal)
    const { having, silent } = await this.#askAll(handle, signal, call)
    if (having.length > 1) {
      throw new DeltamapperError(
        'DM_NODE_AMBIGUOUS',
        `${names(having)} all have a snapshot ${printable(handle)}`,
        'give the router a pattern that tells the node'
      )
    }
    // An agent that gave no answer may have it, too.
    if (silent.length > 0) {
      const [{ node, reason }] = silent
      const others = silent.length > 1 ? ` (and ${silent.length - 1} others, such as ${silent[1].node}'s)` : ''
      throw new DeltamapperError(
        'DM_AGENT_UNREACHABLE',
        `nothing says on which node ${printable(handle)} is, and not all agents do: ${reason}${others}`,
        'solve the problem of that node, or give the router a pattern that names the node',
        { node }
      )
    }
    const [place] = having
    if (place === undefined) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_NOT_FOUND',
        `no node has a snapshot ${printable(handle)}`,
        'check the handle, and the patterns of the router'
      )
    }
    return place
  }

  async #known(found: Omit<Place, 'address'>, signal: AbortSignal): Promise<Place> {
    const { node } = found
    const { agents } = this.#sources
    if ((await agents.awaited(node, signal)) !== undefined) return this.#placeAt(found)
    if (agents.nodes().includes(node)) {
      throw new DeltamapperError(
        'DM_AGENT_UNREACHABLE',
        `the agent of node ${printable(node)} is not there at the moment`,
        'see whether its pod runs and is ready',
        { node }
      )
    }
    throw new DeltamapperError(
      'DM_NODE_UNKNOWN',
      `no agent is known for the node ${printable(node)}`,
      'see that an agent runs there; without Kubernetes, add it to the nodes of the router, or correct the pattern'
    )
  }

  /** A place whose address is looked up each time: a pod that is replaced comes back at another. */
  #placeAt(found: Omit<Place, 'address'>): Place {
    const { agents } = this.#sources
    const { node } = found
    let last = agents.address(node) ?? ''
    return {
      ...found,
      get address() {
        return (last = agents.address(node) ?? last)
      }
    }
  }

  async #askAll(
    handle: string,
    signal: AbortSignal,
    call: CallContext | undefined
  ): Promise<{ having: Place[]; silent: { node: string; reason: string }[] }> {
    const { agents, ask } = this.#sources
    const places = agents.nodes().map((node) => this.#placeAt({ node, handle }))
    const answers = await Promise.all(
      places.map(async (place) =>
        agents.address(place.node) === undefined
          ? `the agent of node ${place.node} is not there at the moment`
          : ask(place, signal, call)
      )
    )
    return {
      having: places.filter((_place, i) => answers[i] === true),
      silent: places.flatMap(({ node }, i) => {
        const reason = answers[i]
        return typeof reason === 'string' ? [{ node, reason }] : []
      })
    }
  }
}

/** Refuses a mix-up of handles. @throws DM_VOLUMES_DIFFER, DM_ORDER_REVERSED */
function checkRelated(baseId: string, base: Located, targetId: string, target: Located): void {
  if (base.origin !== undefined && target.origin !== undefined && base.origin !== target.origin) {
    throw new DeltamapperError(
      'DM_VOLUMES_DIFFER',
      `${printable(baseId)} is a snapshot of ${printable(base.origin)}, ${printable(targetId)} of ${printable(target.origin)}`,
      'compare snapshots of one volume'
    )
  }
  if (base.createdAt !== undefined && target.createdAt !== undefined && base.createdAt > target.createdAt) {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `the base ${printable(baseId)} was taken at ${time(base.createdAt)}, after the target, ${time(target.createdAt)}`,
      'name the older snapshot as the base'
    )
  }
}

function time(ms: number): string {
  return new Date(ms).toISOString()
}

function nodesDiffer(base: string, target: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NODES_DIFFER',
    `the base is on node ${printable(base)}, the target on ${printable(target)}`,
    'compare snapshots of one volume'
  )
}

function names(places: readonly Place[]): string {
  return places.map(({ node }) => node).join(', ')
}
